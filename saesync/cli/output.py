"""Where text goes, and whether it may be colored."""

from __future__ import annotations

import os
import sys

import click


def colored(no_color: bool, stream: str = "stderr") -> bool:
    """Colors only on a terminal, and never against NO_COLOR or ``--no-color``."""
    if no_color or os.environ.get("NO_COLOR"):
        return False
    return sys.stderr.isatty() if stream == "stderr" else sys.stdout.isatty()


def say(text: str) -> None:
    """One message to stderr."""
    click.echo(text, err=True)


def put(text: str) -> None:
    """Data to stdout."""
    click.echo(text)

"""Where text goes, and whether it may be colored."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import click

from saesync.errors import Missing
from saesync.streams import json_text, write_line, write_message


def is_terminal(stream: TextIO | None) -> bool:
    """Whether somebody sits there. A stream is None when it was closed before the program began."""
    return stream is not None and stream.isatty()


def may_color(stream: TextIO | None, no_color: bool) -> bool:
    """Colors only on a terminal that knows them, and never against NO_COLOR or ``--no-color``."""
    return is_terminal(stream) and not no_color and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def colored(ctx: click.Context, stream: TextIO | None) -> bool:
    """The same inside a command, which knows whether ``--no-color`` was given."""
    return may_color(stream, bool(ctx.ensure_object(dict).get("no_color")))


def debugging(ctx: click.Context) -> bool:
    """Whether ``--debug`` was given."""
    return bool(ctx.ensure_object(dict).get("debug"))


def say(text: str) -> None:
    """One message to stderr."""
    write_message(sys.stderr, text)


def put(text: str) -> None:
    """Data to stdout.

    Raises:
        Missing: it cannot be written there, and why.
    """
    with _to_stdout():
        write_line(sys.stdout, text)


def put_file(text: str) -> None:
    """The content of a file to stdout: in UTF-8, as files are, whatever a terminal here reads.

    Raises:
        Missing: it cannot be written there, and why.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        with _to_stdout():
            sys.stdout.reconfigure(encoding="utf-8", errors="surrogateescape")
    put(text)


def as_json(value: Any) -> str:
    """``value`` as JSON that stdout can take, for people to read."""
    return json_text(value, sys.stdout, indent=2)


def lost(error: OSError) -> Missing:
    """What is said of data that stdout did not take."""
    return Missing("Output cannot be written", f"Standard output: {error.strerror}. Write it somewhere else.")


@contextmanager
def _to_stdout() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise lost(error) from error


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """While a file that the user named is written.

    Raises:
        Missing: it cannot be, and why.
    """
    try:
        yield
    except OSError as error:
        raise Missing("File cannot be written", f"{path}: {error.strerror}. Name another file.") from error

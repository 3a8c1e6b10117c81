"""Paths on the command line."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from saesync.manifest.paths import unexpanded


class Named(click.Path):
    """A path that somebody typed. Whether it can be read is told by whoever reads it, in the same words everywhere."""

    def __init__(self, **options: Any) -> None:
        super().__init__(path_type=Path, readable=False, **options)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """As click does it; but nothing is no name of the working folder, and `~` and `$HOME` are none of folders in it."""
        if value == "":
            self.fail("The name is empty: maybe a variable of the shell is not set.", param, ctx)
        word = unexpanded(os.fspath(value))
        if word is not None and not os.path.lexists(value):
            said = f"There is no {value} here: a shell puts your folder in the place of {word} only outside of quotes."
            self.fail(said, param, ctx)
        return super().convert(value, param, ctx)

"""A folder that appears whole under its name, or not at all, and what a killed process leaves of one."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from saesync.cache import settle, sync
from saesync.errors import Missing, Refused
from saesync.scratch import abandoned, try_lock

_MADE = "made"


@contextmanager
def becoming(dst: Path) -> Iterator[Path]:
    """A fresh folder beside DST that gets its name at the end, flushed to disk, or is gone. It stands in one whose name has ours
    and our process's number, locked as long as it is filled.

    Raises:
        Missing: nothing can be written there.
        Refused: DST is there at the end.
    """
    try:
        dst.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f"{_prefix(dst)}{os.getpid()}-", dir=dst.parent.absolute()))
        handle = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise Missing("Folder cannot be written", f"{dst}: {error.strerror}. Name another one.") from error
    try:
        try_lock(handle)
        inner = folder / _MADE
        inner.mkdir()
        yield inner
        settle(inner)
        try:
            inner.rename(dst)
        except OSError as error:
            raise Refused(
                "Destination exists", f"{dst} appeared meanwhile ({error.strerror}). Nothing was overwritten."
            ) from error
        sync(dst.parent)
    finally:
        os.close(handle)
        shutil.rmtree(folder, ignore_errors=True)


def sweep(dst: Path) -> list[Path]:
    """Remove what killed runs for the same DST left beside it, and say what that was.

    Only a folder that has our name and the number of a process that is gone, is our user's, is locked by nobody, and holds
    nothing but what such a run makes.
    """
    named = re.compile(re.escape(_prefix(dst)) + r"([0-9]{1,9})-[a-z0-9_]+")
    try:
        found = [(path, named.fullmatch(path.name)) for path in dst.parent.iterdir()]
        left = [path for path, name in found if name and _ours(path) and abandoned(path, int(name[1]))]
    except OSError:  # whatever hinders will hinder writing, too
        return []
    for path in left:
        shutil.rmtree(path, ignore_errors=True)
    return left


def _prefix(dst: Path) -> str:
    return f".{dst.name}.saesync-"


def _ours(folder: Path) -> bool:
    owned = not folder.is_symlink() and folder.is_dir() and folder.stat().st_uid == os.geteuid()
    return owned and {path.name for path in folder.iterdir()} <= {_MADE}

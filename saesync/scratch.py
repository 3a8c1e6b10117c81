"""Folders for what is not finished, gone with whoever made them.

Each stands in a folder of such folders, is named after its process, and is locked by it. The kernel drops a lock with its
process: what nobody holds is swept, however the process ended.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

_DIGITS = 10  # more has no process's number


@contextlib.contextmanager
def scratch(place: Path) -> Iterator[Path]:
    """A fresh folder in ``place`` that is gone afterwards, and with it what killed processes left there.

    Raises:
        OSError: no space, no permission.
    """
    sweep(place)
    place.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f"{os.getpid()}-", dir=place))
    handle = os.open(folder, os.O_RDONLY)
    try:
        try_lock(handle)
        yield folder
    finally:
        os.close(handle)
        shutil.rmtree(folder, ignore_errors=True)


def sweep(place: Path) -> None:
    """Remove what killed processes left in ``place``."""
    if not place.is_dir():
        return
    for entry in place.iterdir():
        owner = entry.name.split("-", 1)[0]
        if owner.isdecimal() and len(owner) < _DIGITS and abandoned(entry, int(owner)):
            shutil.rmtree(entry, ignore_errors=True)


def try_lock(handle: int) -> bool:
    """Lock an open file or folder for its holder alone, until it is closed or the process ends, however it ends.

    False: somebody else holds it. Where the file system knows no locks, everybody gets one.
    """
    try:
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except (ImportError, OSError):
        return True
    return True


def abandoned(folder: Path, process: int) -> bool:
    """Whether the folder that this process filled is nobody's any more: it is gone, and nobody holds the folder's lock."""
    return not _alive(process) and _free(folder)


def _free(folder: Path) -> bool:
    """Whether nobody fills a folder: a process in another container has a number that is nobody's here."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return False
    try:
        return try_lock(handle)
    finally:
        os.close(handle)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True

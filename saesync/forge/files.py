"""A registry that is a plain file: read as it is, edited in one rename under a lock."""

from __future__ import annotations

import contextlib
import os
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from saesync.cache import write_atomic
from saesync.errors import Missing, NotVisible, Unavailable
from saesync.hub.trouble import patience_seconds


def read_file(path: Path) -> bytes:
    """The file's bytes.

    Raises:
        NotVisible: it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise NotVisible("Registry cannot be read", f"{path} cannot be read: {error.strerror or error}.") from None


def edit_file(path: Path, edit: Callable[[bytes], bytes]) -> bool:
    """Replace the file by its edited form, whole or not at all; whether that made a difference. Its permissions stay.

    Raises:
        NotVisible: it cannot be read.
        Missing: it cannot be written.
        Unavailable: another process holds the lock.
    """
    with _locked(path):
        before = read_file(path)
        after = edit(before)
        if after == before:
            return False
        try:
            write_atomic(path, after, mode=stat.S_IMODE(path.stat().st_mode))
        except OSError as error:
            raise Missing("Registry cannot be written", f"{path} cannot be written: {error.strerror or error}.") from None
        return True


def check_file(path: Path) -> None:
    """Whether ``edit_file`` may write.

    Raises:
        Missing: it may not.
    """
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise Missing(
            "Registry cannot be written", f"The folder {path.parent} is not writable; {path.name} is to be edited in it."
        )


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """An exclusive lock on the file's folder (the file itself is replaced); the kernel drops it when the process ends."""
    import fcntl

    try:
        handle = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise NotVisible("Registry cannot be read", f"{path.parent} cannot be opened: {error.strerror or error}.") from None
    try:
        limit = time.monotonic() + patience_seconds()
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > limit:
                    raise Unavailable("Registry is in use", f"Another process has {path} locked. Try again later.") from None
                time.sleep(0.05)
        yield
    finally:
        os.close(handle)

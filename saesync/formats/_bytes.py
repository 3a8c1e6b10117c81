"""Random access to the bytes of a file that may be here or on a server, with a budget. Standard library only."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from saesync.errors import Refused

# Headers of real checkpoints are kilobytes; this bounds what a crafted one can make us read or hold.
HEADER_BUDGET = 64 << 20
_READ_AHEAD = 128 << 10
POINTER = b"version https://git-lfs.github.com/spec/v1"


class Bytes(Protocol):
    """A file of known size whose byte ranges can be read."""

    @property
    def size(self) -> int:
        """Length in bytes."""
        ...

    def read(self, start: int, stop: int) -> bytes:
        """Bytes ``start:stop``; fewer at the end of the file."""
        ...


@dataclass(frozen=True, slots=True)
class LocalBytes:
    """A file on this disk."""

    path: Path

    @property
    def size(self) -> int:
        """Length in bytes."""
        return self.path.stat().st_size

    def read(self, start: int, stop: int) -> bytes:
        """Bytes ``start:stop``."""
        with self.path.open("rb") as stream:
            stream.seek(start)
            return stream.read(stop - start)


@dataclass(frozen=True, slots=True)
class RangedBytes:
    """A file reached by ranged reads."""

    size: int
    fetch: Callable[[int, int], bytes]

    def read(self, start: int, stop: int) -> bytes:
        """Bytes ``start:stop``."""
        return self.fetch(start, min(stop, self.size)) if start < min(stop, self.size) else b""


def instead(head: bytes, name: str) -> Refused | None:
    """What a file that cannot be read is instead, by its first bytes (``len(POINTER)`` of them); None where they do not say."""
    if not head:
        return Refused("Damaged file", f"{name} is empty. Fetch or export it again.")
    if head.startswith(POINTER):
        detail = f"{name} is a git-lfs pointer, not the file: run `git lfs pull` in its repository."
        return Refused("File is not fetched", detail)
    return None


def damaged(source: Bytes, name: str, what: str) -> Refused:
    """The refusal of a file that cannot be read: what it is instead, or ``what`` is wrong with it."""
    said = instead(source.read(0, len(POINTER)), name)
    return said or Refused("Damaged file", f"{name} {what}. Fetch or export it again.")


class _Stream(io.RawIOBase):
    def __init__(self, source: Bytes, budget: int) -> None:
        self._source = source
        self._size = source.size
        self._budget = budget
        self._at = 0

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise ValueError("negative seek position")
        self._at = base + offset
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]  # typeshed's WriteableBuffer is private
        wanted = max(0, min(len(buffer), self._size - self._at))
        self._budget -= wanted
        if self._budget < 0:
            raise Refused(
                "Header is too large",
                f"Reading the header would take more than {HEADER_BUDGET >> 20} MiB. This is not a checkpoint saesync reads.",
            )
        data = self._source.read(self._at, self._at + wanted) if wanted else b""
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


def open_stream(source: Bytes, budget: int = HEADER_BUDGET) -> io.BufferedReader:
    """A seekable stream over ``source`` that gives up with Refused after reading ``budget`` bytes."""
    return io.BufferedReader(_Stream(source, budget), _READ_AHEAD)

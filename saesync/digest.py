"""Content digests: the only identity saesync knows."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta
from msgspec.json import Encoder

BLOCK = 1 << 20
_SPELLING = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
_FASTER = Encoder(order="sorted")
_TEXT = frozenset({str})
_ALIKE = frozenset({str, int, bool, type(None)})
SHORT = 8
Hex64 = Annotated[str, Meta(pattern=r"\A[0-9a-f]{64}\Z")]
Hex40 = Annotated[str, Meta(pattern=r"\A[0-9a-f]{40}\Z")]


def canonical(value: Any) -> bytes:
    """The one JSON spelling of ``value`` that keys are made of: sorted keys, no spaces, UTF-8, no NaN, numbers as Python's
    ``json`` writes them. Where msgspec can only write the same, it does, in a tenth of the time.

    Raises:
        ValueError: ``value`` holds NaN or an infinity, which JSON cannot say.
        TypeError: ``value`` holds something JSON has no form for.
    """
    return _FASTER.encode(value) if _alike(value) else _SPELLING.encode(value).encode()


def _alike(value: Any) -> bool:
    """Whether all JSON writers spell it alike. Exponents are spelt in many ways; not all write NaN, or names other than text."""
    todo = [value]
    while todo:
        value = todo.pop()
        kind = type(value)
        if kind is dict or kind is list or kind is tuple:
            values = value.values() if kind is dict else value
            if kind is dict and not _TEXT.issuperset(map(type, value)):
                return False
            if not _ALIKE.issuperset(map(type, values)):
                todo += values
        elif kind not in _ALIKE and not (kind is float and 1e-4 <= abs(value) < 1e16):
            return False
    return True


def key_of(value: Any) -> str:
    """sha256 (64 hex digits) of the canonical form of ``value``."""
    return hashlib.sha256(canonical(value)).hexdigest()


def short(digest: str) -> str:
    """The first digits of a digest, as shown to people."""
    return digest[:SHORT]


@dataclass(frozen=True, slots=True)
class FileDigest:
    """What is known of one file's bytes. A Hub tree gives sha256 for LFS files and the git blob id for the others.

    ``size`` is in bytes. At least one of ``sha256`` and ``blob_id`` is set.
    """

    size: Annotated[int, Meta(ge=0)]
    sha256: Hex64 | None = None
    blob_id: Hex40 | None = None

    def same_bytes(self, other: FileDigest) -> bool:
        """Whether both describe the same bytes, by any digest that both have; without a common digest, no."""
        if self.sha256 is not None and other.sha256 is not None:
            return self.sha256 == other.sha256
        if self.blob_id is not None and other.blob_id is not None:
            return self.blob_id == other.blob_id
        return False

    def to_json(self) -> dict[str, Any]:
        """Only the fields that are known."""
        pairs = {"size": self.size, "sha256": self.sha256, "blob_id": self.blob_id}
        return {name: value for name, value in pairs.items() if value is not None}


class Hasher:
    """sha256 and git blob id of a stream of known length, in one pass.

    The git blob id (sha1 of ``"blob {size}\\0"`` and the bytes) needs the size up front.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._sha256 = hashlib.sha256()
        self._blob = hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False)

    def update(self, block: bytes | memoryview) -> None:
        """Take in the next bytes."""
        self._sha256.update(block)
        self._blob.update(block)

    def digest(self) -> FileDigest:
        """Digests of everything taken in so far."""
        return FileDigest(self._size, self._sha256.hexdigest(), self._blob.hexdigest())


def digest_bytes(data: bytes) -> FileDigest:
    """Both digests of ``data``."""
    hasher = Hasher(len(data))
    hasher.update(data)
    return hasher.digest()


def digest_file(path: Path, progress: Callable[[int], None] | None = None) -> FileDigest:
    """Both digests of a file, read in 1 MiB blocks; ``progress`` is told the bytes done so far.

    Raises:
        OSError: the file cannot be read.
    """
    done = 0
    with path.open("rb") as stream:
        hasher = Hasher(path.stat().st_size)
        while block := stream.read(BLOCK):
            hasher.update(block)
            done += len(block)
            if progress is not None:
                progress(done)
    return hasher.digest()

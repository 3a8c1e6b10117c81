"""What torch.save writes, read without torch and without running anything the file names.

Both layouts are read: the zip (since torch 1.6) and the older run of pickles followed by raw storages. Sizes are compared
with the file's before anything is allocated.
"""

from __future__ import annotations

import io
import math
import struct
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from saesync.errors import Refused
from saesync.formats._bytes import Bytes, damaged, open_stream
from saesync.formats._lazy import Extent
from saesync.formats._pickle import ALLOWED, MAX_PICKLE, Storage, TensorRef, load
from saesync.formats.base import TensorInfo

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # torch.serialization.MAGIC_NUMBER
_MAX_LEAVES = 100_000
_MAX_NAME = 500
# What the standard library's parsers raise on damaged input; NotImplementedError and RuntimeError are zipfile's.
BROKEN = (
    ValueError, TypeError, KeyError, IndexError, EOFError, OverflowError, struct.error, zipfile.BadZipFile,
    NotImplementedError, RuntimeError,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class TorchFile:
    """What a checkpoint's pickle says. Nested dictionaries are flattened with dots; ``others`` names what is no tensor, and
    ``values`` holds those of them that are plain numbers, strings or None.

    ``extents`` is empty unless asked for: finding where the data starts costs a read per tensor. ``value`` is the whole as plain
    data, tensors and storages as descriptions.
    """

    tensors: Mapping[str, TensorInfo]
    globals: tuple[str, ...]
    others: tuple[str, ...]
    extents: Mapping[str, Extent]
    values: Mapping[str, Any]
    value: Any = None

    @property
    def unsafe(self) -> tuple[str, ...]:
        """Names in the pickle that are not on the list of harmless ones."""
        return tuple(name for name in self.globals if name not in ALLOWED)


Make = Callable[[str, tuple[Any, ...]], Any]


def parse(source: Bytes, name: str, locate: bool = False, make: Make | None = None) -> TorchFile:
    """Read the structure of a checkpoint; ``name`` is the file's name for messages. Nothing is executed.

    ``make`` stands in for calls of what the pickle names, which otherwise stay names.

    Raises:
        Refused: the file is damaged, compressed, not little-endian, or its tensors lie outside it.
    """
    stream = open_stream(source)
    try:
        read = _parse_zip if stream.peek(4)[:2] == b"PK" else _parse_legacy
        return read(stream, source, locate, make)
    except BROKEN as error:
        raise damaged(source, name, f"is not a whole torch checkpoint ({str(error)[:200]})") from error


def require_safe(file: TorchFile, name: str) -> None:
    """Refuse a checkpoint whose pickle names anything but tensors and plain containers.

    Raises:
        Refused: with those names.
    """
    if file.unsafe:
        raise Refused("Unsafe pickle", f"{name} {unsafe_detail(file.unsafe)}")


def unsafe_detail(names: tuple[str, ...]) -> str:
    """Why a pickle with these names is not read, and what to do about it."""
    shown = ", ".join(name[:100] for name in names[:8])
    return (
        f"names {shown}: loading it would run code from there. Ask its authors for safetensors, or load it where you trust "
        "it and save only the tensors."
    )


def _parse_zip(stream: io.BufferedReader, source: Bytes, locate: bool, make: Make | None) -> TorchFile:
    with zipfile.ZipFile(stream) as archive:
        members = {info.filename: info for info in archive.infolist()}
        pickles = [member for member in members if member.endswith("/data.pkl")]
        if len(pickles) != 1 or len(members) != len(archive.infolist()):
            raise ValueError("no single data.pkl in it")
        prefix = pickles[0].removesuffix("data.pkl")
        if any(info.compress_type != zipfile.ZIP_STORED for info in members.values()):
            raise ValueError("its entries are compressed, which torch.save never does")
        if members[pickles[0]].file_size > MAX_PICKLE:
            raise ValueError("its pickle is too large")
        order = members.get(f"{prefix}byteorder")
        if order is not None and (order.file_size > 16 or archive.read(order) != b"little"):
            raise ValueError("it is not little-endian")
        value, names = load(io.BytesIO(archive.read(pickles[0])), make)

    def size_of(storage: Storage) -> int:
        return members[f"{prefix}data/{storage.key}"].file_size

    def start_of(storage: Storage) -> int:
        member = members[f"{prefix}data/{storage.key}"]
        local = source.read(member.header_offset, member.header_offset + 30)
        if local[:4] != b"PK\x03\x04":
            raise ValueError("an entry's local header is missing")
        names_length = int.from_bytes(local[26:28], "little") + int.from_bytes(local[28:30], "little")
        return member.header_offset + 30 + names_length

    return _describe(value, names, size_of, start_of if locate else None, source.size)


def _parse_legacy(stream: io.BufferedReader, source: Bytes, locate: bool, make: Make | None) -> TorchFile:
    """The layout before torch 1.6: five pickles (magic, protocol, system, value, storage keys), then per key a count and data."""
    if load(stream)[0] != LEGACY_MAGIC:
        raise ValueError("neither a zip nor the older layout of torch.save")
    load(stream)  # the protocol version says nothing the structure does not
    system, _ = load(stream)
    if not (isinstance(system, dict) and system.get("little_endian") is True):
        raise ValueError("it is not little-endian")
    value, names = load(stream, make)
    keys, _ = load(stream)
    used = {leaf.storage.key: leaf.storage for leaf in flatten(value).values() if isinstance(leaf, TensorRef)}
    starts: dict[str, int] = {}
    at = stream.tell()
    for key in keys:
        starts[key] = at + 8
        at = starts[key] + used[key].numel * used[key].width
    if at > source.size:
        raise ValueError("it is truncated")

    def size_of(storage: Storage) -> int:
        return storage.numel * storage.width if storage.key in starts else 0

    return _describe(value, names, size_of, (lambda storage: starts[storage.key]) if locate else None, source.size)


def flatten(value: Any) -> dict[str, Any]:
    """Leaves of nested dictionaries by dotted name; bounded, for a pickle may share or contain itself."""
    leaves: dict[str, Any] = {}
    pending: list[tuple[str, Any]] = [("", value)]
    while pending:
        name, found = pending.pop()
        if isinstance(found, dict):
            pending.extend((f"{name}.{key}" if name else str(key), child) for key, child in found.items())
        else:
            leaves[name] = found
        if len(name) > _MAX_NAME or len(pending) + len(leaves) > _MAX_LEAVES:
            raise ValueError("its dictionaries nest too deeply")
    return leaves


def _describe(
    value: Any,
    names: set[str],
    size_of: Callable[[Storage], int],
    start_of: Callable[[Storage], int] | None,
    size: int,
) -> TorchFile:
    tensors: dict[str, TensorInfo] = {}
    extents: dict[str, Extent] = {}
    others: list[str] = []
    values: dict[str, Any] = {}
    for name, leaf in flatten(value).items():
        if not isinstance(leaf, TensorRef):
            others.append(name or "the whole file")
            if leaf is None or isinstance(leaf, bool | int | float | str):
                values[name] = leaf
            continue
        width = leaf.storage.width
        tensors[name] = TensorInfo(leaf.shape, leaf.storage.dtype)
        extent = Extent(tensors[name], leaf.offset * width, leaf.strides, width)
        if math.prod(leaf.shape) * width > size:  # a view that repeats its numbers: a small file, and no end of memory
            raise ValueError(f"tensor {name[:100]!r} of shape {list(leaf.shape)} is larger than the file")
        if extent.start + extent.nbytes > min(leaf.storage.numel * width, size_of(leaf.storage)):
            raise ValueError(f"tensor {name[:100]!r} lies outside its storage")
        if start_of is not None:
            extents[name] = Extent(tensors[name], start_of(leaf.storage) + extent.start, leaf.strides, width)
            if extents[name].start + extent.nbytes > size:
                raise ValueError("it is truncated")
    return TorchFile(tensors, tuple(sorted(names)), tuple(sorted(others)), extents, values, value)

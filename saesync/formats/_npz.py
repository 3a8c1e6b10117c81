"""Headers of .npz files: a zip of .npy files, each of which begins with a Python literal. Nothing is unpickled."""

from __future__ import annotations

import ast
import math
import struct
import zipfile
import zlib

from saesync.errors import Refused
from saesync.formats._bytes import Bytes, damaged, open_stream
from saesync.formats._lazy import Extent
from saesync.formats.base import TensorInfo

_MAGIC = b"\x93NUMPY"
_MAX_HEADER = 1 << 16
_MAX_ENTRIES = 10_000
_DTYPES = {
    "<f8": "float64", "<f4": "float32", "<f2": "float16", "<i8": "int64", "<i4": "int32", "<i2": "int16", "|i1": "int8",
    "|u1": "uint8", "|b1": "bool",
}  # fmt: skip
_BROKEN = (
    ValueError, TypeError, KeyError, IndexError, EOFError, OverflowError, SyntaxError, RecursionError, MemoryError, struct.error,
    zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError,
)  # fmt: skip


def parse(source: Bytes, name: str) -> dict[str, TensorInfo]:
    """Array name -> shape and dtype. ``name`` is the file's name for messages.

    Raises:
        Refused: the file is damaged, or holds pickled objects.
    """
    return {array: extent.info for array, extent in _read(source, name, locate=False).items()}


def locate(source: Bytes, name: str) -> dict[str, Extent]:
    """Array name -> where it lies in the file, so that it can be mapped.

    Raises:
        Refused: the file is damaged, compressed, or holds pickled objects.
    """
    return _read(source, name, locate=True)


def _read(source: Bytes, name: str, locate: bool) -> dict[str, Extent]:
    try:
        with zipfile.ZipFile(open_stream(source)) as archive:
            members = archive.infolist()
            if len(members) > _MAX_ENTRIES or len({info.filename for info in members}) != len(members):
                raise ValueError("too many entries, or two of one name")
            if locate and any(info.compress_type != zipfile.ZIP_STORED for info in members):
                raise Refused(
                    "File is compressed",
                    f"{name} is compressed, so it cannot be read in parts. Save it again with numpy.savez instead of "
                    "numpy.savez_compressed.",
                )
            found = {}
            for info in members:
                start = _start(source, info) if locate else 0
                found[info.filename.removesuffix(".npy")] = _extent(archive, info, start, source.size if locate else None)
            return found
    except _BROKEN as error:
        raise damaged(source, name, f"is not a readable .npz file ({str(error)[:200]})") from error


def _start(source: Bytes, info: zipfile.ZipInfo) -> int:
    """Where an entry's data begins: behind its local header, whose extra field is not the directory's."""
    local = source.read(info.header_offset, info.header_offset + 30)
    if local[:4] != b"PK\x03\x04":
        raise ValueError("an entry's local header is missing")
    return info.header_offset + 30 + int.from_bytes(local[26:28], "little") + int.from_bytes(local[28:30], "little")


def _extent(archive: zipfile.ZipFile, info: zipfile.ZipInfo, start: int, size: int | None) -> Extent:
    """The array of one entry that begins at byte ``start`` of a file of ``size`` bytes (None: only the header is asked for)."""
    with archive.open(info) as stream:
        begin = stream.read(8)
        if begin[:6] != _MAGIC:
            raise ValueError(f"{info.filename[:100]!r} is no .npy file")
        width = 2 if begin[6] == 1 else 4
        length = int.from_bytes(stream.read(width), "little")
        if length > _MAX_HEADER:
            raise ValueError("a header is too large")
        header = ast.literal_eval(stream.read(length).decode("latin-1").strip())
    dtype, shape = _DTYPES.get(str(header["descr"])), header["shape"]
    if dtype is None or not isinstance(shape, tuple) or not all(type(n) is int and 0 <= n < 1 << 48 for n in shape):
        raise ValueError(f"{info.filename[:100]!r} holds no plain numbers")
    item = int(str(header["descr"])[2:])
    at = start + 8 + width + length
    extent = Extent.contiguous(TensorInfo(shape, dtype), at, item)
    if 8 + width + length + math.prod(shape) * item != info.file_size:
        raise ValueError(f"{info.filename[:100]!r} is not as long as its header says")
    if size is not None and at + extent.nbytes > size:
        raise ValueError("it is truncated")
    if header["fortran_order"] is True:
        turned = Extent.contiguous(TensorInfo(shape[::-1], dtype), at, item)
        return Extent(extent.info, at, turned.strides[::-1], item)
    return extent

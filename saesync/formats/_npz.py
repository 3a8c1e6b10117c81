"""Headers of .npz files: a zip of .npy files, each of which begins with a Python literal. Nothing is unpickled."""

from __future__ import annotations

import ast
import struct
import zipfile
import zlib

from saesync.errors import Refused
from saesync.formats._bytes import Bytes, open_stream
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
    try:
        with zipfile.ZipFile(open_stream(source)) as archive:
            members = archive.infolist()
            if len(members) > _MAX_ENTRIES:
                raise ValueError("too many entries")
            return {info.filename.removesuffix(".npy"): _header(archive, info) for info in members}
    except _BROKEN as error:
        raise Refused(
            "Damaged file", f"{name} is not a readable .npz file ({str(error)[:200]}). Fetch or export it again."
        ) from error


def _header(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> TensorInfo:
    with archive.open(info) as stream:
        start = stream.read(8)
        if start[:6] != _MAGIC:
            raise ValueError(f"{info.filename[:100]!r} is no .npy file")
        width = 2 if start[6] == 1 else 4
        length = int.from_bytes(stream.read(width), "little")
        if length > _MAX_HEADER:
            raise ValueError("a header is too large")
        header = ast.literal_eval(stream.read(length).decode("latin-1").strip())
    dtype, shape = _DTYPES.get(str(header["descr"])), header["shape"]
    if dtype is None or not isinstance(shape, tuple) or not all(type(n) is int and 0 <= n < 1 << 48 for n in shape):
        raise ValueError(f"{info.filename[:100]!r} holds no plain numbers")
    return TensorInfo(shape, dtype)

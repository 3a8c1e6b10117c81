"""The safetensors header, read by hand so that it needs neither torch nor the whole file.

Layout: 8 bytes little-endian header length, a JSON object name -> {dtype, shape, data_offsets}, then the data. The rules
checked are the library's own: no holes, no overlaps, sizes that agree.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from saesync.errors import Refused
from saesync.formats._bytes import Bytes, damaged
from saesync.formats._lazy import Extent
from saesync.formats.base import TensorInfo

# The library accepts 100 MB; a header of an SAE has a handful of entries.
MAX_HEADER = 8 << 20
DTYPES: Mapping[str, tuple[str, int]] = {
    "F64": ("float64", 8),
    "F32": ("float32", 4),
    "F16": ("float16", 2),
    "BF16": ("bfloat16", 2),
    "I64": ("int64", 8),
    "I32": ("int32", 4),
    "I16": ("int16", 2),
    "I8": ("int8", 1),
    "U8": ("uint8", 1),
    "BOOL": ("bool", 1),
}
_NOTES = "__metadata__"
_NOT_WHOLE = "is not a whole safetensors file"
CODES = {name: code for code, (name, _) in DTYPES.items()}


def parse(source: Bytes, name: str) -> dict[str, Extent]:
    """Tensor name -> where it is in the file. ``name`` is the file's name for messages.

    Raises:
        Refused: the file is truncated or its header is not one the safetensors library would accept.
    """
    header, start = _header(source, name)
    header.pop(_NOTES, None)
    extents = {tensor: _extent(name, tensor, entry, start) for tensor, entry in header.items()}
    _check_cover(name, extents, start, source.size)
    return extents


def notes(source: Bytes, name: str) -> dict[str, str]:
    """What the header says beside tensors (``__metadata__``): short texts that whoever wrote the file chose.

    Raises:
        Refused: the file is truncated or its header is not one the safetensors library would accept.
    """
    found = _header(source, name)[0].get(_NOTES, {})
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise _damaged(name, f"{_NOTES} in its header does not map names to texts")
    return found


def _header(source: Bytes, name: str) -> tuple[dict[str, Any], int]:
    """The header, and where the data begins."""
    size = source.size
    length = int.from_bytes(source.read(0, 8), "little") if size >= 8 else -1
    if not 2 <= length <= min(MAX_HEADER, size - 8):
        claims = f"its header claims {length} bytes, the file has {size}" if size >= 8 else "it has no header"
        raise damaged(source, name, f"{_NOT_WHOLE}: {claims}")
    try:
        header = json.loads(source.read(8, 8 + length), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise _damaged(name, f"its header is not JSON: {str(error)[:200]}") from error
    if not isinstance(header, dict):
        raise _damaged(name, "its header is not a JSON object")
    return header, 8 + length


def _extent(name: str, tensor: str, entry: Any, base: int) -> Extent:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise _damaged(name, f"the entry of tensor {tensor[:100]!r} is malformed")
    shape, offsets = entry["shape"], entry["data_offsets"]
    if not (_counts(shape) and _counts(offsets) and len(offsets) == 2 and len(shape) <= 8):
        raise _damaged(name, f"shape or offsets of tensor {tensor[:100]!r} are malformed")
    known = DTYPES.get(entry["dtype"]) if isinstance(entry["dtype"], str) else None
    if known is None:
        raise Refused("Unknown dtype", f"{name}: tensor {tensor[:100]!r} has dtype {str(entry['dtype'])[:50]!r}.")
    dtype, width = known
    if math.prod(shape) * width != offsets[1] - offsets[0]:
        raise _damaged(name, f"tensor {tensor[:100]!r} of shape {shape} does not fit its offsets {offsets}")
    return Extent.contiguous(TensorInfo(tuple(shape), dtype), base + offsets[0], width)


def _check_cover(name: str, extents: Mapping[str, Extent], base: int, size: int) -> None:
    at = base
    for extent in sorted(extents.values(), key=lambda one: (one.start, one.nbytes)):
        if extent.start != at:
            raise _damaged(name, "its tensors overlap or leave holes")
        at += extent.nbytes
    if at != size:
        raise _damaged(name, f"its tensors end at byte {at}, the file at {size}")


def _counts(value: Any) -> bool:
    return isinstance(value, list) and all(type(number) is int and 0 <= number < 1 << 48 for number in value)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("duplicate keys")
    return found


def _damaged(name: str, what: str) -> Refused:
    return Refused("Damaged file", f"{name} {_NOT_WHOLE}: {what}. Fetch or export it again.")

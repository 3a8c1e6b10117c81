"""The child of ``_quarantine``: one pickle in, tensors and facts out. Standard library and numpy only; see there."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import math
import resource
import sys
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saesync.errors import Diagnostic, SaesyncError
from saesync.formats import _torchzip
from saesync.formats._bytes import LocalBytes
from saesync.formats._lazy import Extent, map_file
from saesync.formats._pickle import Inert, Named, Storage, TensorRef, load
from saesync.formats._quarantine import ANSWER, FACTS, REFUSED_EXIT, TENSORS
from saesync.formats._safetensors import CODES
from saesync.formats.base import TensorInfo

MEMORY = 4 << 30
SECONDS = 600
# Only pickles with tensors inside them (and compressed files) are held in memory; those of torch.save are mapped.
MAX_PLAIN = 1 << 30
_BLOCK = 32 << 20
# What damaged files make the standard library raise.
DAMAGE = (*_torchzip.BROKEN, OSError, zlib.error)
_DEPTH, _ENTRIES = 6, 2000
_MAX_TEXT = 2000


@dataclass(frozen=True, slots=True)
class Embedded(Storage):
    """A storage whose bytes stand in the pickle itself."""

    data: memoryview


def main() -> int:
    """Arguments: the parent's process, the pickle, its name for messages, the folder to write to."""
    parent, path, name, out = int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], Path(sys.argv[4])
    _limit(path.stat().st_size)
    from saesync.isolation import isolate

    isolate(parent)
    try:
        answer: dict[str, Any] = {"tensors": _rewrite(path, name, out)}
    except SaesyncError as error:
        answer = error.diagnostics[0].to_json()
    except DAMAGE as error:
        detail = f"{name} is no pickle that saesync reads ({str(error)[:200]}). Ask its authors for safetensors."
        answer = Diagnostic("Damaged file", detail).to_json()
    (out / ANSWER).write_text(json.dumps(answer), encoding="utf-8")
    return 0 if "tensors" in answer else REFUSED_EXIT


def _limit(size: int) -> None:
    """Limits, where somebody else set none that is tighter."""
    if sys.platform != "darwin":  # macOS refuses this one: a process is larger than that when it starts
        _lower(resource.RLIMIT_AS, MEMORY + size)  # the file itself is mapped
    _lower(resource.RLIMIT_CPU, SECONDS)
    _lower(resource.RLIMIT_FSIZE, size + MAX_PLAIN + (64 << 20))
    _lower(resource.RLIMIT_CORE, 0)


def _lower(kind: int, most: int) -> None:
    _, hard = resource.getrlimit(kind)
    most = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(kind, (most, most))


def _rewrite(path: Path, name: str, out: Path) -> str:
    with path.open("rb") as stream:
        begin = stream.read(16)
    if begin[:2] == b"\x1f\x8b":
        path = _expanded(path, out / "expanded")
        with path.open("rb") as stream:
            begin = stream.read(16)
    if begin[:2] == b"PK" or _is_legacy(path):
        file = _torchzip.parse(LocalBytes(path), name, locate=True, make=_make)
        value, arrays = file.value, _mapped(path, file.extents)
    else:
        if path.stat().st_size > MAX_PLAIN:
            raise ValueError(f"it is larger than {MAX_PLAIN >> 30} GiB, and holds its tensors in the pickle")
        value, _ = load(io.BytesIO(path.read_bytes()), _make, MAX_PLAIN)
        arrays = {key: _embedded(leaf) for key, leaf in _torchzip.flatten(value).items() if isinstance(leaf, TensorRef)}
    if not arrays:
        raise ValueError("there are no tensors in it")
    facts = _plain(value, _DEPTH, [_ENTRIES])
    (out / FACTS).write_text(json.dumps(facts if isinstance(facts, dict) else {}, allow_nan=False), encoding="utf-8")
    return _write(arrays, out / TENSORS)


def _expanded(path: Path, out: Path) -> Path:
    """A compressed file, expanded as far as the limit."""
    written = 0
    with gzip.open(path) as source, out.open("wb") as target:
        while block := source.read(1 << 20):
            written += len(block)
            if written > MAX_PLAIN:
                raise ValueError(f"it expands to more than {MAX_PLAIN >> 30} GiB")
            target.write(block)
    return out


def _is_legacy(path: Path) -> bool:
    with path.open("rb") as stream:
        try:
            return bool(load(stream, _make)[0] == _torchzip.LEGACY_MAGIC)
        except _torchzip.BROKEN:
            return False


def _make(name: str, arguments: tuple[Any, ...]) -> Any:
    """Instead of calling what a pickle names."""
    return _storage(arguments) if name == "torch.storage._load_from_bytes" else Inert(name, arguments)


def _storage(arguments: tuple[Any, ...]) -> Embedded:
    """What plain pickling makes of a storage: torch.save's older layout, as bytes inside the pickle."""
    (data,) = arguments
    stream = io.BytesIO(data)
    if load(stream)[0] != _torchzip.LEGACY_MAGIC:
        raise ValueError("malformed storage")
    load(stream)
    system, _ = load(stream)
    storage, _ = load(stream)
    keys, _ = load(stream)
    if not isinstance(system, dict) or system.get("little_endian") is not True or not isinstance(storage, Storage):
        raise ValueError("malformed storage")
    start, length = stream.tell() + 8, storage.numel * storage.width
    if keys != [storage.key] or start + length != len(data):
        raise ValueError("malformed storage")
    return Embedded(storage.dtype, storage.width, storage.key, storage.numel, memoryview(data)[start:])


@dataclass(frozen=True, slots=True)
class _Array:
    info: TensorInfo
    buffer: Any
    extent: Extent

    def blocks(self) -> Iterator[bytes]:
        """Row-major bytes, some rows at a time; a scalar is one row."""
        import numpy as np

        width, shape = self.extent.width, self.info.shape or (1,)
        strides = tuple(step * width for step in self.extent.strides) or (width,)
        array = np.ndarray(shape, f"u{width}", self.buffer, self.extent.start, strides)
        step = max(1, _BLOCK // max(1, math.prod(shape[1:]) * width))
        for start in range(0, shape[0], step):
            yield np.ascontiguousarray(array[start : start + step]).tobytes()


def _mapped(path: Path, extents: Mapping[str, Extent]) -> dict[str, _Array]:
    buffer = map_file(path)
    return {name: _Array(extent.info, buffer, extent) for name, extent in extents.items()}


def _embedded(ref: TensorRef) -> _Array:
    storage, info = ref.storage, TensorInfo(ref.shape, ref.storage.dtype)
    extent = Extent(info, ref.offset * storage.width, ref.strides, storage.width)
    if not isinstance(storage, Embedded) or extent.start + extent.nbytes > len(storage.data):
        raise ValueError("a tensor lies outside its storage")
    if math.prod(ref.shape) > storage.numel:
        raise ValueError("a tensor repeats its numbers")
    return _Array(info, storage.data, extent)


def _write(arrays: Mapping[str, _Array], path: Path) -> str:
    """The safetensors file; its sha256."""
    entries, at = {}, 0
    order = sorted(arrays, key=lambda name: (-arrays[name].extent.width, name))
    for name in order:
        info = arrays[name].info
        end = at + math.prod(info.shape) * arrays[name].extent.width
        entries[name] = {"dtype": CODES[info.dtype], "shape": list(info.shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    digest = hashlib.sha256()
    with path.open("wb") as stream:
        for part in _parts(text, [arrays[name] for name in order]):
            digest.update(part)
            stream.write(part)
    return digest.hexdigest()


def _parts(header: bytes, arrays: list[_Array]) -> Iterator[bytes]:
    yield len(header).to_bytes(8, "little") + header
    for array in arrays:
        if 0 not in array.info.shape:
            yield from array.blocks()


def _plain(value: Any, depth: int, left: list[int]) -> Any:
    """Plain data as JSON; objects by their state, or their name. Too deep or too much of it is left out."""
    left[0] -= 1
    if depth == 0 or left[0] < 0:
        return None
    if isinstance(value, Inert):
        state = value.state if isinstance(value.state, dict) else value.arguments
        return _plain(state, depth - 1, left)
    if isinstance(value, Named):
        return value.name[:_MAX_TEXT]
    if isinstance(value, dict):
        return {str(key)[:_MAX_TEXT]: _plain(each, depth - 1, left) for key, each in list(value.items())[:_ENTRIES]}
    if isinstance(value, list | tuple):
        return [_plain(each, depth - 1, left) for each in value[:_ENTRIES]]
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()[:_MAX_TEXT]
    if isinstance(value, bool | None) or (isinstance(value, int) and abs(value) < 1 << 63):
        return value
    return value if isinstance(value, float) and math.isfinite(value) else None


if __name__ == "__main__":
    sys.exit(main())

"""Tensors that are read block by block from a memory-mapped file. torch and numpy are imported when rows are read.

Mapped pages belong to the file, so they can be dropped by the kernel and never count as anonymous memory.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from saesync.formats.base import LazyTensor, TensorInfo

if TYPE_CHECKING:
    import torch

FLOATS = ("float64", "float32", "float16", "bfloat16")
WIDTHS: Mapping[str, int] = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}
# One working block. Several are alive at a time (one being made, one being written), all far under 1 GiB.
BLOCK_BYTES = 96 << 20
# Small enough for the second-level cache and for torch to copy it in one thread (its parallel grain is 32,768 elements):
# handing every tile to two threads costs more than copying it.
_TILE = 128


@dataclass(frozen=True, slots=True)
class Extent:
    """Where a tensor lies in a file: first byte, strides in elements and their width in bytes."""

    info: TensorInfo
    start: int
    strides: tuple[int, ...]
    width: int

    @classmethod
    def contiguous(cls, info: TensorInfo, start: int, width: int) -> Extent:
        """A row-major tensor without gaps."""
        strides, step = [], 1
        for length in reversed(info.shape):
            strides.append(step)
            step *= length
        return cls(info, start, tuple(reversed(strides)), width)

    @property
    def nbytes(self) -> int:
        """Bytes from the first to the last element, both included."""
        if 0 in self.info.shape:
            return 0
        last = sum((length - 1) * step for length, step in zip(self.info.shape, self.strides, strict=True))
        return (last + 1) * self.width


def map_file(path: Path) -> mmap.mmap:
    """A private mapping of a whole file: never written back, and writable only so that numpy and torch take it.

    Raises:
        OSError: the file cannot be opened.
        ValueError: the file is empty.
    """
    with path.open("rb") as stream:
        return mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY)


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor as it lies in a mapped file. A scalar reads as shape ``(1,)``."""

    buffer: mmap.mmap
    extent: Extent

    @property
    def shape(self) -> tuple[int, ...]:
        """Stored shape."""
        return self.extent.info.shape or (1,)

    @property
    def dtype(self) -> str:
        """Stored dtype."""
        return self.extent.info.dtype

    def rows(self, start: int, stop: int) -> torch.Tensor:
        """A view of rows ``start:stop`` (a copy where the file does not align them)."""
        import numpy as np
        import torch

        brain = self.dtype == "bfloat16"  # numpy has no bfloat16; its bits travel as int16
        strides = tuple(step * self.extent.width for step in self.extent.strides) or (self.extent.width,)
        kind = np.dtype(np.int16 if brain else self.dtype)
        array: np.ndarray[tuple[int, ...], np.dtype[np.generic]]
        array = np.ndarray(self.shape, kind, self.buffer, self.extent.start, strides)[start:stop]
        found = torch.from_numpy(array if array.flags.aligned else array.copy())
        return found.view(torch.bfloat16) if brain else found


@dataclass(frozen=True, slots=True)
class Transposed:
    """A 2-D tensor with its axes swapped."""

    source: LazyTensor

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape after the swap."""
        rows, columns = self.source.shape
        return (columns, rows)

    @property
    def dtype(self) -> str:
        """Stored dtype."""
        return self.source.dtype

    def rows(self, start: int, stop: int) -> torch.Tensor:
        """Columns ``start:stop`` of the source, copied tile by tile: a strided copy of long columns misses every cache."""
        import torch

        length = self.source.shape[0]
        first = self.source.rows(0, length)[:, start:stop]
        out = torch.empty((stop - start, length), dtype=first.dtype)
        for top in range(0, length, _TILE):
            for left in range(0, stop - start, _TILE):
                tile = first[top : top + _TILE, left : left + _TILE]
                out[left : left + _TILE, top : top + _TILE].copy_(tile.t())
        return out


@dataclass(frozen=True, slots=True)
class Mapped:
    """A tensor computed from another row by row. ``function`` gets the block in float64 and its row range."""

    source: LazyTensor
    function: Callable[[torch.Tensor, int, int], torch.Tensor]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape, unchanged by ``function``."""
        return self.source.shape

    @property
    def dtype(self) -> str:
        """Results are float64; the writer rounds once."""
        return "float64"

    def rows(self, start: int, stop: int) -> torch.Tensor:
        """``function`` of rows ``start:stop``."""
        return self.function(self.source.rows(start, stop).double(), start, stop)


@dataclass(frozen=True, slots=True)
class Filled:
    """A vector of one value; ``dtype`` is what it is said to be stored in."""

    value: float
    shape: tuple[int, ...]
    dtype: str = "float64"

    def rows(self, start: int, stop: int) -> torch.Tensor:
        """The value, repeated."""
        import torch

        return torch.full((stop - start, *self.shape[1:]), self.value, dtype=torch.float64)


def spans(length: int, row_bytes: int) -> Iterator[tuple[int, int]]:
    """Row ranges that cover ``length`` rows, each about BLOCK_BYTES."""
    step = max(1, BLOCK_BYTES // max(1, row_bytes))
    for start in range(0, length, step):
        yield start, min(length, start + step)


def holds(wide: str, narrow: str) -> bool:
    """Whether every number of type ``narrow`` is one of type ``wide``."""
    wider = {"float64": tuple(WIDTHS), "float32": ("float32", "float16", "bfloat16")}
    return narrow in wider.get(wide, (wide,))


def whole(tensor: LazyTensor) -> torch.Tensor:
    """All rows at once: for vectors and for tests."""
    return tensor.rows(0, tensor.shape[0])

"""Weights that are no numbers are refused wherever they come from: converted, taken over, or published as they are."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from saesync.errors import Refused
from saesync.formats import _npz
from saesync.formats._bytes import LocalBytes
from saesync.formats._lazy import BLOCK_BYTES, FLOATS, WIDTHS, spans
from saesync.formats._open import open_tensors
from saesync.formats.base import LazyTensor

if TYPE_CHECKING:
    import torch


def finite(block: torch.Tensor) -> bool:
    """Whether a block that is not empty holds numbers only. One pass without a temporary: NaN propagates through both ends of
    the range, an infinity is one of them."""
    low, high = block.aminmax()
    return math.isfinite(low.item()) and math.isfinite(high.item())


def not_finite(name: str, block: torch.Tensor, start: int) -> Refused:
    """The refusal for the first value of ``block``, whose first row is row ``start`` of tensor ``name``, that is no number."""
    first = (~block.isfinite()).nonzero()[0].tolist()
    value = block[tuple(first)].item()
    first[0] += start
    return Refused("Not finite", f"{name}{first} is {value}: the source is damaged, or its training diverged.")


def require_finite(tensors: Mapping[str, LazyTensor]) -> None:
    """Every floating-point tensor holds numbers only. Read in blocks.

    Raises:
        Refused: with the first that does not, by name and place.
    """
    for name, tensor in tensors.items():
        if tensor.dtype not in FLOATS or 0 in tensor.shape:
            continue
        for start, stop in spans(tensor.shape[0], math.prod(tensor.shape[1:]) * WIDTHS[tensor.dtype]):
            block = tensor.rows(start, stop)
            if not finite(block):
                raise not_finite(name, block, start)


def require_finite_file(path: Path, name: str) -> None:
    """The same of a file of a tensor format, which ``require_publishable`` has found to be one.

    Raises:
        Refused: as ``require_finite``, with the file's ``name``.
    """
    if not name.endswith(".npz"):
        require_finite({f"{name}: {tensor}": stored for tensor, stored in open_tensors(path, name).tensors.items()})
        return
    kinds = _npz.parse(LocalBytes(path), name)
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            array = member.filename.removesuffix(".npy")
            if kinds[array].dtype in FLOATS:
                _require_finite_array(
                    f"{name}: {array}", _pieces(archive, member, math.prod(kinds[array].shape), kinds[array].dtype)
                )


def _pieces(archive: zipfile.ZipFile, member: zipfile.ZipInfo, count: int, dtype: str) -> Iterator[torch.Tensor]:
    """The numbers of an array, as they follow each other: it may be compressed, so it cannot be mapped."""
    import numpy as np
    import torch

    width = WIDTHS[dtype]
    with archive.open(member) as stream:
        stream.read(member.file_size - count * width)  # the header
        while data := stream.read(BLOCK_BYTES):
            yield torch.from_numpy(np.frombuffer(bytearray(data), dtype))


def _require_finite_array(name: str, pieces: Iterator[torch.Tensor]) -> None:
    start = 0
    for piece in pieces:
        if not finite(piece):
            raise not_finite(name, piece, start)
        start += len(piece)

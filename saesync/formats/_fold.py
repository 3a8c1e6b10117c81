"""Scales that are folded into weights: decoder norms, input and output scales. Results are float64; the writer rounds once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from saesync.errors import Refused
from saesync.formats._lazy import Mapped, spans
from saesync.formats.base import LazyTensor

if TYPE_CHECKING:
    import torch


def row_norms(W_dec: LazyTensor) -> torch.Tensor:
    """L2 norm of each feature's decoder row, in blocks. Shape ``[d_sae]``, float64."""
    import torch

    rows, columns = W_dec.shape
    return torch.cat([W_dec.rows(start, stop).double().norm(dim=1) for start, stop in spans(rows, columns * 8)])


def positive_row_norms(file: str, W_dec: LazyTensor) -> torch.Tensor:
    """``row_norms`` where features are divided by them.

    Raises:
        Refused: a row is zero, with its number: the authors' own code divides by zero there.
    """
    norms = row_norms(W_dec)
    if not bool((norms > 0).all()):
        number = (~(norms > 0)).nonzero()[0].item()
        raise Refused(
            "Decoder row is zero",
            f"{file}: the decoder of feature {number} has norm {norms[int(number)].item():g}, and features are scaled by these "
            "norms: the authors' own code divides by it. The source is damaged, or its training diverged.",
        )
    return norms


def scaled(tensor: LazyTensor, factor: float) -> LazyTensor:
    """``tensor`` times one number; itself, unrounded, where that is 1."""
    return tensor if factor == 1.0 else Mapped(tensor, lambda block, *_: block * factor)


def scaled_features(tensor: LazyTensor, factors: torch.Tensor) -> Mapped:
    """An encoder matrix ``[d_in, d_sae]``, or a vector ``[d_sae]``, with each feature times its factor."""
    if len(tensor.shape) == 1:
        return Mapped(tensor, lambda block, start, stop: block * factors[start:stop])
    return Mapped(tensor, lambda block, *_: block * factors)


def scaled_rows(W_dec: LazyTensor, factors: torch.Tensor) -> Mapped:
    """A decoder ``[d_sae, d_out]`` with each row times its factor."""
    return Mapped(W_dec, lambda block, start, stop: block * factors[start:stop, None])


def divided_rows(W_dec: LazyTensor, norms: torch.Tensor) -> Mapped:
    """A decoder ``[d_sae, d_out]`` with each row divided by its norm."""
    return Mapped(W_dec, lambda block, start, stop: block / norms[start:stop, None])

"""The same function with other conventions: what one tool does at run time, folded into the numbers of another.

All of these are exact in real numbers; each rounds once where the writer stores the result.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from saesync.formats._lazy import Mapped, spans, whole
from saesync.formats.base import LazyTensor, Weights

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Held:
    """A small tensor in memory, as a lazy one."""

    value: torch.Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        return tuple(self.value.shape)

    @property
    def dtype(self) -> str:
        """Its type, without the prefix."""
        return str(self.value.dtype).removeprefix("torch.")

    def rows(self, start: int, stop: int) -> torch.Tensor:
        """Rows ``start:stop``."""
        return self.value[start:stop]


@dataclass(frozen=True, slots=True)
class Halved:
    """Half of a tensor, in its own type: dividing by two changes the exponent alone, so nothing is rounded."""

    source: LazyTensor

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape, unchanged."""
        return self.source.shape

    @property
    def dtype(self) -> str:
        """Stored dtype, unchanged."""
        return self.source.dtype

    def rows(self, start: int, stop: int) -> torch.Tensor:
        """Half of rows ``start:stop``."""
        return self.source.rows(start, stop) / 2


def with_input_bias(weights: Weights, subtracts: bool) -> Weights:
    """The same SAE for a tool that always (``subtracts``) or never subtracts b_dec from what the encoder reads.

    ``(x - b_dec) W_enc + b_enc = x W_enc + (b_enc - b_dec W_enc)``; a per-token norm comes before the subtraction and stays.
    """
    if weights.cfg["apply_b_dec_to_input"] is subtracts:
        return weights
    shift = _through_encoder(weights) * (1.0 if subtracts else -1.0)
    tensors = dict(weights.tensors)
    if weights.cfg["architecture"] == "gated":
        gain = whole(tensors["r_mag"]).double().exp()
        tensors["b_gate"] = Mapped(tensors["b_gate"], lambda block, start, stop: block + shift[start:stop])
        tensors["b_mag"] = Mapped(tensors["b_mag"], lambda block, start, stop: block + (gain * shift)[start:stop])
    else:
        tensors["b_enc"] = Mapped(tensors["b_enc"], lambda block, start, stop: block + shift[start:stop])
    return replace(weights, cfg={**weights.cfg, "apply_b_dec_to_input": subtracts}, tensors=tensors)


def with_plain_choice(weights: Weights) -> Weights:
    """The same TopK SAE for a tool that chooses by plain pre-activations.

    With ``rescale_acts_by_decoder_norm`` SAELens multiplies them by the decoder's row norms n, chooses, and divides by n before
    decoding: ``W_enc n``, ``b_enc n``, ``W_dec / n``.
    """
    if not weights.cfg.get("rescale_acts_by_decoder_norm"):
        return weights
    norms = _row_norms(weights.tensors["W_dec"])
    safe = norms.clamp(min=1e-8)  # as SAELens divides
    tensors = {
        **weights.tensors,
        "W_enc": Mapped(weights.tensors["W_enc"], lambda block, *_: block * norms),
        "b_enc": Mapped(weights.tensors["b_enc"], lambda block, start, stop: block * norms[start:stop]),
        "W_dec": Mapped(weights.tensors["W_dec"], lambda block, start, stop: block / safe[start:stop, None]),
    }
    return replace(weights, cfg={**weights.cfg, "rescale_acts_by_decoder_norm": False}, tensors=tensors)


def _through_encoder(weights: Weights) -> torch.Tensor:
    """``b_dec W_enc``, float64 ``[d_sae]``, in blocks."""
    import torch

    encoder, bias = weights.tensors["W_enc"], whole(weights.tensors["b_dec"]).double()
    found = torch.zeros(encoder.shape[1], dtype=torch.float64)
    for start, stop in spans(encoder.shape[0], encoder.shape[1] * 8):
        found += bias[start:stop] @ encoder.rows(start, stop).double()
    return found


def _row_norms(decoder: LazyTensor) -> torch.Tensor:
    import torch

    rows, columns = decoder.shape
    return torch.cat([decoder.rows(start, stop).double().norm(dim=1) for start, stop in spans(rows, columns * 8)])

"""Comparing two forward passes: how large differences may be, and which changes of support rounding explains.

Bounds follow the error of a dot product of length d_in computed with unit roundoff eps: a feature that fires on both sides may
differ by ``4 eps sqrt(d_in)`` of itself, or by ``8 eps |z||w|`` where terms cancel; a feature may switch only when its
pre-activation lies within ``8 eps (|z||w| + |b| + |threshold|)`` of the threshold (of the k-th largest for TopK). Where features
depend on the rows before, what rounding does to the encoder's input there is added to ``eps |z|``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from saesync.convert.sequences import reach
from saesync.convert.stock import Stock

if TYPE_CHECKING:
    import torch

EXACT = 1e-10  # two float64 computations of one function; what is measured is about 1e-15
EPSILON = {"float64": 2.0**-52, "float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}
# Fraction of variance of the reconstruction that storing and computing in a dtype may cost.
FVU_LIMIT = {"float64": 1e-9, "float32": 1e-9, "float16": 1e-2, "bfloat16": 5e-2}
# The same of rows in which rounding switches a feature: there the output jumps by the whole feature, in any dtype.
_JUMPS = 1e-2


@dataclass(slots=True)
class Tally:
    """Worst differences so far. ``feature`` and ``reconstruction`` are relative to their row's scale; ``excess`` is the worst
    feature difference over its bound; ``switched`` counts support changes, ``unexplained`` those rounding does not explain;
    ``jumped`` is the squared difference of reconstructions in rows with support changes, ``residual`` that in all others."""

    feature: float = 0.0
    reconstruction: float = 0.0
    excess: float = 0.0
    switched: int = 0
    unexplained: int = 0
    rows: int = 0
    residual: float = 0.0
    jumped: float = 0.0
    variance: float = 0.0

    @property
    def fvu(self) -> float:
        """Fraction of the reference's variance that the other side does not explain."""
        return (self.residual + self.jumped) / max(self.variance, 1e-300)

    @property
    def untied_fvu(self) -> float:
        """The part of ``fvu`` in rows where all features that fire are the same."""
        return self.residual / max(self.variance, 1e-300)


def affordable(fvu: float, untied_fvu: float, dtype: str) -> bool:
    """Whether that is no more than storing and computing in ``dtype`` may cost. NaN is not."""
    limit = FVU_LIMIT[dtype]
    return untied_fvu <= limit and fvu <= max(limit, _JUMPS)


class Gate:
    """Differences between a reference and another forward pass, judged at one precision.

    ``stock`` is the float64 SAE whose weights give the scale of rounding errors.
    """

    def __init__(self, stock: Stock, epsilon: float) -> None:
        self._stock = stock
        self._epsilon = epsilon
        self._widths = stock.column_norms()
        self._median = self._widths.median().item()
        self._levels = stock.offsets().abs() + stock.thresholds().abs()
        self._bias = stock.input_bias().norm().item()
        self._base = stock.b_dec.abs().max().item()
        self.tally = Tally()

    def compare(
        self,
        x: torch.Tensor,
        reference: tuple[torch.Tensor, torch.Tensor],
        other: tuple[torch.Tensor, torch.Tensor],
        counted: torch.Tensor | None = None,
    ) -> None:
        """Take in some rows: (features, reconstruction) of both sides for the float64 inputs ``x``.

        ``counted`` marks the rows that are judged (None: all). The others are context, where features depend on it.
        """
        tally, chosen = self.tally, slice(None) if counted is None else counted
        (f, r), (g, s) = ((found[0][chosen], found[1][chosen]) for found in (reference, other))
        g, s = g.double(), s.double()
        size = x.norm(dim=1) if not self._stock.per_token_norm else x.new_full((len(x),), self._stock.d_in**0.5)
        size = size[chosen]
        switched = (f != 0) != (g != 0)
        both = (f - g).abs().masked_fill(switched & g.isfinite(), 0.0)
        slack, bound = self._bounds(x, f, size, chosen, switched, both)
        tally.excess = _worst(tally.excess, both / bound.clamp(min=1e-300))
        scale = (f.abs().amax(dim=1) + size * self._median).clamp(min=1e-300)
        tally.feature = _worst(tally.feature, both / scale[:, None])
        height = r.abs().amax(dim=1).clamp(min=max(self._base, 1e-300))
        tally.reconstruction = _worst(tally.reconstruction, (r - s).abs() / height[:, None])
        missed, jumps = (r - s).square().sum(dim=1), switched.any(dim=1)
        tally.residual += missed[~jumps].sum().item()
        tally.jumped += missed[jumps].sum().item()
        tally.variance += (r - r.mean(dim=0)).square().sum().item()
        tally.rows += len(f)
        count = int(switched.sum())
        if count:
            tally.switched += count
            tally.unexplained += int((switched & (self._distance(x)[chosen] > slack)).sum())

    def _bounds(
        self, x: torch.Tensor, f: torch.Tensor, size: torch.Tensor, chosen: Any, switched: torch.Tensor, both: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """How far a pre-activation, and a feature that fires on both sides, may be off. ``[n, d_sae]`` each"""
        slack = 8 * self._epsilon * ((size + self._bias)[:, None] * self._widths + self._levels)
        if self._stock.rescales:
            slack = slack * self._stock.decoder_norms()
        own = 4 * self._epsilon * math.sqrt(self._stock.d_in) * f.abs()
        if self._stock.sequential and bool((switched | (both > own + slack)).any()):
            slack = slack + 8 * reach(self._stock, x, self._epsilon)[chosen][:, None] * self._widths
        return slack, own + slack

    def _distance(self, x: torch.Tensor) -> torch.Tensor:
        """How far each pre-activation is from the point where its feature switches. ``[n, d_sae]``"""
        h = self._stock.pre_activations(x)
        if self._stock.k is None:
            return (h - self._stock.thresholds()).abs()
        signed = self._stock.architecture == "abstopk"
        g = h.abs() if signed else h
        distance = self._to_the_others(g, self._stock.k)
        return distance if signed else distance.minimum(g.abs())

    def _to_the_others(self, g: torch.Tensor, k: int) -> torch.Tensor:
        """How far what is among the k largest is above the first that is not, and all others below the last that is: another
        k is no tie."""
        if k >= g.shape[1]:
            return g.new_full(g.shape, math.inf)
        edge = g.topk(k + 1, dim=1).values
        last, first = edge[:, -2, None], edge[:, -1, None]
        return (g - first).where(g >= last, last - g)


def _worst(known: float, found: torch.Tensor) -> float:
    """The larger one; NaN is worse than anything, and ``max`` would drop it."""
    value = found.amax().item() if found.numel() else 0.0
    return math.inf if math.isnan(value) else max(known, value)

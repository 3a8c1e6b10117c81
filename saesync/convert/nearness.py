"""Whether what somebody published is as near to the source as a copy in its dtype, which is made here, is.

Bounds that hold for any input are far above what rounding does to most: within them a decoder could be a few per cent too large.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from saesync.convert.gates import EPSILON, FVU_LIMIT, Gate, Tally
from saesync.convert.stock import Stock
from saesync.convert.writer import write_cfg
from saesync.errors import ProofFailed
from saesync.formats._lazy import Mapped
from saesync.formats.base import Weights

if TYPE_CHECKING:
    import torch

_WAYS, _CHANCE = 4, 8  # rounding before and after folding gives up to three times the variance; features that may switch besides


class Nearness:
    """A published SAE, and a copy of its source in the same dtype, on the same rows."""

    def __init__(self, published: Stock, weights: Weights, dtype: str) -> None:
        self._published, self._dtype = published, dtype
        self._copy = _copy(weights, dtype)
        self._gate = Gate(published, EPSILON[dtype])
        self._found, self._own = _Drift(), _Drift()

    def add(
        self, x: torch.Tensor, reference: tuple[torch.Tensor, torch.Tensor], published: tuple[torch.Tensor, torch.Tensor]
    ) -> None:
        """Take in rows ``x``, what the authors' code makes of them, and what the published SAE does."""
        if not len(x):
            return
        copied = self._copy.forward(x)
        self._gate.compare(x, reference, copied)
        self._own.add(x, reference, self._copy, copied)
        self._found.add(x, reference, self._published, published)

    def require(self, found: Tally) -> None:
        """``found`` compares the published SAE with the source on these rows.

        Raises:
            ProofFailed: it is further from it than rounding explains.
        """
        if _as_near(found, self._gate.tally) and self._found.no_more_than(self._own, self._dtype):
            return
        own, drift, least = self._gate.tally, self._found, self._own
        raise ProofFailed(
            "Not the same function",
            f"The published SAE is further from the source's function than a copy in {self._dtype} is: in {found.rows} rows "
            f"{found.switched:,} features switch ({own.switched:,} in a copy), and {found.fvu:.2g} of the variance is lost "
            f"({own.fvu:.2g}); besides that, features are off by {drift.feature:.2g} of their size ({least.feature:.2g}), "
            f"outputs by {drift.output:.2g} ({least.output:.2g}).",
        )


def _as_near(found: Tally, own: Tally) -> bool:
    """Whether a copy switches as few features as ``own``, a copy in the same dtype that is made here, and loses as little by it:
    bounds that hold for any input are far above what rounding does to most. Other ways to round, and chance where few features
    switch, are allowed for."""
    near = found.switched <= _WAYS * own.switched + _CHANCE
    return near and (own.switched < _CHANCE or found.fvu <= _WAYS * own.fvu)


@dataclass(slots=True)
class _Drift:
    """What a copy changes besides switching features: squared differences of the ``features`` that fire on both sides, and of the
    ``outputs`` with switched features put back as they were. What they are fractions of is ``strength`` and ``variance``."""

    features: float = 0.0
    outputs: float = 0.0
    strength: float = 0.0
    variance: float = 0.0

    def add(
        self, x: torch.Tensor, reference: tuple[torch.Tensor, torch.Tensor], copy: Stock, other: tuple[torch.Tensor, torch.Tensor]
    ) -> None:
        """Take in some rows ``x`` that ``copy`` gives ``other`` for."""
        (f, r), (g, s) = reference, other
        both = (f != 0) & (g != 0)
        back = s + copy.decoded(x, g.where(both, f)) - copy.decoded(x, g)
        self.features += (f - g)[both].square().sum().item()
        self.outputs += (r - back).square().sum().item()
        self.strength += f.square().sum().item()
        self.variance += (r - r.mean(dim=0)).square().sum().item()

    @property
    def feature(self) -> float:
        """Root of the mean square, relative to features."""
        return math.sqrt(self.features / max(self.strength, 1e-300))

    @property
    def output(self) -> float:
        """The same of outputs, relative to what they vary."""
        return math.sqrt(self.outputs / max(self.variance, 1e-300))

    def no_more_than(self, own: _Drift, dtype: str) -> bool:
        """Whether rounding explains it, which makes ``own`` of a copy in ``dtype`` that is made here. NaN is not explained.

        A factor that was folded into a whole column in ``dtype`` is wrong by up to half an epsilon, and so is its feature, where
        the errors of a column's own entries average out.
        """
        column, floor = (EPSILON[dtype] / 2) ** 2 / 3, FVU_LIMIT["float64"]
        features = self.features <= _WAYS * (own.features + column * own.strength)
        return features and self.outputs <= _WAYS * own.outputs + floor * own.variance


def _copy(weights: Weights, dtype: str) -> Stock:
    """The source's weights rounded to ``dtype``, computing in float64."""
    import torch

    kind = getattr(torch, dtype)
    rounded = {name: Mapped(tensor, lambda block, *_: block.to(kind).double()) for name, tensor in weights.tensors.items()}
    with TemporaryDirectory() as place:
        write_cfg(weights, Path(place), "float64")
        return Stock(Path(place), "float64", replace(weights, tensors=rounded))

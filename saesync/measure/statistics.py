"""Sums that merge, and the metrics and standard errors made of them.

Every metric is a smooth function of sums over tokens. The sums are kept per *cluster* of sequences (``saesync.measure.clusters``:
about those of one document), because tokens of one document are not independent of each other. All metrics here are homogeneous
of degree 0 in the sums, so by Euler's theorem the linearised contributions ``u_i = Σ_j ∂f/∂S_j · s_ij`` of the clusters sum to 0,
and the variance is

    var(f) = m / (m - 1) · Σ_i u_i²

with m clusters: the delta method, also called the infinitesimal jackknife (Efron, *The Jackknife, the Bootstrap and Other
Resampling Plans*, 1982, ch. 6). For a ratio it is the ratio estimator of survey sampling (Cochran, *Sampling Techniques*,
3rd ed. 1977, ch. 6) with clusters as units.

Whether a feature ever fired is no function of sums: there the jackknife itself is taken, with each cluster left out in turn.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

_NEVER = torch.iinfo(torch.int32).max
_NO_VARIANCE = 1e-10  # below it SAELens calls an activation constant


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value and its standard error over documents, None where there is too little to tell."""

    value: float
    stderr: float | None = None


class Tally:
    """Float64 sums on the CPU by name: ``[clusters]`` or ``[clusters, width]``. Adding and merging commute."""

    def __init__(self, clusters: int) -> None:
        self.clusters = clusters
        self.sums: dict[str, torch.Tensor] = {}

    def add(self, cluster: torch.Tensor, values: Mapping[str, torch.Tensor]) -> None:
        """Add sums ``[sequences]`` or ``[sequences, width]``; ``cluster [sequences]`` (on the CPU) says to which clusters."""
        for name, value in values.items():
            flat = value.detach().to("cpu").to(torch.float64)
            if name not in self.sums:
                self.sums[name] = torch.zeros(self.clusters, *flat.shape[1:], dtype=torch.float64)
            self.sums[name].index_add_(0, cluster, flat)

    def merged(self, other: Tally) -> Tally:
        """The tally of both parts.

        Raises:
            ValueError: the parts were not made for the same number of clusters.
        """
        if self.clusters != other.clusters:
            raise ValueError(f"tallies of {self.clusters} and {other.clusters} clusters do not merge")
        both = Tally(self.clusters)
        both.sums = {name: value.clone() for name, value in self.sums.items()}
        for name, value in other.sums.items():
            both.sums[name] = both.sums[name] + value if name in both.sums else value.clone()
        return both

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.sums[name]


def ratio(above: torch.Tensor, below: torch.Tensor) -> Estimate:
    """``Σ above / Σ below`` with ``u_i = (above_i - R · below_i) / Σ below``; both ``[clusters]``."""
    value = above.sum() / below.sum()
    return _estimate(value, (above - value * below) / below.sum())


def explained_variance(error: torch.Tensor, square: torch.Tensor, total: torch.Tensor, count: torch.Tensor) -> Estimate:
    """``1 - E|x - x̂|² / (E|x|² - |E x|²)``, as ``sae_lens.evals.ExplainedVarianceCalculator``.

    ``error``, ``square`` and ``count`` ``[clusters]`` are the sums of |x - x̂|², |x|² and 1; ``total`` ``[clusters, d_in]`` is
    that of x. With D = Σ|x|² · N - |Σx|² the value is ``1 - Σ|x - x̂|² · N / D``.
    """
    errors, squares, n, mean = error.sum(), square.sum(), count.sum(), total.sum(0)
    if float((squares * n - mean.pow(2).sum()) / n**2) < _NO_VARIANCE:
        return Estimate(1.0 if float(errors / n) < _NO_VARIANCE else 0.0)
    return _estimate(*explained(error, square, total, count))


def explained(
    error: torch.Tensor, square: torch.Tensor, total: torch.Tensor, count: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The value of ``explained_variance`` and the contributions of the clusters ``[clusters]``, which are not numbers where
    nothing varies."""
    errors, squares, n, mean = error.sum(), square.sum(), count.sum(), total.sum(0)
    spread = squares * n - mean.pow(2).sum()
    slope = squares * count + n * square - 2 * (total @ mean)
    return 1 - errors * n / spread, -(error * n + errors * count) / spread + errors * n * slope / spread**2


def standard_error(influence: torch.Tensor) -> float | None:
    """Of a value, or of the difference of two that were measured on the same clusters, from the contributions ``[clusters]``."""
    return _estimate(influence.sum(), influence).stderr


def ce_loss_score(ablated: torch.Tensor, spliced: torch.Tensor, clean: torch.Tensor) -> Estimate:
    """``(CE ablated - CE with SAE) / (CE ablated - CE without SAE)`` from sums over the same tokens, each ``[clusters]``.

    Not a number where ablating changes nothing at all: the caller says so.
    """
    return ratio(ablated - spliced, ablated - clean)


@dataclass(slots=True)
class Firing:
    """The first and the last cluster ``[features]`` in which each feature fired; one that never did has them in wrong order.

    Adding commutes, as it does for sums: parts may come in any order.
    """

    first: torch.Tensor
    last: torch.Tensor

    @classmethod
    def never(cls, features: int, device: torch.device) -> Firing:
        """No feature has fired yet."""
        first, last = (torch.full((features,), value, dtype=torch.int32, device=device) for value in (_NEVER, -1))
        return cls(first, last)

    def add(self, feature: torch.Tensor, cluster: torch.Tensor) -> None:
        """``feature [n]`` (int64) fired in ``cluster [n]`` (int32), for each of n."""
        self.first.scatter_reduce_(0, feature, cluster, "amin")
        self.last.scatter_reduce_(0, feature, cluster, "amax")

    def dead(self, counts: torch.Tensor) -> Estimate:
        """The fraction that never fired, and how much of it is chance. ``counts [clusters]`` are the tokens of each cluster.

        Without one cluster those are dead, too, that fired there alone: their number is all the jackknife needs (Burnham and
        Overton, Biometrika 65, 1978, who count species so); in its form for clusters of unequal size (Busing, Meijer and van
        der Leeden, Statistics and Computing 9, 1999), where the number that a cluster has by its size is no spread. It is rather
        too large than too small (Efron and Stein, Annals of Statistics 9, 1981): by about a fifth where features fire at all
        rates.
        """
        first, last = self.first.cpu(), self.last.cpu()
        value = float((first > last).double().mean())
        filled = counts > 0
        if int(filled.sum()) < 2:
            return Estimate(value)
        alone = torch.bincount(first[first == last], minlength=len(counts)).double()[filled] / len(first)
        share = counts[filled].double() / counts.sum()
        odds = (1 - share) / share
        return Estimate(value, float(((odds * alone - ((1 - share) * alone).sum()).pow(2) / odds).mean().sqrt()))


def _estimate(value: torch.Tensor, influence: torch.Tensor) -> Estimate:
    m = influence.shape[0]
    if m < 2:
        return Estimate(float(value))
    return Estimate(float(value), float((influence.pow(2).sum() * m / (m - 1)).sqrt()))

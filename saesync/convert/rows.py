"""Input rows that bring mistakes to light: scales, zeros, the mean, thresholds hit from both sides, rows with few positives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from saesync.errors import ProofFailed

if TYPE_CHECKING:
    import torch

    from saesync.convert.stock import Stock
    from saesync.formats.base import Weights

SEED = 20_240_229  # any constant: proofs must be repeatable
_GAUSSIAN = 96
_DRIVEN = 12  # features driven to their threshold, each from both sides
_FEW = 4
REAL_LIMIT = 512
WHO_LOOKS = "Only `saesync apply` of a manifest with `validate:` looks at them."
_EDGE = 1e-9
_POSITIVE_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Rows:
    """``x [n, d_in]`` in float64. ``plain`` marks rows of ordinary size (what a cast is judged on); ``real`` counts real ones."""

    x: torch.Tensor
    plain: torch.Tensor
    real: int


def make_rows(stock: Stock, real: torch.Tensor | None) -> Rows:
    """Rows for one SAE, fitted to its weights; ``real`` are activations at its hook, if there are any.

    The scale of random rows is that of real ones, else the one at which ``W_enc``'s columns give pre-activations as large as
    the SAE's own biases and thresholds.
    """
    import torch

    generator = torch.Generator().manual_seed(SEED)
    d_in = stock.d_in
    found = torch.empty((0, d_in), dtype=torch.float64) if real is None else real[:REAL_LIMIT].double()
    noise = torch.randn((_GAUSSIAN, d_in), generator=generator, dtype=torch.float64)
    gaussian = _shifted(noise * _scale(stock, found), found)
    ordinary = torch.cat([found, gaussian])
    mean = ordinary.mean(dim=0, keepdim=True)
    tiny = torch.full((1, d_in), 1e-6, dtype=torch.float64)
    plain = [ordinary, mean, *_few_positive(stock, gaussian)]
    # A per-token norm of 0/0 is undefined in the authors' code too: no zero row there.
    zero = [] if stock.per_token_norm else [torch.zeros_like(mean)]
    edges = [*zero, tiny, -tiny, gaussian[:8] * 1e3, *_driven(stock, generator)]
    x = torch.cat([*plain, *edges])
    count = sum(len(part) for part in plain)
    return Rows(x, torch.arange(len(x)) < count, len(found))


def require_positive(rows: Rows, stock: Stock, weights: Weights) -> Rows:
    """Rows with at least ``positive_k`` positive pre-activations: where the authors' k largest and SAELens's are the same. All
    rows where it is None, or where nothing but random rows could speak against what is not said.

    Raises:
        ProofFailed: a real row has fewer, or there is no real row: random ones say nothing of how it is in use.
    """
    import torch

    k = weights.positive_k
    if k is None or not (rows.real or weights.signed):
        return rows
    if not rows.real:
        raise ProofFailed(
            "Needs real activations",
            f"The authors' k = {k} largest features may be negative, SAELens's never are. Only activations of the model show "
            f"whether that happens. {WHO_LOOKS}",
        )
    step = max(1, _POSITIVE_BYTES // (8 * stock.d_sae))
    parts = [rows.x[start : start + step] for start in range(0, len(rows.x), step)]
    positive = torch.cat([(stock.pre_activations(part) > 0).sum(dim=1) for part in parts])
    inside = positive >= k
    bad = int((~inside[: rows.real]).sum())
    if bad:
        theirs = "the authors keep negative ones there" if weights.signed else "whether negative ones count there is not said"
        raise ProofFailed(
            "Not the same function",
            f"In {bad} of {rows.real} real activations fewer than k = {k} pre-activations are positive (down to "
            f"{int(positive[: rows.real].min())}): {theirs}, and SAELens keeps none. Nothing is published.",
        )
    return Rows(rows.x[inside], rows.plain[inside], rows.real)


def _scale(stock: Stock, real: torch.Tensor) -> float:
    if len(real):
        return max(float(real.std()), 1e-6)
    column = stock.column_norms().median().item()
    own = max(stock.offsets().abs().median().item(), stock.thresholds().abs().median().item())
    return max(stock.unit, max(own, stock.b_dec.abs().max().item() * column) / max(column, 1e-12))


def _shifted(noise: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    return noise + real.mean(dim=0) if len(real) else noise


def _few_positive(stock: Stock, pool: torch.Tensor) -> list[torch.Tensor]:
    """Rows along minus the sum of all encoder directions, where most pre-activations are negative: fewer than k positives."""
    if stock.per_token_norm:
        return []
    direction = stock.sum_of_columns()
    length = direction.norm()
    if not bool(length > 0):
        return []
    steps = pool.norm(dim=1).median() * (1 + pool.new_tensor(range(_FEW)))
    return [stock.input_bias() - steps[:, None] * direction / length]


def _driven(stock: Stock, generator: torch.Generator) -> list[torch.Tensor]:
    """For some features, the row along their own direction that puts the pre-activation 1e-9 below and above the threshold."""
    import torch

    if stock.per_token_norm:
        return []
    chosen = torch.randperm(stock.d_sae, generator=generator)[:_DRIVEN]
    directions = stock.columns(chosen)  # [d_in, chosen]
    squares = directions.square().sum(dim=0)
    usable = squares > 0
    target = (stock.thresholds()[chosen] - stock.offsets()[chosen])[usable]
    slack = _EDGE * (1 + target.abs())
    unit = (directions[:, usable] / squares[usable]).T
    return [stock.input_bias() + (target + side * slack)[:, None] * unit for side in (-1, 1)]

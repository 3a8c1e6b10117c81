"""The proof: what stock SAELens computes from the converted folder is what the authors' code computes from the source.

Two comparisons, so that a wrong function cannot hide behind rounding. First the *function*: SAELens's classes in float64
against the format's ``reference``, on adversarial and on real rows, to 1e-10. Where storing rounds (a narrower dtype, or folded
weights), SAELens gets the unrounded tensors for this. Second the *cast*: the folder as users load it, against the first.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saesync.convert.finite import require_finite_file
from saesync.convert.gates import EPSILON, EXACT, Gate, affordable
from saesync.convert.nearness import Nearness
from saesync.convert.rows import Rows, make_rows, require_positive
from saesync.convert.sequences import LENGTH, coupling, require_context
from saesync.convert.stock import Stock
from saesync.convert.writer import is_exact
from saesync.errors import ProofFailed
from saesync.formats._bytes import LocalBytes
from saesync.formats._lazy import WIDTHS, whole
from saesync.formats._safetensors import parse
from saesync.formats.base import FEATURE_SCALES, Format, SourceFiles, Weights
from saesync.model import WEIGHTS_FILE

if TYPE_CHECKING:
    import torch

_BATCH_BYTES = 64 << 20  # of one [rows, d_sae] float64 matrix; a forward pass holds about six
_ALONE = 3

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Source:
    """The original: its format, files and options."""

    format: Format
    files: SourceFiles
    options: Any

    def forward(self, x: torch.Tensor, factors: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """The authors' features, times ``factors [d_sae]``, and their output, float64."""
        features, output = self.format.reference(self.files, self.options, x)
        return features if factors is None else features * factors, output


def prove(
    source: Source,
    weights: Weights,
    out: Path,
    dtype: str,
    cfg: Mapping[str, Any],
    metadata: Mapping[str, Any],
    real: torch.Tensor | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Compare folder ``out`` (written from ``weights`` as ``dtype``) with the source; returns the flat proof.

    ``max_feature_diff`` and ``max_reconstruction_diff`` are relative to the largest value of their row; ``cast_*`` say what
    storing and computing in ``dtype`` costs. ``cfg`` and ``metadata`` are what was written besides the source's own;
    ``real [n, d_in]`` are activations at the hook.

    Raises:
        ProofFailed: with the numbers.
    """
    exact = is_exact(weights, dtype)
    function = Stock(out, "float64", None if exact else weights)
    as_used = Stock(out, dtype)
    _check_survival(as_used, {**weights.cfg, **cfg}, metadata)
    factors = factors_of(weights)
    rows = require_positive(make_rows(function, real), function, weights)
    gate, cast = Gate(function, EPSILON["float64"]), Gate(function, EPSILON[dtype])
    for part in _parts(rows, function):
        x, plain = rows.x[part], rows.plain[part]
        ours = function.forward(x)
        gate.compare(x, source.forward(x, factors), ours)
        if bool(plain.any()):  # they come first, and so are a sequence of their own
            cast.compare(x[plain], (ours[0][plain], ours[1][plain]), as_used.forward(x[plain]))
        if progress is not None:
            progress(min(part.stop, len(rows.x)), len(rows.x))
    proof = _report(gate, rows, weights) | _cast_report(cast, dtype, exact) | {"batch_diff": _batch_difference(function, rows)}
    _judge(proof, dtype)
    require_context(function, rows.x)
    return proof


@dataclass(frozen=True, slots=True)
class Published:
    """A folder somebody else wrote, as stock SAELens loads it. ``dtype`` is the least precise type that it is stored in."""

    function: Stock
    dtype: str

    @classmethod
    def of(cls, folder: Path) -> Published:
        """
        Raises:
            Refused: its weights are damaged, or no numbers.
            ProofFailed: SAELens refuses it.
        """
        require_finite_file(folder / WEIGHTS_FILE, WEIGHTS_FILE)
        stored = {extent.info.dtype for extent in parse(LocalBytes(folder / WEIGHTS_FILE), WEIGHTS_FILE).values()}
        dtype = max(stored & set(EPSILON), key=lambda name: EPSILON[name], default="float32")
        return cls(Stock(folder, "float64"), dtype)


def prove_published(source: Source, weights: Weights, published: Published, real: torch.Tensor | None = None) -> dict[str, Any]:
    """Whether what somebody else published is the source's function, to the precision its weights are stored in.

    ``weights`` is the source in canonical form; only its feature scale matters here.

    Raises:
        ProofFailed: with the numbers.
    """
    function, dtype = published.function, published.dtype
    rows, factors = require_positive(make_rows(function, real), function, weights), factors_of(weights)
    # Rows at a threshold may rightly switch in other rounding, and then their outputs jump: only their features are judged.
    plain, edges = (Gate(function, EPSILON[dtype]) for _ in range(2))
    nearness = Nearness(function, weights, dtype) if WIDTHS[dtype] < 4 and not function.sequential else None
    for part in _parts(rows, function):
        reference, ours = source.forward(rows.x[part], factors), function.forward(rows.x[part])
        if reference[0].shape != ours[0].shape or reference[1].shape != ours[1].shape:
            raise ProofFailed("Not the same function", "The published SAE has other dimensions than the source.")
        for gate, mask in ((plain, rows.plain[part]), (edges, ~rows.plain[part])):
            if bool(mask.any()):
                gate.compare(rows.x[part], reference, ours, mask)
        if nearness is not None:
            x, mask = rows.x[part], rows.plain[part]
            nearness.add(x[mask], (reference[0][mask], reference[1][mask]), (ours[0][mask], ours[1][mask]))
    excess = max(plain.tally.excess, edges.tally.excess)
    unexplained = plain.tally.unexplained + edges.tally.unexplained
    proof = _report(plain, rows, weights) | {
        "dtype": dtype,
        "tolerance": EPSILON[dtype],
        "excess": excess,
        "fvu": plain.tally.fvu,
    }
    proof |= {"support_changes": unexplained, "rows": plain.tally.rows + edges.tally.rows}
    if not (excess <= 1 and unexplained == 0 and affordable(plain.tally.fvu, plain.tally.untied_fvu, dtype)):
        raise ProofFailed("Not the same function", f"The published SAE is not the source's function: {_numbers(proof)}.")
    if nearness is not None:
        nearness.require(plain.tally)
    require_context(function, rows.x)
    return proof


def batches(rows: Rows, d_sae: int) -> Iterator[slice]:
    """Ranges of rows whose ``[rows, d_sae]`` matrices stay small."""
    step = max(1, _BATCH_BYTES // (8 * d_sae))
    return (slice(start, start + step) for start in range(0, len(rows.x), step))


def _parts(rows: Rows, stock: Stock) -> Iterator[slice]:
    """Ranges of rows that are compared at a time: of a sequential SAE, one sequence each."""
    if not stock.sequential:
        return batches(rows, stock.d_sae)
    return (slice(start, start + LENGTH) for start in range(0, len(rows.x), LENGTH))


def factors_of(weights: Weights) -> torch.Tensor | None:
    """What the authors' features are multiplied by to give SAELens's, float64 ``[d_sae]``; None for 1.

    Raises:
        ProofFailed: the declared scale and the factors contradict each other.
    """
    if weights.feature_scale == "raw" and weights.feature_factors is None:
        return None
    if weights.feature_scale not in FEATURE_SCALES or weights.feature_scale == "raw" or weights.feature_factors is None:
        raise ProofFailed("Feature scale is unknown", f"The format says {weights.feature_scale!r}, and its factors do not fit.")
    factors = whole(weights.feature_factors).double()
    if not bool((factors.isfinite() & (factors > 0)).all()):
        raise ProofFailed("Feature scale is no scale", f"Factors of {weights.feature_scale} must be positive numbers.")
    return factors


def _check_survival(stock: Stock, wanted: Mapping[str, Any], metadata: Mapping[str, Any]) -> None:
    """SAELens drops fields it does not know and metadata it does not trust, without a word."""
    kept, cfg = stock.metadata(), stock.cfg()
    for name, value in metadata.items():
        if kept.get(name) != value:
            raise ProofFailed("Metadata is lost", f"SAELens reads metadata {name} as {kept.get(name)!r}, written was {value!r}.")
    for name, value in wanted.items():
        if cfg.get(name) != value:
            raise ProofFailed("Config is lost", f"SAELens reads {name} as {cfg.get(name)!r}, written was {value!r}.")


def _batch_difference(stock: Stock, rows: Rows) -> float:
    """A row must have the same features alone and in company: batch-coupled activations (BatchTopK in training form) do not.

    Of a sequential SAE that is said of whole sequences, and of what came before.
    """
    if stock.sequential:
        return coupling(stock, rows.x)
    x = rows.x[: 8 * _ALONE]
    together = stock.encode(x)
    worst = 0.0
    for index in range(min(_ALONE, len(x))):
        alone = stock.encode(x[index : index + 1])[0]
        scale = max(together[index].abs().max().item(), 1e-300)
        worst = max(worst, (alone - together[index]).abs().max().item() / scale)
    return worst


def _report(gate: Gate, rows: Rows, weights: Weights) -> dict[str, Any]:
    import torch

    tally = gate.tally
    return {
        "max_feature_diff": tally.feature,
        "max_reconstruction_diff": tally.reconstruction,
        "support_changes": tally.unexplained,
        "support_ties": tally.switched - tally.unexplained,
        "rows": tally.rows,
        "real_rows": rows.real,
        "tolerance": EXACT,
        "feature_scale": weights.feature_scale,
        "sae_lens": version("sae-lens"),
        "torch": torch.__version__,
    }


def _cast_report(gate: Gate, dtype: str, exact: bool) -> dict[str, Any]:
    tally = gate.tally
    return {
        "dtype": dtype,
        "exact_storage": exact,
        "cast_max_feature_diff": tally.feature,
        "cast_max_reconstruction_diff": tally.reconstruction,
        "cast_feature_excess": tally.excess,
        "cast_fvu": tally.fvu,
        "cast_untied_fvu": tally.untied_fvu,
        "cast_support_changes": tally.switched,
        "cast_support_unexplained": tally.unexplained,
        "cast_rows": tally.rows,
    }


def _judge(proof: Mapping[str, Any], dtype: str) -> None:
    # Written so that a NaN fails.
    same = max(proof["max_feature_diff"], proof["max_reconstruction_diff"]) <= EXACT and proof["support_changes"] == 0
    if not same:
        raise ProofFailed(
            "Not the same function", f"The converted SAE is not the authors' function: {_numbers(proof)}. Nothing is published."
        )
    if not proof["batch_diff"] <= EXACT:
        raise ProofFailed(
            "Depends on its batch", f"Features of a row change by {proof['batch_diff']:.1e} with the rows beside it or after it."
        )
    cheap = affordable(proof["cast_fvu"], proof["cast_untied_fvu"], dtype)
    if not (proof["cast_feature_excess"] <= 1 and proof["cast_support_unexplained"] == 0 and cheap):
        shown = ", ".join(f"{name} {value:.3g}" for name, value in proof.items() if name.startswith("cast_"))
        raise ProofFailed("Cast loses too much", f"In {dtype} the SAE differs beyond rounding: {shown}. Choose a wider dtype.")


def _numbers(proof: Mapping[str, Any]) -> str:
    feature, output = proof["max_feature_diff"], proof["max_reconstruction_diff"]
    worst = f"features differ by up to {feature:.2e}, outputs by {output:.2e} (relative)"
    if math.isinf(max(feature, output)):
        worst = "some numbers are infinite or not numbers at all"
    switched = f"{proof['support_changes']} features switch in {proof['rows']} rows"
    return f"{worst}, {switched}; tolerance {proof['tolerance']:.0e}"

"""The proof of a written layout: the tool's own forward pass over the written files against the source's authors' one.

As for SAELens, two comparisons, so that a wrong function cannot hide behind rounding. Where storing rounds, the layout is
written a second time in float64, and that is the *function*, compared to 1e-10; the files that are kept differ from it by
rounding only, which is the *cast*.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from saesync.convert.gates import EPSILON, EXACT, Gate, affordable
from saesync.convert.proof import Source, batches, factors_of
from saesync.convert.rows import make_rows
from saesync.convert.stock import Stock
from saesync.convert.writer import write_cfg
from saesync.errors import ProofFailed
from saesync.formats._lazy import holds
from saesync.formats.base import Weights
from saesync.writers._files import Progress, stored_kinds, write_layout
from saesync.writers.base import Layout, Writer


def prove_layout(
    source: Source, weights: Weights, writer: Writer, layout: Layout, out: Path, dtype: str, progress: Progress | None = None
) -> dict[str, Any]:
    """Compare what was written to ``out`` with the source; returns the flat proof.

    Raises:
        ProofFailed: with the numbers.
    """
    kinds = stored_kinds(layout, dtype)
    exact = all(holds(kinds[name], tensor.dtype) for name, tensor in layout.tensors.items())
    with TemporaryDirectory(prefix=".function-", dir=out.parent) as name:
        scratch = Path(name)
        write_cfg(weights, scratch, "float64")
        stock = Stock(scratch, "float64", weights)  # only for rows that hit thresholds, and for the scale of rounding
        function = out
        if not exact:
            function = scratch / "function"
            write_layout(layout, function, "float64")
        rows, factors = make_rows(stock, None), factors_of(weights)
        # The kept files are judged at what their rounding explains, on all rows: a feature may switch only near its threshold.
        gate, cast, edges = (Gate(stock, EPSILON[kind]) for kind in ("float64", dtype, dtype))
        for part in batches(rows, stock.d_sae):
            x, plain = rows.x[part], rows.plain[part]
            theirs = source.forward(x, factors)
            gate.compare(x, theirs, writer.reference(function, x))
            if not exact:
                found = writer.reference(out, x)
                for judge, mask in ((cast, plain), (edges, ~plain)):
                    if bool(mask.any()):
                        judge.compare(x[mask], (theirs[0][mask], theirs[1][mask]), (found[0][mask], found[1][mask]))
            if progress is not None:
                progress(min(part.stop, len(rows.x)), len(rows.x))
    proof = _report(gate, writer, weights)
    if not exact:
        proof |= _cast_report(cast, edges)
    _judge(proof | {"dtype": dtype}, exact)
    return proof | {"dtype": dtype, "exact_storage": exact}


def _report(gate: Gate, writer: Writer, weights: Weights) -> dict[str, Any]:
    import torch

    tally = gate.tally
    return {
        "layout": writer.name,
        "max_feature_diff": tally.feature,
        "max_reconstruction_diff": tally.reconstruction,
        "support_changes": tally.unexplained,
        "support_ties": tally.switched - tally.unexplained,
        "rows": tally.rows,
        "tolerance": EXACT,
        "feature_scale": weights.feature_scale,
        "torch": torch.__version__,
    }


def _cast_report(cast: Gate, edges: Gate) -> dict[str, Any]:
    return {
        "cast_feature_excess": max(cast.tally.excess, edges.tally.excess),
        "cast_support_unexplained": cast.tally.unexplained + edges.tally.unexplained,
        "cast_fvu": cast.tally.fvu,
        "cast_untied_fvu": cast.tally.untied_fvu,
        "cast_max_feature_diff": cast.tally.feature,
        "cast_max_reconstruction_diff": cast.tally.reconstruction,
        "cast_support_changes": cast.tally.switched,
        "cast_rows": cast.tally.rows,
    }


def _judge(proof: Mapping[str, Any], exact: bool) -> None:
    # Written so that a NaN fails.
    worst = max(proof["max_feature_diff"], proof["max_reconstruction_diff"])
    if not (worst <= EXACT and proof["support_changes"] == 0):
        shown = ", ".join(
            f"{name} {proof[name]:.3g}" for name in ("max_feature_diff", "max_reconstruction_diff", "support_changes")
        )
        raise ProofFailed(
            "Not the same function", f"What was written for {proof['layout']} is not the source's function: {shown}."
        )
    if exact:
        return
    cheap = affordable(proof["cast_fvu"], proof["cast_untied_fvu"], proof["dtype"])
    if not (proof["cast_feature_excess"] <= 1 and proof["cast_support_unexplained"] == 0 and cheap):
        shown = ", ".join(f"{name} {value:.3g}" for name, value in proof.items() if name.startswith("cast_"))
        raise ProofFailed(
            "Cast loses too much", f"In {proof['dtype']} it differs beyond rounding: {shown}. Choose a wider dtype."
        )

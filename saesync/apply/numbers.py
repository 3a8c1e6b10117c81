"""From a worker's numbers to evidence that may be kept."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from saesync.apply.work import Work
from saesync.cache import Cache
from saesync.errors import Conflict
from saesync.record import Evidence, Metric
from saesync.resolve import local_digest, snapshot_names, text_names


def evidence_of(work: Work, found: Mapping[str, Any], cache: Cache) -> Evidence:
    """A worker's numbers as evidence; what is not finite is left out, so that it counts as not measured.

    Raises:
        Conflict: weights, model or dataset are not what the plan was made from.
        FileNotFoundError: a local model or dataset is gone.
    """
    measured, sha256 = found["metrics"][work.address], found["weights_sha256"][work.address]
    if sha256 != work.weights_sha256:
        raise Conflict("Weights changed while they were measured", f"{work.folder} is not what was converted. Run again.")
    _check_unchanged(work, cache)
    metrics = {
        name: Metric(float(value["value"]), float(value["stderr"]) if _finite(value.get("stderr")) else None)
        for name, value in measured.items()
        if _finite(value.get("value"))
    }
    key = work.inputs.measure_key or ""
    return Evidence(key, sha256, metrics, work.inputs.measure or {}, found["about"].get(work.address, {}))


def numbers(evidence: Evidence) -> dict[str, float]:
    """The metrics' values by name, for events."""
    return {name: metric.value for name, metric in sorted(evidence.metrics.items())}


def _check_unchanged(work: Work, cache: Cache) -> None:
    """A local model or dataset is read in place, and the evidence's key says what it was when the plan was made."""
    measure, spec = work.inputs.measure or {}, work.sae.validate
    model, dataset = work.sae.model.path, spec.dataset.path if spec is not None else None
    if model is not None and local_digest(Path(model), cache, snapshot_names) != measure.get("model.digest"):
        raise Conflict("Model changed meanwhile", f"{model} is not what the plan was made from. Run the same command again.")
    if dataset is not None and local_digest(Path(dataset), cache, text_names) != measure.get("validate.dataset.digest"):
        raise Conflict("Dataset changed meanwhile", f"{dataset} is not what the plan was made from. Run the same command again.")


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and abs(value) < float("inf")

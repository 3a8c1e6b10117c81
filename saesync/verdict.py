"""Judging evidence, and naming what differs between two sets of key inputs. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from saesync.model import Requirement, Sae
from saesync.reason import Reason, ReasonCode
from saesync.record import Evidence, Native

_CUT = 200
_METRICS, _LONGEST, _DIGITS = "metrics", 2_000, 10
_SCORE = "ce_loss_score"
_ABLATED, _WITHOUT = "ce_loss_with_ablation", "ce_loss_without_sae"


def judge(evidence: Evidence, require: Iterable[Requirement]) -> tuple[Reason, ...]:
    """Requirements that the measured metrics miss, in manifest order; empty when all hold.

    A metric that was not measured is not judged here: see ``unmeasured``. A score of the loss says nothing where the model is no
    worse without what the SAE reconstructs: a worse reconstruction then has a higher one.
    """
    reasons = []
    for bound in require:
        metric = evidence.metrics.get(bound.metric)
        if metric is None or not math.isfinite(metric.value):
            continue
        losses = _no_baseline(evidence) if bound.metric == _SCORE else {}
        if not losses and bound.holds(metric.value):
            continue
        code = ReasonCode.BELOW_MIN if bound.kind == "min" else ReasonCode.ABOVE_MAX
        data: dict[str, Any] = {"metric": bound.metric, "value": metric.value, "bound": bound.bound, **losses}
        if metric.stderr is not None and math.isfinite(metric.stderr):
            data["stderr"] = metric.stderr
        if bound.origin is not None:
            data["at"] = str(bound.origin)
        reasons.append(Reason(ReasonCode.NO_BASELINE if losses else code, data))
    return tuple(reasons)


def _no_baseline(evidence: Evidence) -> dict[str, float]:
    """The losses with the hook set to zero and without the SAE, where the first is not above the second."""
    ablated, without = (evidence.metrics.get(name) for name in (_ABLATED, _WITHOUT))
    if ablated is None or without is None or ablated.value > without.value:
        return {}
    return {"ablated": ablated.value, "without": without.value}


def unmeasured(evidence: Evidence, require: Iterable[Requirement]) -> tuple[Reason, ...]:
    """One reason per required metric that the evidence has no finite number for."""
    found = ((bound.metric, evidence.metrics.get(bound.metric)) for bound in require)
    return _missing(name for name, metric in found if metric is None or not math.isfinite(metric.value))


def _missing(metrics: Iterable[str]) -> tuple[Reason, ...]:
    return tuple(Reason(ReasonCode.METRIC_MISSING, {"metric": name}) for name in dict.fromkeys(metrics))


def misses_of_native(native: Native, sae: Sae) -> tuple[Reason, ...]:
    """Why an SAE is published as its authors' own files, and then each metric that is required of it: nothing is measured."""
    data = {"title": shown(native.title), "said_by": shown(native.said_by), "detail": native.detail}
    said = Reason(ReasonCode.NOT_CONVERTIBLE, data)
    return (said, *_missing(bound.metric for bound in (sae.validate.require if sae.validate is not None else ())))


def changed(before: Mapping[str, Any], after: Mapping[str, Any]) -> tuple[Reason, ...]:
    """One CHANGED reason per input that differs, by name. ``before`` may come from a record: it is cut to what can be shown."""
    before, after = by_name(before), by_name(after)
    names = sorted({*before, *after}, key=lambda name: (name not in after, name))
    return tuple(
        Reason(ReasonCode.CHANGED, {"name": shown(name), "before": shown(before.get(name)), "after": shown(after.get(name))})
        for name in names
        if before.get(name) != after.get(name)
    )


def by_name(inputs: Mapping[str, Any]) -> Mapping[str, Any]:
    """Inputs of a key, each version of a metric's definition by the metric's name: in the key all of them are one text, of
    which nobody finds the part that changed."""
    named = versions(inputs)
    return {name: value for name, value in inputs.items() if name != _METRICS} | named if named else inputs


def versions(measure: Mapping[str, Any]) -> dict[str, str]:
    """The versions of metric definitions in the inputs of a measurement, by name; none where they are not as we write them."""
    said = measure.get(_METRICS)
    if not isinstance(said, str) or len(said) > _LONGEST:
        return {}
    return {f"{_METRICS}.{name}": version for name, _, version in (each.partition(":") for each in said.split(","))}


def newer_version(recorded: Mapping[str, Any], known: Mapping[str, Any]) -> Reason | None:
    """The first recorded version that is higher than the one known here, or of something that is not known here at all."""
    for name, found in sorted(recorded.items()):
        if _number(found) > _number(known.get(name)):
            return Reason(ReasonCode.MADE_NEWER, {"name": shown(name), "found": shown(found), "known": shown(known.get(name))})
    return None


def _number(version: Any) -> int:
    """A version as it can be compared; what is none is older than all."""
    text = str(version)
    return int(text) if text.isascii() and text.isdecimal() and len(text) < _DIGITS else -1


def shown(value: Any) -> Any:
    """A JSON scalar that can be kept in a plan: text is cut, lists and mappings are spelled out, no infinity, no NaN."""
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    text = value if isinstance(value, str) else str(value)
    text = text if len(text) <= _CUT else text[:_CUT] + "…"
    return text.encode("utf-8", "backslashreplace").decode()

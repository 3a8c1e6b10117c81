"""What came of an apply."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from saesync.errors import Diagnostic
from saesync.inert import apart
from saesync.model import Failure, Item, Plan, Requirement, Status, StepKind
from saesync.nothing import nothing
from saesync.reason import Reason, ReasonCode
from saesync.render import GATE_MISSED, reason_text

INTERRUPTED = 130


class Outcome(StrEnum):
    """What became of one SAE."""

    PUBLISHED = "published"
    NATIVE = "native"  # published as its authors' own files: SAELens cannot express it
    DELETED = "deleted"
    REGISTERED = "registered"  # the release's entry stands in the registry, or in a pull request to it
    FAILED = "failed"  # a step of its own failed, or a requirement is missed: nothing was published
    FAILING = "failing"  # published, measured, and short of a requirement
    SKIPPED = "skipped"  # something it shares with others failed
    STOPPED = "stopped"  # not started, or not finished
    UNSURE = "unsure"  # it was being written when all was stopped: it may have landed, the next plan tells
    HELD = "held"  # by the plan
    UNKNOWN = "unknown"  # by the plan


GOOD = frozenset({Outcome.PUBLISHED, Outcome.NATIVE, Outcome.DELETED, Outcome.REGISTERED, Outcome.STOPPED, Outcome.UNSURE})


@dataclass(frozen=True, slots=True)
class Result:
    """``outcomes`` is by address and holds every SAE and release that was not up to date before."""

    outcomes: Mapping[str, Outcome] = field(default_factory=nothing)
    failures: tuple[Failure, ...] = ()
    interrupted: bool = False
    commits: int = 0
    uploaded: int = 0  # bytes of the SAEs that were committed
    cards: int = 0  # written by themselves
    tags: int = 0  # made, or put back
    cards_left: int = 0  # by themselves, and not come to before all was stopped
    tags_left: int = 0
    entries_left: int = 0  # of registries
    seconds: float = 0.0

    @property
    def exit_code(self) -> int:
        """0 all is as asked; 1 anything failed, failing, held or unknown; 130 interrupted before that could be said."""
        if self.failures or not set(self.outcomes.values()) <= GOOD:
            return 1
        return INTERRUPTED if self.interrupted else 0

    def summary(self) -> dict[str, Any]:
        """The ``summary`` event."""
        return {
            "type": "summary",
            "outcomes": dict(Counter(str(outcome) for outcome in self.outcomes.values())),
            "unsure": [address for address, outcome in self.outcomes.items() if outcome is Outcome.UNSURE],
            "failures": [
                {"address": f.address, "step": str(f.step), "diagnostics": [d.to_json() for d in f.diagnostics]}
                for f in self.failures
            ],
            "exit_code": self.exit_code,
            "commits": self.commits,
            "bytes": self.uploaded,
            "cards": self.cards,
            "tags": self.tags,
            "cards_left": self.cards_left,
            "tags_left": self.tags_left,
            "entries_left": self.entries_left,
            "seconds": round(self.seconds, 3),
        }


def _in_own_trouble(plan: Plan) -> Iterator[Item]:
    """All items but releases that are held for what their SAEs are held for, too: that is said and counted once."""
    spoken = {(item.release, reason.code) for item in plan.items if item.id is not None and item.held for reason in item.reasons}
    for item in plan.items:
        if item.id is not None or not item.held or not {(item.release, reason.code) for reason in item.reasons} <= spoken:
            yield item


def planned_outcomes(plan: Plan) -> dict[str, Outcome]:
    """What the plan alone decides: held, unknown and failing items."""
    found: dict[str, Outcome] = {}
    for item in _in_own_trouble(plan):
        if item.held:
            found[_name(item, found)] = Outcome.UNKNOWN if item.status is Status.UNKNOWN else Outcome.HELD
        elif item.status is Status.FAILING:
            found[item.address] = Outcome.FAILING
    return found


def planned_failures(plan: Plan) -> list[Failure]:
    """The same as failures, so that the summary names them. What a release shares with its SAEs is said once."""
    bounds = {sae.address: sae.validate.require for release in plan.releases for sae in release.saes if sae.validate}
    found: list[Failure] = []
    for item in _in_own_trouble(plan):
        if item.status is Status.FAILING and not item.held:
            misses = gate_diagnostics(item.reasons, bounds.get(item.address, ()))
            found.append(Failure(item.address, StepKind.VALIDATE, misses))
        elif item.held:
            found.append(Failure(item.address, StepKind.PUBLISH, (Diagnostic("Held by the plan", _said(item), item.origin),)))
    return found


def _said(item: Item) -> str:
    """All reasons as one sentence. Some quote a server's message, which ends as sentences do."""
    said = "; ".join(reason_text({"code": reason.code, "data": reason.data}).rstrip(".") for reason in item.reasons)
    return said if said.endswith("?") else f"{said}."


def gate_diagnostics(reasons: Iterable[Reason], require: Iterable[Requirement]) -> tuple[Diagnostic, ...]:
    """Missed requirements in words, each at its bound's place in the manifest."""
    origins = {(bound.metric, bound.kind): bound.origin for bound in require}
    found = []
    for reason in reasons:
        data = reason.data
        metric = str(data.get("metric"))
        if reason.code is ReasonCode.NOT_CONVERTIBLE:
            origin, detail = None, f"Nothing is measured of original files. Not converted: {data['detail']}"
        elif reason.code is ReasonCode.METRIC_MISSING:
            origin = origins.get((metric, "min")) or origins.get((metric, "max"))
            detail = f"{metric} could not be measured, and the manifest asks for it."
        elif reason.code is ReasonCode.NO_BASELINE:
            origin = origins.get((metric, "min")) or origins.get((metric, "max"))
            detail = f"{reason_text({'code': reason.code, 'data': data})}. Put the bound on another metric."
        else:
            kind, words = ("min", "at least") if reason.code is ReasonCode.BELOW_MIN else ("max", "at most")
            value, bound = apart(float(data["value"]), float(data["bound"]))
            origin = origins.get((metric, kind))
            detail = f"{metric} {value}, manifest asks for {words} {bound}."
        found.append(Diagnostic(GATE_MISSED, detail, origin))
    return tuple(found)


def _name(item: Item, taken: Mapping[str, Outcome]) -> str:
    """The item's address; a release may be held for several sections."""
    name, count = item.address, 1
    while name in taken:
        count += 1
        name = f"{item.address} ({count})"
    return name

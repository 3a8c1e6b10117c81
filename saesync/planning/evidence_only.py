"""Somebody else's SAEs, which are measured and stay where they are: the table where only evidence is ours to publish. Pure.

The record stands at ``records:`` and holds evidence without files. Nothing there can drift, be foreign, moved or relabelled: of
the table's rows remain those about what may be seen, what can be known, and what was measured.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

from saesync.keys import Wanted
from saesync.model import Choices, Item, Observed, Release, Status, StepKind
from saesync.planning import basis
from saesync.planning.case import Case, Place, index, make_case
from saesync.planning.table import Decision, blocked, current, item_of, locked, made_newer, unknown
from saesync.reason import Reason, ReasonCode
from saesync.record import Evidence
from saesync.verdict import changed, judge, unmeasured

_STEPS = (StepKind.FETCH, StepKind.CONVERT, StepKind.VALIDATE, StepKind.PUBLISH)


def newer(case: Case) -> Decision | None:
    """What a newer saesync measured is not measured again by an older one."""
    return made_newer(case, unproven=True) if case.entry is not None and _unproven_because(case) else None


def unproven(case: Case) -> Decision | None:
    """The numbers asked for are not there. The source is converted, which proves that it is understood, and measured."""
    reasons = _unproven_because(case)
    return Decision(Status.UNPROVEN, _STEPS, reasons) if reasons else None


def failing(case: Case) -> Decision | None:
    """Measured, and short of a requirement."""
    evidence, spec = _evidence(case), case.sae.validate
    reasons = judge(evidence, spec.require) if evidence is not None and spec is not None else ()
    return Decision(Status.FAILING, reasons=reasons) if reasons else None


ROWS: tuple[Callable[[Case], Decision | None], ...] = (unknown, locked, blocked, newer, unproven, failing, current)


def items(release: Release, observed: Observed, wanted: Mapping[str, Wanted], choices: Choices) -> list[Item]:
    """Everything the plan says of a release of which only evidence is published. ``observed`` is what ``records:`` holds."""
    place = index(observed, [sae.id for sae in release.saes])
    saes = [*_sae_items(release, place, wanted, choices), *_strays(release, place, choices)]
    return [*saes, _release_item(release, observed, saes)]


def _sae_items(release: Release, place: Place, wanted: Mapping[str, Wanted], choices: Choices) -> Iterator[Item]:
    for sae in release.saes if not release.retire else ():
        asked = wanted.get(sae.address)
        if asked is None:
            continue
        # The record names no folders, so that other releases may hold evidence of SAEs that are called the same.
        case = replace(make_case(release, sae, asked, place, {}, None, choices), others=())
        yield item_of(case, ROWS)


def _strays(release: Release, place: Place, choices: Choices) -> Iterator[Item]:
    """Evidence of SAEs that no manifest asks for any more: listed, and deleted on request."""
    record = place.observed.records.get(release.name)
    asked = set() if release.retire else {sae.id for sae in release.saes}
    pruned = release.name in choices.prune
    choice = "prune" if pruned else "retire" if release.retire else None
    for sae_id in sorted(record.saes.keys() - asked) if record is not None else ():
        item = Item(
            release.name,
            sae_id,
            Status.ORPHANED,
            reasons=(Reason(ReasonCode.ORPHAN),),
            origin=release.origin,
            basis=basis.of_orphan(release, place, sae_id, choice),
        )
        if choice is not None:
            why = Reason(ReasonCode.PRUNE if pruned else ReasonCode.RETIRE)
            item = replace(item, status=Status.RETIRED, steps=(StepKind.DELETE,), reasons=(why,))
        yield item


def _release_item(release: Release, observed: Observed, saes: Sequence[Item]) -> Item:
    """The release as a whole: the place of its record."""
    record = observed.records.get(release.name)
    about = basis.of_release(release, observed, None, None if record is None else record.card)
    item = Item(release.name, None, Status.CURRENT, origin=release.origin, basis=about)
    if observed.unknown is not None:
        return replace(item, status=Status.UNKNOWN, held=True, reasons=(observed.unknown,))
    if release.name in observed.locked:
        return replace(item, status=Status.LOCKED, held=True, reasons=(observed.locked[release.name],))
    if not observed.exists and any(sae.steps for sae in saes):
        reason = Reason(ReasonCode.REPO_MISSING, {"location": observed.location})
        return replace(item, status=Status.ABSENT, steps=(StepKind.CREATE,), reasons=(reason,))
    return item


def _evidence(case: Case) -> Evidence | None:
    """What is recorded under the key asked for. It names the source's content, so that a changed source is a new question."""
    return None if case.entry is None else case.entry.current_under(case.measure_key)


def _unproven_because(case: Case) -> tuple[Reason, ...]:
    spec, measure = case.sae.validate, case.inputs.measure
    if spec is None or measure is None:
        return ()
    evidence = _evidence(case)
    if evidence is not None:
        return unmeasured(evidence, spec.require)
    if case.entry is None or not case.entry.evidence:
        return (Reason(ReasonCode.NOT_MEASURED, {"asked": True}),)
    earlier, weights = case.entry.evidence[0].inputs, case.entry.inputs.get("weights", {})
    before = {**{name: weights.get(name) for name in case.inputs.weights}, **{name: earlier.get(name) for name in measure}}
    return changed(before, {**case.inputs.weights, **measure}) or (Reason(ReasonCode.NOT_MEASURED, {"asked": True}),)

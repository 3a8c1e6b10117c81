"""The planner's table, per SAE: the first row of ``ROWS`` that matches decides. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from saesync.folders import is_native
from saesync.model import SAE_FILES, WEIGHTS_FILE, Item, Observed, Release, Status, StepKind
from saesync.nothing import nothing
from saesync.planning import basis
from saesync.planning.case import Case
from saesync.reason import Reason, ReasonCode
from saesync.record import Evidence, Record, SaeRecord
from saesync.verdict import changed, judge, misses_of_native, newer_version, unmeasured, versions

_FORMAT, _CONVERTER = "source.format", "source.converter"


@dataclass(frozen=True, slots=True)
class Decision:
    """What a row says. ``choice`` names the command-line permission it rests on."""

    status: Status
    steps: tuple[StepKind, ...] = ()
    reasons: tuple[Reason, ...] = ()
    held: bool = False
    move_from: str | None = None
    choice: str | None = None


def hold(status: Status, *reasons: Reason) -> Decision:
    """Skipped by apply, and named."""
    return Decision(status, reasons=reasons, held=True)


# ---------------------------------------------------------------------------------------- the table, row by row


def unknown(case: Case) -> Decision | None:
    """The location is not visible: nothing can be said, least of all "absent"."""
    reason = case.place.observed.unknown
    return None if reason is None else hold(Status.UNKNOWN, reason)


def locked(case: Case) -> Decision | None:
    """The record is newer than this saesync, or unreadable."""
    reason = case.place.observed.locked.get(case.release.name)
    return None if reason is None else hold(Status.LOCKED, reason)


def taken(case: Case) -> Decision | None:
    """The folder belongs to another release."""
    if not case.others:
        return None
    freed = {"pruned": True} if case.freed else {}
    return hold(Status.TAKEN, Reason(ReasonCode.TAKEN_BY, {"release": case.others[0], "asked": True, **freed}))


def blocked(case: Case) -> Decision | None:
    """What is asked cannot be known or done here."""
    reason = case.wanted.blocked
    if reason is None:
        return None
    return hold(Status.UNKNOWN if reason.code is ReasonCode.NOT_VISIBLE else Status.HELD, reason)


def unseen_evidence(case: Case) -> Decision | None:
    """Weights would have to be made, and whether they were measured before stands where we cannot look."""
    place = case.elsewhere
    if place is None or case.sae.validate is None or not case.builds:
        return None
    if place.unknown is not None:
        return hold(Status.UNKNOWN, place.unknown)
    reason = place.locked.get(case.release.name)
    return None if reason is None else hold(Status.LOCKED, reason)


def failed_before(case: Case) -> Decision | None:
    """Weights would have to be made, but these very keys were measured already and miss a requirement."""
    reasons = case.misses if case.builds else ()
    source = case.spares.get(case.build_key or "")
    return Decision(Status.FAILING, reasons=reasons, move_from=source) if reasons else None


def moved(case: Case) -> Decision | None:
    """Nothing here (or half a copy), but an orphan of this release is exactly what is asked: it is copied inside the target.

    A new address is held to its requirements as a new SAE is: what is known to miss them is not copied.
    """
    source = case.spares.get(case.build_key or "")
    if source is None or case.record is None or case.entry is not None or (case.files and not case.pending):
        return None
    evidence = case.record.saes[source].evidence_for(case.measure_key, _weights_of(case.record, source))
    require = case.sae.validate.require if case.sae.validate else ()
    if evidence is not None and (misses := judge(evidence, require)):
        return Decision(Status.FAILING, reasons=misses, move_from=source)
    reasons = (Reason(ReasonCode.MOVED_FROM, {"id": source}), *unproven_because(case, source))
    return Decision(Status.MOVED, _steps(case, StepKind.MOVE, source), reasons, move_from=source)


def absent(case: Case) -> Decision | None:
    """Nothing here, or only what an interrupted run of ours left."""
    if case.entry is not None or (case.files and not case.pending):
        return None
    if case.pending:
        return build(case, Status.ABSENT, Reason(ReasonCode.RESUMED))
    return build(case, Status.ABSENT, Reason(ReasonCode.NOT_PUBLISHED, {"location": case.place.observed.location}))


def foreign(case: Case) -> Decision | None:
    """Files that no record of ours names. Those that are no SAE in SAELens's layout are nothing to be taken over."""
    if case.entry is not None:
        return None
    if case.adopt and case.lacking is None:
        return replace(
            build(case, Status.FOREIGN, Reason(ReasonCode.ADOPT), adopt=True),
            choice="adopt",
        )
    if case.replace:
        why = Reason(ReasonCode.REPLACE, _written_over(case))
        return replace(build(case, Status.FOREIGN, why), choice="replace")
    lacking = {} if case.lacking is None else {"missing": case.lacking}
    return hold(Status.FOREIGN, Reason(ReasonCode.FOREIGN_FILES, {"files": len(case.files), **lacking}))


def _written_over(case: Case) -> dict[str, Any]:
    """Which files of others a build writes over; none other is touched. The authors' own go under ``native/``, if at all."""
    written = [name for name in case.files if name in SAE_FILES or (case.release.native and is_native(name))]
    if not written:
        return {"files": 0, "file": None, "stay": len(case.files)}
    first = min(written, key=lambda name: (name not in SAE_FILES, name))  # those that are surely written over go first
    return {"files": len(written), "file": first, "stay": len(case.files) - len(written)}


def drifted(case: Case) -> Decision | None:
    """The files are not what the record says; an interrupted run of ours does not count as drift."""
    if case.damage is None:
        return None
    if case.half_labelled:
        reasons = (Reason(ReasonCode.RESUMED), *unproven_because(case, case.sae.id))
        return Decision(Status.RELABEL, _steps(case, StepKind.RELABEL, case.sae.id), reasons)
    if case.half_built:
        return build(case, Status.OUTDATED, Reason(ReasonCode.RESUMED))
    if case.replace:
        return replace(build(case, Status.DRIFTED, Reason(ReasonCode.REPLACE), case.damage), choice="replace")
    return hold(Status.DRIFTED, case.damage)


def newer(case: Case) -> Decision | None:
    """A newer saesync converts or measures otherwise: what it published is not put back to what this one knows."""
    return made_newer(case, bool(unproven_because(case, case.sae.id)))


def made_newer(case: Case, unproven: bool) -> Decision | None:
    """Held where the record names a higher version of the converter than ours, or, where the numbers asked for are not there, of
    a metric's definition."""
    entry = _entry(case)
    recorded, ours = entry.inputs.get("weights", nothing()), case.inputs.weights
    same_format = recorded.get(_FORMAT) == ours.get(_FORMAT)
    found = newer_version({_CONVERTER: recorded.get(_CONVERTER)}, ours) if same_format else None
    if found is None and unproven and entry.evidence and case.inputs.measure is not None:
        found = newer_version(versions(entry.evidence[0].inputs), versions(case.inputs.measure))
    return None if found is None else hold(Status.HELD, found)


def native(case: Case) -> Decision | None:
    """Its authors' own files are published, for SAELens cannot express it: as asked, while the same is asked and allowed. Its
    keys hold the converter's version, so that a converter that learned more is asked again. Requirements are never met."""
    entry = _entry(case)
    if entry.native is None:
        return None
    if not case.release.native:
        return build(
            case, Status.OUTDATED, Reason(ReasonCode.CHANGED, {"name": "publish.native", "before": True, "after": False})
        )
    if entry.build_key != case.build_key:
        part = "build" if entry.weights_key == case.inputs.weights_key else "weights"
        return build(case, Status.OUTDATED, *_differences(case, part))
    missed = misses_of_native(entry.native, case.sae)
    return Decision(Status.FAILING if len(missed) > 1 else Status.NATIVE, reasons=missed)


def outdated(case: Case) -> Decision | None:
    """Other weights are asked for."""
    entry = _entry(case)
    if entry.build_key == case.build_key or entry.weights_key == case.inputs.weights_key:
        return None
    return build(case, Status.OUTDATED, *_differences(case, "weights"))


def relabel(case: Case) -> Decision | None:
    """The same weights under another cfg: it is rewritten, weights and evidence stay."""
    if _entry(case).build_key == case.build_key:
        return None
    reasons = (*_differences(case, "build"), *unproven_because(case, case.sae.id))
    return Decision(Status.RELABEL, _steps(case, StepKind.RELABEL, case.sae.id), reasons)


def unproven(case: Case) -> Decision | None:
    """Published, but the numbers asked for were never measured on these bytes."""
    reasons = unproven_because(case, case.sae.id)
    return Decision(Status.UNPROVEN, _steps(case, None, case.sae.id), reasons) if reasons else None


def failing(case: Case) -> Decision | None:
    """Published, measured, and short of a requirement: it stays, marked."""
    evidence = _published_evidence(case, case.sae.id)
    if evidence is None or case.sae.validate is None:
        return None
    reasons = judge(evidence, case.sae.validate.require)
    return Decision(Status.FAILING, reasons=reasons) if reasons else None


def current(case: Case) -> Decision:
    """All is as asked."""
    return Decision(Status.CURRENT)


ROWS: tuple[Callable[[Case], Decision | None], ...] = (
    unknown,
    locked,
    taken,
    blocked,
    unseen_evidence,
    failed_before,
    moved,
    absent,
    foreign,
    drifted,
    newer,
    native,
    outdated,
    relabel,
    unproven,
    failing,
    current,
)


def item_of(case: Case, rows: Iterable[Callable[[Case], Decision | None]] = ROWS) -> Item:
    """What the plan says of an SAE: the first row that matches, then what this machine and this location may not do."""
    decision = next(found for row in rows if (found := row(case)) is not None)
    for limit in (_over_others, _without_source, _without_trainer, _in_public):
        decision = limit(case, decision)
    return Item(
        case.release.name,
        case.sae.id,
        decision.status,
        decision.steps,
        decision.held,
        decision.reasons,
        case.sae.origin,
        basis.of_sae(case, decision.choice, full=decision.status is not Status.CURRENT),
        decision.move_from,
    )


def _over_others(case: Case, decision: Decision) -> Decision:
    """What somebody put where a build would write is not written over unasked."""
    if StepKind.CONVERT not in decision.steps or case.replace:
        return decision
    reason = case.in_the_way
    return decision if reason is None else hold(Status.DRIFTED, reason)


def _without_source(case: Case, decision: Decision) -> Decision:
    note = case.wanted.not_here
    if note is None or not (decision.steps or decision.status in (Status.CURRENT, Status.NATIVE)):
        return decision
    if decision.steps:
        return hold(Status.HELD, note, *decision.reasons)
    return replace(decision, reasons=(*decision.reasons, note))


def _without_trainer(case: Case, decision: Decision) -> Decision:
    if case.sae.source is not None or StepKind.CONVERT not in decision.steps:
        return decision
    return hold(Status.HELD, Reason(ReasonCode.NOT_IN_THIS_VERSION, {"section": "train"}))


def _in_public(case: Case, decision: Decision) -> Decision:
    """A public repo is never used for ``private: true``."""
    reason = visibility_differs(case.release, case.place.observed) if decision.steps else None
    return decision if reason is None or reason.data["asked"] != "private" else hold(Status.HELD, reason)


# --------------------------------------------------------------------------------------------- what rows share


def build(case: Case, status: Status, *reasons: Reason, adopt: bool = False) -> Decision:
    """Everything from the source on. Gates stand between convert and publish."""
    steps = [StepKind.FETCH, StepKind.CONVERT]
    if adopt:
        steps.append(StepKind.ADOPT)
    if case.measure_key is not None:
        steps.append(StepKind.VALIDATE)
    else:
        reasons = (*reasons, Reason(ReasonCode.NOT_MEASURED, {"asked": False}))
    return Decision(status, (*steps, StepKind.PUBLISH), reasons)


def unproven_because(case: Case, sae_id: str) -> tuple[Reason, ...]:
    """Why the recorded SAE ``sae_id`` lacks the numbers asked for; empty when it has them, or none are asked."""
    spec, measure = case.sae.validate, case.inputs.measure
    if measure is None:
        return ()
    evidence = _published_evidence(case, sae_id)
    if evidence is not None:
        return unmeasured(evidence, spec.require if spec else ())
    earlier = case.record.saes[sae_id].evidence if case.record else ()
    known = changed({name: earlier[0].inputs.get(name) for name in measure}, measure) if earlier and earlier[0].inputs else ()
    return known or (Reason(ReasonCode.NOT_MEASURED, {"asked": True}),)


def _steps(case: Case, change: StepKind | None, sae_id: str) -> tuple[StepKind, ...]:
    """Steps on published weights: measured again only when the numbers asked for are not there."""
    change_steps = () if change is None else (change,)
    if unproven_because(case, sae_id):
        return (StepKind.FETCH, *change_steps, StepKind.VALIDATE, StepKind.PUBLISH)
    return (*change_steps, StepKind.PUBLISH)


def _published_evidence(case: Case, sae_id: str) -> Evidence | None:
    if case.record is None or case.measure_key is None:
        return None
    return case.record.saes[sae_id].evidence_for(case.measure_key, _weights_of(case.record, sae_id))


def _weights_of(record: Record, sae_id: str) -> str | None:
    found = record.saes[sae_id].files.get(WEIGHTS_FILE)
    return None if found is None else found.sha256


def _differences(case: Case, part: str) -> tuple[Reason, ...]:
    """Inputs that differ from the record's, by name; the keys themselves when the record does not hold them."""
    entry = _entry(case)
    inputs = case.inputs.weights if part == "weights" else case.inputs.build
    recorded = entry.inputs.get(part)
    named = () if recorded is None else changed(recorded, inputs)
    return named or (Reason(ReasonCode.CHANGED, {"name": part, "before": entry.build_key, "after": case.build_key}),)


def _entry(case: Case) -> SaeRecord:
    if case.entry is None:
        raise ValueError(f"{case.sae.address} is not in the record")
    return case.entry


def visibility_differs(release: Release, observed: Observed) -> Reason | None:
    """Why the repo found cannot be the one asked for; None when it can, or when there is none yet."""
    if release.publish is None or observed.visibility is None:
        return None
    asked = "private" if release.publish.private else "public"
    if asked == observed.visibility:
        return None
    return Reason(ReasonCode.VISIBILITY, {"asked": asked, "found": observed.visibility})

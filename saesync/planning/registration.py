"""The planner's rows for a release's entry in SAELens's list of pretrained SAEs: what stands there, what should. Pure."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from saesync.errors import SaesyncError
from saesync.model import Item, RegisterSpec, Release, Status, StepKind
from saesync.nothing import nothing
from saesync.planning import basis
from saesync.reason import Reason, ReasonCode
from saesync.record import Record
from saesync.registry.entry import Entry, digest_of, entry_of, same_meaning

SECTION = "register"
MOST_CHANGES = 5  # named one by one; more are counted


@dataclass(frozen=True, slots=True)
class Pull:
    """Our newest pull request for a release. ``digest`` is that of the entry it was opened or updated with, if it says so;
    ``checks`` are those that fail or wait for somebody (a contributor licence to be signed, say)."""

    number: int
    url: str
    state: str  # "open" | "closed" | "merged"
    digest: str | None = None
    checks: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Seen:
    """What a registry says of one release, at one instant.

    ``kind`` is "github", "git" (no pull requests) or "file" (no branches either). ``entry`` stands on the default branch,
    ``branch`` on ours; ``taken`` maps Neuronpedia ids to the other release that has them. ``at`` names registry and commit.
    """

    registry: str
    kind: str
    at: str
    entry: Entry | None = None
    branch: Entry | None = None
    pull: Pull | None = None
    taken: Mapping[str, str] = field(default_factory=nothing)
    unknown: Reason | None = None
    pulls_unknown: Reason | None = None  # the list could be read, its pull requests could not
    writer: str | None = None  # who wrote the release's record last, where a policy asks
    trusted: bool = True  # whether that account's records count as evidence


@dataclass(frozen=True, slots=True)
class _Case:
    """A release before the rows. ``fit`` are the SAEs that may stand in the entry now, ``unfit`` those that keep it waiting;
    ``native`` those that SAELens could not load, ``pending`` counts SAEs that have steps of their own first."""

    release: Release
    spec: RegisterSpec
    seen: Seen
    desired: Entry | None
    refused: Reason | None
    unfit: tuple[str, ...]
    pending: int
    native: tuple[str, ...] = ()

    @property
    def asked(self) -> int:
        return len(self.release.saes)

    def digest(self) -> str | None:
        return None if self.desired is None else digest_of(self.desired)


_Said = tuple[Status, tuple[StepKind, ...], bool, tuple[Reason, ...]]
_Row = Callable[[_Case], _Said | None]


def native_saes(release: Release, record: Record | None) -> tuple[str, ...]:
    """SAEs of a release that are published as their authors' own files."""
    entries = record.saes if record is not None else {}
    return tuple(sae.id for sae in release.saes if sae.id in entries and entries[sae.id].native is not None)


def fit_for_entry(
    release: Release, saes: Sequence[Item], entry: Entry | None, native: Collection[str] = ()
) -> tuple[frozenset[str], tuple[str, ...], int]:
    """Which SAEs may stand in the entry, which may not (yet), and how many have steps first.

    What is registered already stays so: a requirement missed later marks an SAE, and takes nothing back. ``native`` SAEs are of
    none of the three: nobody could load them.
    """
    registered = {sae.id for sae in entry.saes} if entry is not None else set()
    by_id = {item.id: item for item in saes if item.release == release.name and item.id is not None}
    fit, unfit, pending = set(), [], 0
    for sae in release.saes:
        item = by_id.get(sae.id)
        if sae.id in native and not (item is not None and item.steps):
            continue
        if item is None or item.status is Status.CURRENT or (not item.steps and sae.id in registered):
            fit.add(sae.id)
        elif item.steps and not item.held:
            pending += 1
        else:
            unfit.append(sae.id)
    return frozenset(fit), tuple(unfit), pending


def registration_item(release: Release, seen: Seen, saes: Sequence[Item], record: Record | None, waits: Reason | None) -> Item:
    """What the plan says of the release's entry. ``saes`` are its SAEs' items, ``record`` its published record.

    ``waits`` is why registration has to wait whatever else is true (a publication that is not merged yet).
    """
    spec = release.register
    if spec is None:
        raise ValueError(f"{release.name} does not register")
    case = _case(release, spec, seen, saes, record)
    status, steps, held, reasons = _waiting(case, waits) or next(said for row in ROWS if (said := row(case)) is not None)
    return Item(release.name, None, status, steps, held, reasons, spec.origin or release.origin, _basis(case, steps))


def _case(release: Release, spec: RegisterSpec, seen: Seen, saes: Sequence[Item], record: Record | None) -> _Case:
    if release.retire:
        return _Case(release, spec, seen, None, None, (), sum(bool(item.steps) for item in saes))
    native = native_saes(release, record)
    fit, unfit, pending = fit_for_entry(release, saes, seen.entry, native)
    desired, refused = None, None
    if fit and not pending and (spec.partial or not (unfit or native)):
        try:
            desired = entry_of(release, record, only=fit, conversion_func=spec.conversion_func)
        except SaesyncError as error:
            refused = Reason(ReasonCode.ENTRY_REFUSED, {"detail": error.diagnostics[0].detail})
    return _Case(release, spec, seen, desired, refused, unfit, pending, native)


# ---------------------------------------------------------------------------------------- the rows, first match wins


def _hold(status: Status, *reasons: Reason) -> _Said:
    return status, (), True, reasons


def _wait(*reasons: Reason) -> _Said:
    return Status.WAITING, (), False, reasons


def _do(status: Status, *reasons: Reason) -> _Said:
    return status, (StepKind.REGISTER,), False, reasons


def _waiting(case: _Case, waits: Reason | None) -> _Said | None:
    return _wait(waits) if waits is not None and case.seen.unknown is None else None


def _unknown(case: _Case) -> _Said | None:
    return None if case.seen.unknown is None else _hold(Status.UNKNOWN, case.seen.unknown)


def _not_on_hub(case: _Case) -> _Said | None:
    """SAELens loads from the Hub only: what is published to a folder cannot be in its list."""
    publish = case.release.publish
    if publish is None or publish.target == "huggingface":
        return None
    return _hold(Status.HELD, Reason(ReasonCode.NOT_ON_HUB, {"location": publish.location}))


def _retired(case: _Case) -> _Said | None:
    if not case.release.retire:
        return None
    seen, pull = case.seen, case.seen.pull
    if seen.entry is None:
        return Status.CURRENT, (), False, ()
    if pull is not None and pull.state == "open" and seen.branch is None:
        return _wait(_review(pull))
    return _do(Status.OUTDATED, Reason(ReasonCode.RETIRE))


def _native(case: _Case) -> _Said | None:
    """SAELens cannot load them: the release can be registered without them only, or not at all."""
    others = case.asked - len(case.native)
    if not case.native or case.pending or (case.spec.partial and others):
        return None
    return _hold(Status.HELD, Reason(ReasonCode.NATIVE_SAES, {"count": len(case.native), "of": case.asked}))


def _after_saes(case: _Case) -> _Said | None:
    """SAEs come first: their numbers stand in the entry."""
    if not case.pending:
        return None
    if case.unfit and not case.spec.partial:
        return _wait(Reason(ReasonCode.WAITS_FOR, {"count": len(case.unfit), "of": case.asked}))
    said = Reason(ReasonCode.AFTER_SAES, {"count": case.asked, "partial": case.spec.partial})
    return _do(Status.ABSENT if case.seen.entry is None else Status.OUTDATED, said)


def _unfit(case: _Case) -> _Said | None:
    if case.desired is not None or case.refused is not None:
        return None
    return _wait(Reason(ReasonCode.WAITS_FOR, {"count": len(case.unfit), "of": case.asked}))


def _refused(case: _Case) -> _Said | None:
    if case.refused is not None:
        return _hold(Status.HELD, case.refused)
    for sae in case.desired.saes if case.desired is not None else ():
        other = case.seen.taken.get(sae.neuronpedia or "")
        if other is not None:
            return _hold(Status.HELD, Reason(ReasonCode.NEURONPEDIA_TAKEN, {"id": sae.neuronpedia, "release": other}))
    return None


def _current(case: _Case) -> _Said | None:
    return (Status.CURRENT, (), False, ()) if _same(case.desired, case.seen.entry) else None


def _pulls_unknown(case: _Case) -> _Said | None:
    """Something has to be done, and it may be proposed already: a second pull request is never risked."""
    reason = case.seen.pulls_unknown
    return None if reason is None else _hold(Status.UNKNOWN, reason)


def _untrusted(case: _Case) -> _Said | None:
    """Anybody with write access may have written the record: what is registered rests on accounts the policy names."""
    if case.seen.trusted:
        return None
    return _hold(Status.UNPROVEN, Reason(ReasonCode.RECORD_BY, {"account": case.seen.writer}))


def _proposed(case: _Case) -> _Said | None:
    """Our branch says it: what is missing is somebody else's review, or only the pull request."""
    seen, pull = case.seen, case.seen.pull
    if not _same(case.desired, seen.branch):
        return None
    if seen.kind == "git":
        return _wait(Reason(ReasonCode.BRANCH_PUSHED, {"branch": branch_of(case.release.name)}))
    return _wait(_review(pull)) if pull is not None and pull.state == "open" else None


def _declined(case: _Case) -> _Said | None:
    """A maintainer closed this very entry: it is not sent again unasked."""
    pull = case.seen.pull
    if pull is None or pull.state != "closed" or pull.digest is None or pull.digest != case.digest():
        return None
    return _hold(Status.HELD, Reason(ReasonCode.DECLINED, {"number": pull.number, "url": pull.url}))


def _behind(case: _Case) -> _Said:
    seen, pull = case.seen, case.seen.pull
    if seen.kind == "github" and pull is not None and pull.state == "open":
        return _do(Status.OUTDATED, *changes(seen.branch, case.desired))
    if seen.entry is None:
        return _do(Status.ABSENT, Reason(ReasonCode.NOT_REGISTERED, {"registry": seen.registry}))
    return _do(Status.OUTDATED, *changes(seen.entry, case.desired))


ROWS: tuple[_Row, ...] = (
    _unknown,
    _not_on_hub,
    _retired,
    _native,
    _after_saes,
    _unfit,
    _refused,
    _current,
    _pulls_unknown,
    _proposed,
    _untrusted,
    _declined,
    _behind,
)


# --------------------------------------------------------------------------------------------------- what rows share


def branch_of(release: str) -> str:
    """The branch of a registry on which a release is proposed."""
    return f"saesync/{release}"


def changes(before: Entry | None, after: Entry | None) -> tuple[Reason, ...]:
    """What differs between two entries, by name; many SAEs are counted."""
    if before is None or after is None:
        return (Reason(ReasonCode.CHANGED, {"name": "entry", "before": _count(before), "after": _count(after)}),)
    found = [_change(name, getattr(before, name), getattr(after, name)) for name in ("repo_id", "model", "conversion_func")]
    found += [_change(name, dict(getattr(before, name)), dict(getattr(after, name))) for name in ("links", "config_overrides")]
    old, new = ({sae.id: sae for sae in entry.saes} for entry in (before, after))
    found.append(_change("SAEs", len(old), len(new)))
    for sae_id in [name for name in new if name in old]:
        for name in ("path", "l0", "variance_explained", "neuronpedia", "norm_scaling_factor"):
            found.append(_change(f"{name} of {sae_id}", getattr(old[sae_id], name), getattr(new[sae_id], name)))
    named = [reason for reason in found if reason is not None]
    if set(old) != set(new) and len(old) == len(new):
        named.append(Reason(ReasonCode.CHANGED, {"name": "SAEs", "before": "others", "after": "as asked"}))
    if len(named) > MOST_CHANGES:
        more = Reason(ReasonCode.CHANGED, {"name": "entry", "before": "", "after": f"{len(named) - MOST_CHANGES} more changes"})
        named = [*named[:MOST_CHANGES], more]
    return tuple(named)


def _change(name: str, before: Any, after: Any) -> Reason | None:
    if before == after:
        return None
    flat = [value if isinstance(value, str | int | float | None) else str(value) for value in (before, after)]
    return Reason(ReasonCode.CHANGED, {"name": name, "before": flat[0], "after": flat[1]})


def _count(entry: Entry | None) -> str:
    return "none" if entry is None else f"{len(entry.saes)} SAEs"


def _same(asked: Entry | None, found: Entry | None) -> bool:
    return asked is not None and found is not None and same_meaning(asked, found)


def _review(pull: Pull) -> Reason:
    return Reason(ReasonCode.WAITS_FOR_REVIEW, {"number": pull.number, "url": pull.url, "checks": ", ".join(pull.checks)})


def _basis(case: _Case, steps: tuple[StepKind, ...]) -> basis.Basis:
    """``entry`` and ``does`` are derived or said only, and not compared; the rest is what was asked and observed."""
    seen, spec = case.seen, case.spec
    pull = seen.pull
    return {
        basis.SECTION: SECTION,
        "at": seen.at,
        "entry": case.digest(),
        "does": _does(case) if steps else None,
        "number": pull.number if pull is not None else None,
        "asked.registry": spec.registry,
        "asked.partial": spec.partial,
        "asked.retire": case.release.retire,
        "asked.entry": _declared(case.release, spec),
        "observed.visible": seen.unknown is None,
        "observed.entry": None if seen.entry is None else digest_of(seen.entry),
        "observed.branch": None if seen.branch is None else digest_of(seen.branch),
        "observed.pull": None if pull is None else f"#{pull.number} {pull.state}",
    }


def _declared(release: Release, spec: RegisterSpec) -> str | None:
    """What of the entry does not depend on measurements."""
    if release.retire or not release.saes:
        return None
    try:
        bare = entry_of(release, None, conversion_func=spec.conversion_func)
    except SaesyncError:
        return None
    return digest_of(bare)


def _does(case: _Case) -> str:
    """What the step does: a word of ``render.fold``."""
    seen, pull = case.seen, case.seen.pull
    if seen.kind == "file":
        return "add" if seen.entry is None else "remove" if case.release.retire else "change"
    if seen.kind == "git":
        return "push"
    return "update" if pull is not None and pull.state == "open" else "open"

"""The planner: what is asked and what is observed in, a plan out. Pure: no I/O, no clock, no heavy imports.

``table`` decides per SAE; here are the orphans, the releases as a whole, and the plan's digest.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

from saesync.card import card_digest, card_found
from saesync.keys import Wanted
from saesync.model import CARD_FILE, Choices, Item, Observed, Plan, PublishSpec, Refusal, Release, Status, StepKind
from saesync.nothing import nothing
from saesync.planning import basis, evidence_only, proposing, tagging
from saesync.planning.case import Place, altered, damage, index, make_case, matches
from saesync.planning.digests import digests_of
from saesync.planning.registration import Seen, registration_item
from saesync.planning.table import item_of, visibility_differs
from saesync.reason import Reason, ReasonCode
from saesync.record import Record

Location = tuple[str, str]
REGISTER = "register"
REWRITES = frozenset({StepKind.PUBLISH, StepKind.DELETE})


def plan(
    releases: Sequence[Release],
    wanted: Mapping[str, Wanted],
    observed: Mapping[Location, Observed],
    choices: Choices,
    named: Collection[str] = (),
    registries: Mapping[str, Seen] = MappingProxyType({}),
) -> Plan:
    """What has to be done so that everything is as asked.

    ``wanted`` is by address; SAEs without an entry are left out. ``observed`` is by (target, location) and holds every
    release's place. ``named`` are the releases of the folder's other manifests: what stands in a record but in no manifest
    at all is an orphan, so they have to be known. ``registries`` says of each release that registers what stands there.

    Raises:
        KeyError: a release's place, or its registry, was not observed.
    """
    chosen = [*releases, *_unlisted(releases, observed, choices, named)]
    places = _index(chosen, observed)
    items: list[Item] = []
    for release in chosen:
        if release.publish is None:
            evidence: list[Item] = []
            if release.home is not None:
                evidence = list(evidence_only.items(release, observed[_location(release.home)], wanted, choices))
            items += [*evidence, *_registration(release, observed, registries, evidence), *_sections(release)]
            continue
        place = places[_location(release.publish)]
        elsewhere = observed.get(_location(release.records)) if release.records is not None else None
        asked = list(_sae_items(release, place, wanted, elsewhere, choices))
        needed = {item.move_from: item.id for item in asked if item.move_from is not None and not item.steps}
        saes = [*asked, *_orphans(release, place, choices, needed)]
        whole = _whole_release(release, place, saes, choices)
        items += [*whole, *_registration(release, observed, registries, whole), *_sections(release)]
    return _plan(items, chosen)


def _whole_release(release: Release, place: Place, saes: Sequence[Item], choices: Choices) -> list[Item]:
    """The SAEs' items, the release's own and its tag's, after what a pull request cannot bring."""
    observed = place.observed
    tag = tagging.tag_item(release, observed, saes, choices)
    *saes, whole = proposing.limit(release, observed, [*saes, _release_item(release, place, saes)])
    reason = proposing.waiting(release, observed, [*saes, whole])
    if reason is not None and not whole.held:
        whole = replace(whole, status=Status.WAITING, reasons=(reason,))
    return [*saes, whole, *([tag] if tag is not None else [])]


def select(plan: Plan, only: Sequence[str]) -> Plan:
    """The part of a plan whose SAE addresses match one of the globs, with the releases they belong to; all without globs."""
    if not only:
        return plan
    kept = [item for item in plan.items if item.id is not None and matches(only, item.address)]
    names = {item.release for item in kept}
    publishing = {item.release for item in kept if REWRITES & set(item.steps)}
    left_out = {item.release for item in plan.pending if item.id is not None and not matches(only, item.address)}
    items = []
    for item in plan.items:
        if item.id is None and (item.release in names or (matches(only, item.release) and _alone(plan, item.release))):
            idle = StepKind.CREATE in item.steps and item.release not in publishing
            early = StepKind.REGISTER in item.steps and item.release in left_out
            status = Status.WAITING if early else Status.CURRENT
            kept_item = tagging.without_others(item) if item.release in left_out else item
            stripped = replace(item, status=status, steps=(), reasons=item.reasons if early else ())
            items.append(stripped if idle or early else kept_item)
        elif item.id is not None and matches(only, item.address):
            items.append(item)
    chosen = names | {item.release for item in items}
    return _plan(items, (release for release in plan.releases if release.name in chosen))


def part(plan: Plan, registering: bool) -> Plan:
    """Half of a plan: registration alone, or all but it. CI runs the two apart, for they need different tokens."""
    items = tuple(item if (StepKind.REGISTER in item.steps) is registering else replace(item, steps=()) for item in plan.items)
    return _plan(items, plan.releases)


def _alone(plan: Plan, release: str) -> bool:
    """Whether a release has nothing in the plan but itself: it only registers."""
    return all(item.id is None for item in plan.items if item.release == release)


def keep(plan: Plan, keys: Collection[tuple[str, str, str]]) -> Plan:
    """The part of a plan whose items have one of the keys (``planning.basis.key_of_item``): what somebody approved."""
    items = tuple(item for item in plan.items if basis.key_of_item(item) in keys)
    names = {item.release for item in items}
    return _plan(items, (release for release in plan.releases if release.name in names))


def hold(plan: Plan, refusals: Sequence[Refusal]) -> Plan:
    """The plan without what is not allowed: nothing of a release that would write to a refused place, and no entry in a refused
    registry. Held by name, whatever the table says; the other releases are as they were."""
    if not refusals:
        return plan
    whole, entries = (
        {each.release: each for each in reversed(refusals) if (each.section == REGISTER) is registering}
        for registering in (False, True)
    )
    items: list[Item] = []
    named = set(whole)
    for item in plan.items:
        refusal = whole.get(item.release) or (entries.get(item.release) if _enters(item) else None)
        items.append(item if refusal is None else _held(item, refusal))
        named |= {item.release} if refusal is not None else set()
    items += [_entry_held(refusal) for name, refusal in entries.items() if name not in named]
    return _plan(items, plan.releases)


def _enters(item: Item) -> bool:
    section = str(item.basis.get(basis.SECTION, ""))
    return StepKind.REGISTER in item.steps or section.partition(".")[0] == REGISTER


def _held(item: Item, refusal: Refusal) -> Item:
    origin = refusal.origin or item.origin
    return replace(item, status=Status.HELD, steps=(), held=True, reasons=(refusal.reason,), origin=origin, move_from=None)


def _entry_held(refusal: Refusal) -> Item:
    """Of a release whose entry is in no item."""
    named = {basis.SECTION: REGISTER}
    return Item(refusal.release, None, Status.HELD, (), True, (refusal.reason,), refusal.origin, named)


def _location(publish: PublishSpec) -> Location:
    return publish.target, publish.location


def _unlisted(
    releases: Sequence[Release], observed: Mapping[Location, Observed], choices: Choices, named: Collection[str]
) -> list[Release]:
    """Releases that stand in the record of a place but in no manifest: listed, and deleted when typed after --prune."""
    known = {*named, *(release.name for release in releases)}
    places = {_location(release.publish): release.publish.pull_request for release in releases if release.publish}
    found: dict[str, Release] = {}
    for (target, location), proposed in sorted(places.items()):
        seen = observed[target, location]
        for name, record in sorted(seen.records.items()):
            if name not in known and (record.saes or record.pending):
                publish = PublishSpec(target, location, private=seen.visibility == "private", pull_request=proposed)
                found.setdefault(name, Release(name, "", publish, (), retire=name in choices.prune))
    return list(found.values())


def _index(chosen: Sequence[Release], observed: Mapping[Location, Observed]) -> dict[Location, Place]:
    asked: dict[Location, list[str]] = {}
    for release in chosen:
        if release.publish is not None:
            asked.setdefault(_location(release.publish), []).extend(sae.id for sae in release.saes)
    return {location: index(observed[location], ids) for location, ids in asked.items()}


def _sae_items(
    release: Release, place: Place, wanted: Mapping[str, Wanted], elsewhere: Observed | None, choices: Choices
) -> Iterator[Item]:
    if release.retire:
        return
    spares = _spares(release, place)
    for sae in release.saes:
        asked = wanted.get(sae.address)
        if asked is None:
            continue
        yield item_of(make_case(release, sae, asked, place, spares, elsewhere, choices))


def _stray(release: Release, place: Place) -> list[str]:
    """Recorded SAEs that no manifest asks for any more, all of them when the release retires; and what an interrupted run left of
    such."""
    record = place.observed.records.get(release.name)
    asked = set() if release.retire else {sae.id for sae in release.saes}
    return [] if record is None else sorted({*record.saes, *(name for name in record.pending if name in place.folders)} - asked)


def _spares(release: Release, place: Place) -> dict[str, str]:
    """Undamaged orphans by build_key: what a renamed SAE is copied from. Not native ones: their refusal names their source."""
    found: dict[str, str] = {}
    for sae_id in _stray(release, place):
        entry = place.observed.records[release.name].saes.get(sae_id)
        if entry is not None and entry.native is None and damage(entry, place.folders.get(sae_id, nothing())) is None:
            found.setdefault(entry.build_key, sae_id)
    return found


def _orphans(release: Release, place: Place, choices: Choices, needed: Mapping[str, str | None]) -> Iterator[Item]:
    """Recorded SAEs that are asked for by nobody: listed, and deleted only on request and only when they are as recorded.

    ``needed`` are those that another SAE would be copied from, did it not miss its gate: they are the only copy of it.
    """
    pruned = release.name in choices.prune
    for sae_id in _stray(release, place):
        record, files = place.observed.records[release.name], place.folders.get(sae_id, nothing())
        item = Item(
            release.name,
            sae_id,
            Status.ORPHANED,
            reasons=(Reason(ReasonCode.ORPHAN),),
            origin=release.origin,
            basis=basis.of_orphan(release, place, sae_id, "prune" if pruned else "retire" if release.retire else None),
        )
        if pruned or release.retire:
            why = Reason(ReasonCode.PRUNE if pruned else ReasonCode.RETIRE)
            item = replace(item, status=Status.RETIRED, steps=(StepKind.DELETE,), reasons=(why,))
            reason = altered(record, sae_id, files)
            if others := place.others(release.name, sae_id):
                reason = reason or Reason(ReasonCode.TAKEN_BY, {"release": others[0]})
            if sae_id in needed:
                reason = reason or Reason(ReasonCode.NEEDED_BY, {"id": needed[sae_id]})
            if reason is not None:
                item = replace(item, steps=(), held=True, reasons=(reason, why))
        yield item


def _release_item(release: Release, place: Place, saes: Sequence[Item]) -> Item:
    """The release as a whole: its repo and its card. Always there, so that a plan file can name what changed."""
    observed = place.observed
    record = observed.records.get(release.name)
    card = card_digest(release, record, tagging.card_tag(release, observed, saes)) if record is not None else None
    found = _card_found(release, observed, record)
    item = Item(release.name, None, Status.CURRENT, origin=release.origin, basis=basis.of_release(release, observed, card, found))
    visibility = visibility_differs(release, observed)
    if observed.unknown is not None:
        return replace(item, status=Status.UNKNOWN, held=True, reasons=(observed.unknown,))
    if release.name in observed.locked:
        return replace(item, status=Status.LOCKED, held=True, reasons=(observed.locked[release.name],))
    if visibility is not None:
        return replace(item, status=Status.HELD, held=True, reasons=(visibility,))
    if not observed.exists and any(REWRITES & set(sae.steps) for sae in saes):
        reason = Reason(ReasonCode.REPO_MISSING, {"location": observed.location})
        return replace(item, status=Status.ABSENT, steps=(StepKind.CREATE,), reasons=(reason,))
    published = record is not None and bool(record.saes)  # else there is no card to keep up
    if release.manifest and published and found != card and not any(_rewrites_card(sae) for sae in saes):
        why = Reason(ReasonCode.CARD_EDITED if record is not None and record.card == card else ReasonCode.CARD_CHANGED)
        return replace(item, status=Status.OUTDATED, steps=(StepKind.CARD,), reasons=(why,))
    return item


def _card_found(release: Release, observed: Observed, record: Record | None) -> str | None:
    """Digest of the card that is there. A README that was too long to be read is taken to hold it: it cannot be written, too."""
    if record is None or observed.card_vouched:
        return None if record is None else record.card
    there = observed.files.get(CARD_FILE)
    unread = there is not None and there.size > 0 and observed.readme == ""
    return record.card if unread or not record.saes else card_found(release, record, observed.readme)


def _rewrites_card(item: Item) -> bool:
    """Whether the item ends in a commit (which holds the card) however its numbers turn out: no gate stands before it."""
    gated = StepKind.CONVERT in item.steps or {StepKind.MOVE, StepKind.VALIDATE} <= set(item.steps)
    return bool(REWRITES & set(item.steps)) and not gated


def _registration(
    release: Release, observed: Mapping[Location, Observed], registries: Mapping[str, Seen], items: Sequence[Item]
) -> Iterator[Item]:
    """The release's entry in SAELens's list, if it asks for one. ``items`` are all others of the release."""
    if release.register is None:
        return
    spec = release.publish or release.records
    place = observed[_location(spec)] if spec is not None else None
    record = place.records.get(release.name) if place is not None else None
    waits = proposing.registration_waits(release, place, items) if place is not None else None
    saes = [item for item in items if item.id is not None]
    yield registration_item(release, registries[release.name], saes, record, waits)


def _sections(release: Release) -> list[Item]:
    """Sections of a manifest that this version cannot carry out: held, never ignored."""
    served = release.publish is not None or release.register is not None or release.evidence_only
    later = release.later or (() if served else (("publish", release.origin),))
    return [
        Item(
            release.name,
            None,
            Status.HELD,
            held=True,
            reasons=(Reason(ReasonCode.NOT_IN_THIS_VERSION, {"section": section}),),
            origin=origin,
            basis={basis.SECTION: section},
        )
        for section, origin in later
    ]


def _plan(items: Sequence[Item], releases: Iterable[Release]) -> Plan:
    found = digests_of((basis.key_of_item(item), [str(step) for step in item.steps], item.basis) for item in items)
    return Plan(tuple(items), tuple(releases), found.whole, found.releases)

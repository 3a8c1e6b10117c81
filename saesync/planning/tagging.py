"""The tag of a release in the plan: made when the release is complete, held when somebody moved it. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from saesync.digest import short
from saesync.model import Choices, Item, Observed, Release, Status, StepKind
from saesync.planning import basis
from saesync.planning.case import matches
from saesync.reason import Reason, ReasonCode
from saesync.tags import shown_tag, tag_name, takes_tags

TAG = "tag"
COMPLETE = "complete"  # in the basis, not compared: whether nothing is missing once the plan is carried out
THERE, MOVED, ABSENT = "there", "moved", "missing"


def card_tag(release: Release, observed: Observed, saes: Sequence[Item]) -> str | None:
    """The tag that the card of the observed record should name."""
    done = _complete(release, saes) and not any(item.steps for item in saes)
    return shown_tag(release, observed.records.get(release.name), done, observed.tags, observed.moved)


def tag_item(release: Release, observed: Observed, saes: Sequence[Item], choices: Choices) -> Item | None:
    """What becomes of the release's tag; None for releases without tags. Always there, so that plan files can be compared."""
    if not (takes_tags(release) and release.manifest) or release.retire:
        return None
    record = observed.records.get(release.name)
    name = tag_name(record) if record is not None and record.saes else None
    state = ABSENT if name not in observed.tags else MOVED if name in observed.moved else THERE
    complete = _complete(release, saes)
    about = {basis.SECTION: TAG, COMPLETE: complete, **basis.of_tag(release, observed, state)}
    item = Item(release.name, None, Status.CURRENT, origin=release.origin, basis=about)
    pending = any(other.steps for other in saes)
    if not complete or (state == THERE and not pending):
        return item
    if pending or state == ABSENT:
        why = Reason(ReasonCode.NOT_TAGGED, {"tag": None if pending else name})
        return replace(item, status=Status.ABSENT, steps=(StepKind.TAG,), reasons=(why,))
    found = short(observed.tags[str(name)])
    why = Reason(ReasonCode.TAG_MOVED, {"tag": name, "found": found, "release": release.name})
    if not matches(choices.replace, release.name):
        return replace(item, status=Status.DRIFTED, held=True, reasons=(why,))
    allowed = {**about, "asked.choice": "replace"}
    return replace(item, status=Status.DRIFTED, steps=(StepKind.TAG,), reasons=(Reason(ReasonCode.REPLACE), why), basis=allowed)


def without_others(item: Item) -> Item:
    """The item when SAEs that it waits for are left out of the plan."""
    if item.basis.get(basis.SECTION) != TAG or StepKind.TAG not in item.steps:
        return item
    return replace(item, status=Status.CURRENT, steps=(), reasons=(), basis={**item.basis, COMPLETE: False})


def _complete(release: Release, saes: Sequence[Item]) -> bool:
    """Whether every SAE asked for is as asked, or will be when the plan is carried out."""
    asked = {sae.id for sae in release.saes}
    items = [item for item in saes if item.id in asked and StepKind.DELETE not in item.steps]
    whole = len(items) == len(asked) and bool(asked)
    return whole and all(item.status in (Status.CURRENT, Status.NATIVE) or bool(item.steps) for item in items)

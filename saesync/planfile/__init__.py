"""A plan as JSON: the one form that is saved, compared and rendered. A plan file is intent to compare, never instructions."""

from __future__ import annotations

import json
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from saesync import __version__
from saesync.cache import write_named
from saesync.errors import Missing, Origin, Refused
from saesync.inert import plain
from saesync.model import Item, Plan, Release, Sae, Status, StepKind
from saesync.planfile.compare import Difference, approved, check, check_here, compare
from saesync.planfile.view import show_json
from saesync.planning.basis import SECTION
from saesync.planning.digests import Digests, digests_of
from saesync.reason import ReasonCode

__all__ = [
    "TYPE",
    "VERSION",
    "Difference",
    "approved",
    "check",
    "check_here",
    "compare",
    "digests",
    "plan_json",
    "read",
    "show_json",
    "unedited",
    "verb_of",
    "write",
]

TYPE = "saesync-plan"
VERSION = 1
MAX_BYTES = 256 << 20
_LISTS = ("paths", "roots", "only", "adopt", "replace", "prune")
_VERBS: Mapping[Status, str] = {
    Status.ABSENT: "publish",
    Status.FOREIGN: "overwrite",
    Status.DRIFTED: "restore",
    Status.OUTDATED: "rebuild",
    Status.RELABEL: "relabel",
    Status.MOVED: "move",
    Status.UNPROVEN: "validate",
    Status.RETIRED: "delete",
}
# What one step of a release or SAE makes of the whole, whatever its status.
_STEP_VERBS = (
    (StepKind.CREATE, "create"),
    (StepKind.CARD, "card"),
    (StepKind.ADOPT, "adopt"),
    (StepKind.TAG, "tag"),
    (StepKind.REGISTER, "register"),
)


def verb_of(item: Item) -> str:
    """One word for what happens: what totals count by, and what a line of the plan says."""
    if item.held:
        return "unknown" if item.status is Status.UNKNOWN else "held"
    if not item.steps:
        return str(item.status)
    for step, verb in _STEP_VERBS:
        if step in item.steps:
            return verb
    return _VERBS[item.status]


def plan_json(
    plan: Plan, asked: Mapping[str, Sequence[str]] | None = None, scope: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The JSON form of a plan. ``asked`` is what stood on the command line, kept so that ``apply`` can ask the same again.

    ``complete`` says that nothing was out of sight. ``scope`` adds ``untrusted``, ``changed`` and ``review`` where the plan is of
    somebody's changes.
    """
    saes = {sae.address: sae for release in plan.releases for sae in release.saes}
    items = [_item(item, saes.get(item.address) if item.id is not None else None) for item in plan.items]
    return {
        "type": TYPE,
        "version": VERSION,
        "saesync": __version__,
        "digest": plan.digest,
        "asked": {name: list((asked or {}).get(name, ())) for name in _LISTS},
        "complete": not any(_unseen(item) for item in plan.items),
        **(scope or {}),
        "releases": [{**_release(release), "digest": plan.release_digests.get(release.name)} for release in plan.releases],
        "items": items,
        "totals": _totals(plan),
    }


def digests(data: Mapping[str, Any]) -> Digests:
    """The digests of a plan in its JSON form, from its items: what ``data["digest"]`` and those of the releases must be."""
    items = data["items"]
    return digests_of(
        ((item["release"], item["id"] or "", item.get("section") or ""), item["steps"], item["basis"]) for item in items
    )


def _unseen(item: Item) -> bool:
    """Whether something that the item rests on could not be looked at."""
    unseen = (ReasonCode.NOT_VISIBLE, ReasonCode.SOURCE_NOT_HERE)
    return item.status is Status.UNKNOWN or any(reason.code in unseen for reason in item.reasons)


def _totals(plan: Plan) -> dict[str, int]:
    """How many of each verb. A release counts by what is done to it, or by trouble that its SAEs do not have themselves."""
    spoken = {(item.release, item.reasons[0].code) for item in plan.items if item.id is not None and item.held}
    counts: Counter[str] = Counter()
    created: set[object] = set()  # places: several releases may share one
    for item in plan.items:
        own_trouble = item.held and (item.release, item.reasons[0].code) not in spoken
        if StepKind.CREATE in item.steps:
            created.add(item.basis.get("asked.target"))
        elif item.id is not None or item.steps or own_trouble or item.status is Status.WAITING:
            counts[verb_of(item)] += 1
    counts["create"] = len(created)
    gone = counts["orphaned"] + counts["delete"]
    registered = sum(len(release.saes) for release in plan.releases if release.home is None)  # they have no items of their own
    saes = sum(item.id is not None for item in plan.items) - gone + registered
    return {"saes": saes, **dict(sorted((+counts).items()))}


def _release(release: Release) -> dict[str, Any]:
    home = release.home
    return {
        "name": release.name,
        "manifest": release.manifest,
        "target": home.target if home else None,
        "location": home.location if home else None,
        "records": {"target": release.records.target, "location": release.records.location} if release.records else None,
        "registry": release.register.registry if release.register else None,
        "saes": len(release.saes),
        "validate": any(sae.validate is not None for sae in release.saes),
        "pinned": all(sae.source is None or sae.source.repo is None or bool(sae.source.revision) for sae in release.saes),
    }


def _item(item: Item, sae: Sae | None) -> dict[str, Any]:
    found: dict[str, Any] = {
        "release": item.release,
        "id": item.id,
        "section": item.basis.get(SECTION),
        "status": str(item.status),
        "verb": verb_of(item),
        "steps": [str(step) for step in item.steps],
        "held": item.held,
        "reasons": [{"code": str(reason.code), "data": dict(reason.data)} for reason in item.reasons],
        "origin": _origin(item.origin),
        "basis": dict(item.basis),
    }
    if item.move_from is not None:
        found["move_from"] = item.move_from
    if sae is not None and (item.steps or item.status is not Status.CURRENT):
        found |= {"hook": sae.hook, "dtype": sae.dtype, "source": _source(sae)}
        found |= {} if sae.hook_out is None else {"hook_out": sae.hook_out}
    return found


def _source(sae: Sae) -> dict[str, Any] | None:
    source = sae.source
    if source is None:
        return None
    return {"repo": source.repo, "revision": source.revision, "path": source.path, "format": source.format}


def _origin(origin: Origin | None) -> list[Any] | None:
    return None if origin is None else [origin.file, origin.line, origin.column, origin.width]


def write(path: Path, plan: Plan | Mapping[str, Any]) -> None:
    """Save a plan (or its JSON form), whole or not at all.

    Raises:
        OSError: no space, no permission.
    """
    data = plan_json(plan) if isinstance(plan, Plan) else plan
    write_named(path, (json.dumps(data, indent=1) + "\n").encode())


def read(path: Path) -> dict[str, Any]:
    """A saved plan. The file may come from anybody: its form is checked, and nothing in it is carried out.

    Raises:
        Missing: there is no such file.
        Refused: it is not a plan, or of another version of the form.
    """
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise Missing(
            "Plan file cannot be read", f"{path}: {error.strerror}. Make one with `saesync plan --out {shlex.quote(str(path))}`."
        ) from error
    if len(data) > MAX_BYTES:
        raise _refused(path, f"It has more than {MAX_BYTES:,} bytes")
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise _refused(path, "It is not JSON") from error
    if not isinstance(value, dict) or value.get("type") != TYPE:
        raise _refused(path, f'It is not a plan (no "type": "{TYPE}")')
    if value.get("version") != VERSION:
        raise _refused(path, f"It is of version {plain(value.get('version'), 20)}, this saesync reads version {VERSION}")
    wrong = _wrong(value)
    if wrong is not None:
        raise _refused(path, f"Its {wrong} is not of the form that saesync writes")
    return value


def unedited(path: Path, data: Mapping[str, Any]) -> None:
    """Hold a saved plan against its own digest: a part of it is no plan, and what was left out was approved by nobody.

    Raises:
        Refused: its items are not those it was written with.
    """
    if digests(data).whole != data["digest"]:
        by = plain(data.get("saesync"), 20)
        raise _refused(
            path, f"Its digest is not that of its items: it was edited by hand, or saesync {by} made it and counts otherwise"
        )


def _refused(path: Path, what: str) -> Refused:
    return Refused(
        "Plan file is unreadable", f"{path}: {what}. Make a new one with `saesync plan --out {shlex.quote(str(path))}`."
    )


def _wrong(value: Mapping[str, Any]) -> str | None:
    """The first part of a plan file that has the wrong form."""
    if not _text(value.get("digest")):
        return '"digest"'
    asked = value.get("asked")
    if not isinstance(asked, dict) or any(not _texts(asked.get(name)) for name in _LISTS):
        return '"asked"'
    if not _is_changed(value.get("changed")):
        return '"changed"'
    items = value.get("items")
    if not isinstance(items, list):
        return '"items"'
    return next((f"item {number}" for number, item in enumerate(items, start=1) if not _is_item(item)), None)


def _is_item(item: Any) -> bool:
    return (
        isinstance(item, dict)
        and _text(item.get("release"))
        and (item.get("id") is None or _text(item["id"]))
        and (item.get("section") is None or _text(item["section"]))
        and _text(item.get("status"))
        and _texts(item.get("steps"))
        and isinstance(item.get("basis"), dict)
        and all(entry is None or isinstance(entry, str | int | float) for entry in item["basis"].values())
    )


def _is_changed(value: Any) -> bool:
    """``changed`` is of plans of changed manifests only; earlier ones do not say which ``others`` there were."""
    if not isinstance(value, dict):
        return value is None
    others = value.get("others")
    return others is None or (isinstance(others, dict) and all(map(_text, others.values())))


def _text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= 1000


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(_text(entry) for entry in value)

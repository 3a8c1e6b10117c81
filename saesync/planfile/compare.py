"""Whether a saved plan still describes what is asked and observed, and by name what does not.

Own progress is no difference: what is observed now may be the result of the saved plan's own steps.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from saesync import __version__
from saesync.digest import short
from saesync.errors import PlanStale
from saesync.inert import pad, plain, width
from saesync.model import Item, Plan, Sae, Status, StepKind
from saesync.planning.basis import ASKED, INPUTS, OBSERVED, REQUIRE, Basis, key_of_item
from saesync.reason import ReasonCode
from saesync.render.style import command

_DERIVED = frozenset({"asked.card", "asked.build_key", "asked.measure_key"})
_SETTLED = frozenset({Status.CURRENT, Status.NATIVE, Status.FAILING})
_LISTED = 50
_LOCKED = "in a record that this saesync cannot read"
Saved = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing that is not as it was when the plan was made. ``where`` is a place in a manifest, or a repo at a commit."""

    address: str
    what: str
    where: str | None = None


def approved(saved: Saved) -> frozenset[tuple[str, str, str]]:
    """Keys of the items that stand in a saved plan: nothing else is applied with it."""
    return frozenset(_key(old) for old in saved["items"])


def _key(old: Saved) -> tuple[str, str, str]:
    return old["release"], old["id"] or "", old.get("section") or ""


def compare(saved: Saved, now: Plan, manifests: Mapping[str, str] = MappingProxyType({})) -> list[Difference]:
    """Everything asked or observed differently from what the saved plan was made of, and what was added since.

    ``manifests`` are the git blob ids of the manifests as they are now.
    """
    present = {key_of_item(item): item for item in now.items}
    saes = {sae.address: sae for release in now.releases for sae in release.saes}
    effects = _effects(saved)
    found: list[Difference] = []
    for old in saved["items"]:
        item = present.get(_key(old))
        address = old["release"] if old["id"] is None else f"{old['release']}/{old['id']}"
        if item is None:
            if str(StepKind.DELETE) not in old["steps"]:
                found.append(Difference(address, "is not in the plan any more"))
            continue
        asked = _asked(old, item, saes.get(item.address))
        found += [*asked, *_observed(old, item, effects, bool(asked))] or _steps(old, item)
    return _folded([*found, *_added(saved, now, saes), *_changed_since(saved, now, manifests)])


def _added(saved: Saved, now: Plan, saes: Mapping[str, Sae]) -> list[Difference]:
    """What has steps, or is an SAE that is asked for and not there as asked, and stands in no item of the saved plan.

    Own progress adds none: an SAE asked for has an item whatever is there, and so have a release, its tag and its entry.
    A plan of changed manifests (``--changed-since``) says nothing of the releases of others: see ``_changed_since``.
    """
    known, found = approved(saved), []
    covered = {old["release"] for old in saved["items"]} if saved.get("changed") else {item.release for item in now.items}
    for item in now.items:
        asked = item.id is not None and item.address in saes and item.status not in (Status.CURRENT, Status.NATIVE)
        if item.release in covered and key_of_item(item) not in known and (item.steps or asked):
            found.append(Difference(item.address, "not in the plan", str(item.origin) if item.origin else None))
    return found


def _changed_since(saved: Saved, now: Plan, manifests: Mapping[str, str]) -> list[Difference]:
    """Of a plan of changed manifests: those that were left out for being unchanged and are not so any more, and new ones.

    Made now, the plan would be of them, too. One that does not say what it left out tells of none.
    """
    others = (saved.get("changed") or {}).get("others")
    if others is None:
        return []
    covered = {old["release"] for old in saved["items"]}
    found = []
    for release in now.releases:
        if release.name not in covered and release.manifest and manifests.get(release.manifest) != others.get(release.manifest):
            what = "was changed since" if release.manifest in others else "was added since"
            found.append(Difference(release.name, f"{what}, and is not in the plan", str(release.origin or release.manifest)))
    return found


def check(
    saved: Saved,
    now: Plan,
    file: str = "plan.json",
    words: Sequence[str] = (),
    manifests: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Refuse a saved plan that no longer describes what is here. ``words`` were given to ``saesync plan`` when it was made,
    ``manifests`` are the git blob ids of the manifests as they are now.

    Raises:
        PlanStale: with every difference by name.
    """
    differences = compare(saved, now, manifests)
    if not differences:
        return
    left = max(width(plain(found.address)) for found in differences[:_LISTED])
    lines = []
    for found in differences[:_LISTED]:
        place = f"   ({plain(found.where)})" if found.where else ""
        lines.append(f"  {pad(plain(found.address), left)}   {plain(found.what)}{place}")
    if len(differences) > _LISTED:
        lines.append(f"  … and {len(differences) - _LISTED} more")
    head = f"{file} was made from other inputs than the ones here now. Nothing was done."
    if (by := saved.get("saesync")) != __version__:
        lines.insert(
            0, f"  It was made by saesync {plain(by, 20)}, and this is {__version__}: what is asked may differ by that alone."
        )
    again = f"Make a new plan:  {command('saesync', 'plan', *words, '--out', file)}"
    raise PlanStale("Plan is stale", "\n".join([head, *lines, again]))


def check_here(paths: Iterable[Path], file: str) -> None:
    """Refuse a saved plan of manifests, named from the folder that it was made in, that are not here at all.

    Raises:
        PlanStale: with those that are not.
    """
    absent = [plain(str(path)) for path in paths if not os.path.lexists(path)]
    if absent:
        head = f"{file} is of {' and '.join(absent)}, which is not here. Nothing was done."
        where = "Manifests are named from the folder that the plan was made in: apply it there, or make a new plan."
        raise PlanStale("Plan is stale", f"{head}\n{where}")


# ---------------------------------------------------------------------------------------------------- what is asked


def _asked(old: Saved, item: Item, sae: Sae | None) -> list[Difference]:
    before, after = _part(old["basis"], ASKED), _part(item.basis, ASKED)
    keys_differ = any(before.get(name) != after.get(name) for name in ("asked.build_key", "asked.measure_key"))
    found = []
    for name in sorted({*before, *after}):
        if name in _DERIVED or before.get(name) == after.get(name):
            continue
        if name.startswith(INPUTS) and not (keys_differ and _has_inputs(before) and _has_inputs(after)):
            continue
        found.append(Difference(item.address, _changed(name, before.get(name), after.get(name)), _place(name, item, sae)))
    if keys_differ and not found:
        untouched = _part(old["basis"], OBSERVED) == _part(item.basis, OBSERVED)
        named = (_since(item, sae) or _back(old, item, sae)) if untouched else []
        found = named or [Difference(item.address, "something else is asked for", _place("", item, sae))]
    return list(dict.fromkeys(found))


def _since(item: Item, sae: Sae | None) -> list[Difference]:
    """What is asked otherwise of an SAE that was as asked, and still is what it was: of such the saved plan holds no inputs,
    but what is there is what was asked, and how that differs is why something is to be done now."""
    changed = [reason.data for reason in item.reasons if reason.code is ReasonCode.CHANGED]
    return [
        Difference(
            item.address,
            f"{data['name']} {_value(data['before'])} → {_value(data['after'])}",
            _place(f"{INPUTS}.{data['name']}", item, sae),
        )
        for data in changed
    ]


def _back(old: Saved, item: Item, sae: Sae | None) -> list[Difference]:
    """What is asked otherwise of an SAE that is as asked by now, because what stands there is asked for again: why something was
    to be done when the plan was made, the other way round."""
    reasons = old.get("reasons")
    found = []
    for reason in reasons if isinstance(reasons, list) else ():
        data = reason.get("data") if isinstance(reason, dict) and reason.get("code") == ReasonCode.CHANGED else None
        if isinstance(data, dict):
            said = f"{data.get('name')} {_value(data.get('after'))} → {_value(data.get('before'))}"
            found.append(Difference(item.address, said, _place(f"{INPUTS}.{data.get('name')}", item, sae)))
    return found


def _part(basis: Mapping[str, Any], prefix: str) -> Basis:
    return {name: value for name, value in basis.items() if name.startswith(prefix)}


def _has_inputs(basis: Basis) -> bool:
    return any(name.startswith(INPUTS) for name in basis)


def _changed(name: str, before: Any, after: Any) -> str:
    """``explained_variance min 0.7 → 0.6``; a requirement, permission or input that came or went is said in words."""
    if name == "asked.blocked":
        return "cannot be known here any more" if after is not None else "could not be known, now it can"
    if name == "asked.choice" and "retire" in (before, after):
        return f"retire: true {'came' if after == 'retire' else 'went'} since the plan was made"
    if name == "asked.choice":
        given, taken = (f"--{value}" for value in (after, before))
        return f"the plan was made without {given}" if before is None else f"the plan was made with {taken}"
    if name.startswith(REQUIRE):
        label = name[len(REQUIRE) :].replace(".", " ")
    elif name.startswith(INPUTS):
        label = name[len(INPUTS) :].partition(".")[2]
    else:
        label = name[len(ASKED) :]
    return f"{label} {_value(before)} → {_value(after)}"


def _value(value: Any) -> str:
    """A value as people read it: digests cut short, nothing as ``none``."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:.6g}"
    text = plain(value)
    return short(text) if len(text) in (40, 64) and set(text) <= set("0123456789abcdef") else text


def _place(name: str, item: Item, sae: Sae | None) -> str | None:
    """Where in the manifest it is asked now."""
    if sae is None:
        return str(item.origin) if item.origin else None
    origin = None
    if name.startswith(REQUIRE) and sae.validate is not None:
        metric, _, kind = name[len(REQUIRE) :].rpartition(".")
        origin = next((r.origin for r in sae.validate.require if (r.metric, r.kind) == (metric, kind)), None)
    elif name.startswith(INPUTS):
        origin = sae.origins.get(name[len(INPUTS) :].partition(".")[2])
    origin = origin or item.origin
    return str(origin) if origin else None


# ------------------------------------------------------------------------------------------------- what is observed


@dataclass(frozen=True, slots=True)
class _Effects:
    """What the saved plan's steps do beside the SAEs: targets they create, releases whose card they write, or whose tag."""

    places: frozenset[Any]
    cards: frozenset[str]
    tags: frozenset[str]


def _effects(saved: Saved) -> _Effects:
    writers = {StepKind.PUBLISH, StepKind.DELETE}
    return _Effects(
        frozenset(old["basis"].get("asked.target") for old in saved["items"] if StepKind.CREATE in old["steps"]),
        frozenset(old["release"] for old in saved["items"] if writers & set(old["steps"])),
        frozenset(old["release"] for old in saved["items"] if StepKind.TAG in old["steps"]),
    )


def _observed(old: Saved, item: Item, effects: _Effects, reasked: bool) -> list[Difference]:
    before, after = _part(old["basis"], OBSERVED), _part(item.basis, OBSERVED)
    differing = {name for name in {*before, *after} if before.get(name) != after.get(name)}
    if item.id is None:
        differing -= _own_registration(old, item) if StepKind.REGISTER in old["steps"] else _own_effects(item, effects)
    elif _own_progress(old, item, differing, reasked):
        return []
    if not differing:
        return []
    was = _LOCKED if old["status"] == Status.LOCKED else _state(before, old["basis"])
    now = _LOCKED if item.status is Status.LOCKED else _state(after, old["basis"])
    if item.status is Status.DRIFTED and now != was:
        now = f"changed outside saesync, files {short(str(after.get('observed.files') or 'none'))}"
    what = _words(before, after, differing) if item.id is None or was == now else f"was {was}, now {now}"
    at = item.basis.get("at")
    return [Difference(item.address, what, None if at is None else str(at))]


def _own_effects(item: Item, effects: _Effects) -> set[str]:
    """What may differ of a release as a whole because of the saved plan's own steps."""
    basis = item.basis
    own: set[str] = set()
    if basis.get("asked.target") in effects.places and basis.get("observed.exists") is True and item.status is not Status.HELD:
        own |= {"observed.exists", "observed.visibility"}
    if item.release in effects.cards or basis.get("observed.card") == basis.get("asked.card"):
        own.add("observed.card")
    if item.release in effects.cards:
        own.add("observed.pull")
    if basis.get("observed.tag") != "moved" and item.release in effects.cards | effects.tags:
        own.add("observed.tag")
    return own


def _own_registration(old: Saved, item: Item) -> set[str]:
    """What may differ of a registry entry because of the saved plan's own step: it was done, or done as far as the branch."""
    reached = item.status in (Status.CURRENT, Status.WAITING)
    pushed = item.basis.get("entry") is not None and item.basis.get("observed.branch") == item.basis["entry"]
    if not (reached or pushed):
        return set()
    return {"observed.branch", "observed.pull", *(["observed.entry"] if reached else [])}


def _own_progress(old: Saved, item: Item, differing: set[str], reasked: bool) -> bool:
    """Whether what is there now of an SAE is what the saved plan's own steps make.

    When the manifest asks for something else by now (``reasked``), what those steps made cannot be current any more, and
    is own progress all the same.
    """
    if StepKind.DELETE in old["steps"]:  # stopped half-way: what is left may still go
        return StepKind.DELETE in item.steps and differing <= {"observed.files"}
    planned = old["basis"].get("asked.build_key")
    if StepKind.PUBLISH not in old["steps"] or planned is None:
        return False
    done = item.basis.get("observed.build_key") == planned and (reasked or item.status in _SETTLED)
    return done or item.basis.get("observed.pending") == planned


def _state(observed: Basis, planned: Mapping[str, Any]) -> str:
    """What stood in an SAE's folder, in words, seen from what was planned to stand there."""
    if not observed.get("observed.visible", True):
        return "not visible"
    if observed.get("observed.others") is not None:
        return f"in the record of {plain(observed['observed.others'])}"
    key, files = observed.get("observed.build_key"), observed.get("observed.files")
    if files is None:
        return "absent" if key is None else "recorded without its files"
    if key is None:
        return "holding files without a record"
    if key != planned.get("asked.build_key"):
        return f"holding other weights ({short(str(key))})"
    return f"as asked, measured {short(str(observed.get('observed.evidence') or 'never'))}, files {short(str(files))}"


def _words(before: Basis, after: Basis, differing: Iterable[str]) -> str:
    names = sorted(differing)
    return ", ".join(f"{name[len(OBSERVED) :]} {_value(before.get(name))} → {_value(after.get(name))}" for name in names)


def _steps(old: Saved, item: Item) -> list[Difference]:
    """More would be done now than was planned, for the same reasons: say, numbers of a failed measurement are not here."""
    more = [step for step in item.steps if step not in old["steps"]]
    if not more or (item.id is None and {StepKind.CARD, StepKind.TAG} & set(item.steps)):
        return []
    return [Difference(item.address, f"would now also {', '.join(more)}", str(item.origin) if item.origin else None)]


def _folded(found: list[Difference]) -> list[Difference]:
    """What is said of many SAEs of a release in the same words is said once, of the release."""
    groups: dict[tuple[str, str, str | None], list[Difference]] = {}
    for one in found:
        groups.setdefault((one.address.partition("/")[0], one.what, one.where), []).append(one)
    folded = []
    for (release, what, where), members in groups.items():
        saes = sum("/" in member.address for member in members)
        several = f"{what} ({saes:,} SAEs)"
        folded += [Difference(release, several, where)] if len(members) > 2 else members
    return folded

"""Like changes in one line: items of a release that say the same are one entry with a range of SAEs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from saesync.render.reasons import reason_text, reasons_joined

Item = Mapping[str, Any]
LAST = ("held", "unknown")
QUIET = ("current",)
SYMBOLS: Mapping[str, str] = {
    "publish": "+",
    "adopt": "+",
    "create": "+",
    "tag": "+",
    "waiting": "…",
    "overwrite": "~",
    "restore": "~",
    "rebuild": "~",
    "relabel": "~",
    "validate": "~",
    "card": "~",
    "register": "+",
    "move": ">",
    "delete": "-",
    "held": "!",
    "unknown": "?",
    "failing": "x",
    "orphaned": "·",
    "native": "·",
    "current": "=",
}
_DOES = {
    "open": "open a pull request",
    "push": "push a branch",
    "add": "add to the file",
    "change": "change the file",
    "remove": "take out of the file",
}
_UNSAID = ("fetch", "publish")
_WHOLE = ("publish", "overwrite", "restore", "rebuild", "adopt")
_STATUS = {
    "held": "held",
    "unknown": "unknown",
    "failing": "failing",
    "orphaned": "not asked for",
    "native": "original files",
    "current": "up to date",
    "waiting": "waiting",
}


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a plan: items of one release with the same verb, steps and reasons."""

    verb: str
    what: str
    items: tuple[Item, ...]

    @property
    def symbol(self) -> str:
        """The sign a line begins with."""
        changed = self.verb == "register" and self.items[0]["status"] != "absent"
        return "~" if changed else SYMBOLS.get(self.verb, "·")


def lines_of(items: list[Item], unfold: bool) -> list[Line]:
    """The lines of one release, held ones last; what is current, or said already of every SAE, is left out."""
    groups: dict[tuple[Any, ...], list[Item]] = {}
    spoken = {(item["verb"], reasons_joined(item["reasons"], reason_text, 3)) for item in items if item["id"] is not None}
    for item in items:
        why = reasons_joined(item["reasons"], reason_text, 1000)
        repeated = item["id"] is None and not item["steps"] and (item["verb"], why) in spoken
        quiet = item["verb"] in QUIET and (item["id"] is None or not unfold)
        if quiet or repeated or (item["id"] is None and item["status"] == "locked"):
            continue
        alone = item["id"] if unfold or item["id"] is None else None
        key = (item["verb"], tuple(item["steps"]), why, alone, item["id"] is None, item["section"])
        groups.setdefault(key, []).append(item)
    found = [Line(key[0], _entry_step(members[0]) or what_of(key[0], key[1]), tuple(members)) for key, members in groups.items()]
    return sorted(found, key=lambda line: line.verb in LAST)


def _entry_step(item: Item) -> str | None:
    """What is done to a registry's entry; None for all else."""
    if item["verb"] != "register":
        return None
    number = item["basis"].get("number")
    if item["basis"].get("does") == "update" and isinstance(number, int):
        return f"update #{number}"
    return _DOES.get(str(item["basis"].get("does")), "register")


def what_of(verb: str, steps: tuple[str, ...]) -> str:
    """What is done, in the words of ``StepKind``; fetching is not worth saying, publishing again neither."""
    if verb in ("create", "tag"):
        return "create"
    if verb == "card":
        return "write the card again"
    if verb in _STATUS:
        return _STATUS[verb]
    if verb in _WHOLE:
        dropped = ("fetch", "convert") if verb == "adopt" else ("fetch",)
        return ", ".join(step for step in steps if step not in dropped)
    return ", ".join(step for step in steps if step not in _UNSAID)


def place_of(item: Item) -> str:
    """The repo or folder a release is published to."""
    return str(item["basis"].get("asked.target") or "").partition(":")[2]


def section_of(item: Item) -> str | None:
    """What a release-level item is about, in people's words; None for the release's own place."""
    section = item["section"]
    return "SAELens" if section == "register" else section


def by_release(items: list[Item]) -> dict[str, list[Item]]:
    """Items by release, in the plan's order. A place that several releases share is created once, with the first."""
    found: dict[str, list[Item]] = {}
    created: set[str] = set()
    for item in items:
        mine = found.setdefault(item["release"], [])
        if item["verb"] == "create":
            if place_of(item) in created:
                continue
            created.add(place_of(item))
        mine.append(item)
    return found


def counted(number: int, word: str) -> str:
    """``1 manifest``, ``3 manifests``, ``1 repository``, ``2 repositories``."""
    if number == 1:
        return f"1 {word}"
    return f"{number:,} {word[:-1]}ies" if word.endswith("y") else f"{number:,} {word}s"


def changed_said(changed: Mapping[str, Any], shown: Callable[[Any], str]) -> str:
    """Which manifests the plan is about, where it is only about those that were changed. ``shown`` is for foreign words."""
    kinds = [(len(changed[kind]), kind) for kind in ("added", "modified", "renamed", "deleted")]
    said = ", ".join(f"{number:,} {kind}" for number, kind in kinds if number) or "none changed"
    said = f"Manifests: {said}; {counted(changed['unchanged'], 'other')} not looked at."
    for folder in changed.get("bare", ()):
        kept = shown(f"{folder}/.gitkeep")
        said += f" None is left in {shown(folder)}: commit an empty file {kept}, or the next plan finds no such folder."
    return said


_TOTALS = (
    ("publish", "to publish"),
    ("rebuild", "to rebuild"),
    ("overwrite", "to overwrite"),
    ("restore", "to restore"),
    ("adopt", "to adopt"),
    ("relabel", "to relabel"),
    ("move", "to move"),
    ("validate", "to validate"),
    ("delete", "to delete"),
    ("create", "to create"),
    ("card", "to write again"),
    ("register", "to register"),
    ("tag", "to create"),
    ("waiting", "waiting for others"),
    ("failing", "failing"),
    ("held", "held"),
    ("unknown", "unknown"),
    ("orphaned", "in no manifest"),
    ("native", "as original files"),
)
_NOUNS = {"create": "place", "card": "card", "tag": "tag", "register": "release"}


def totals_said(totals: Mapping[str, int], current: bool = True) -> list[str]:
    """Totals as words: ``26 to publish``, ``1 place to create``, ``1 held``."""
    said = []
    for verb, words in _TOTALS:
        count = totals.get(verb, 0)
        if count:
            noun = f"{counted(count, _NOUNS[verb])} " if verb in _NOUNS else f"{count:,} "
            said.append(noun + words)
    if current and totals.get("current"):
        said.append(f"{totals['current']:,} up to date")
    return said

"""The form of a plan's JSON as somebody else may have written it. What passes can be rendered; nothing in it is believed."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from saesync.model import Status, StepKind
from saesync.planfile import TYPE, VERSION, digests

MAX_TEXT = 4_000
MAX_DEPTH = 8
MAX_LIST = 50_000
MAX_COUNT = 1_000_000_000
_WORD = re.compile(r"[a-z][a-z_]{0,39}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_STATUSES = frozenset(map(str, Status))
_STEPS = frozenset(map(str, StepKind))
Check = Callable[[Any], bool]


def wrong(value: Any) -> str | None:
    """The first thing that is not as saesync writes it, in words of ours; None when everything is."""
    if not _bounded(value, MAX_DEPTH):
        return "a text, a number or a nesting is out of bounds"
    if not isinstance(value, dict) or value.get("type") != TYPE or value.get("version") != VERSION:
        return f"it is not a plan of version {VERSION}"
    for name, check in _PLAN.items():
        if name not in value or not check(value[name]):
            return f'its "{name}" is not of the form that saesync writes'
    for name, check in _SCOPE.items():
        if name in value and not check(value[name]):
            return f'its "{name}" is not of the form that saesync writes'
    if digests(value).whole != value["digest"]:
        return "its digest is not that of its items"
    return None


def _bounded(value: Any, depth: int) -> bool:
    if isinstance(value, str):
        return len(value) <= MAX_TEXT and (value.isascii() or not any("\ud800" <= c <= "\udfff" for c in value))
    if value is None or isinstance(value, bool):
        return True
    if isinstance(value, int):
        return abs(value) < 2**63
    if isinstance(value, float):
        return math.isfinite(value)
    if depth == 0 or len(value) > MAX_LIST:
        return False
    if isinstance(value, dict):
        return all(_bounded(name, 1) and _bounded(entry, depth - 1) for name, entry in value.items())
    return all(_bounded(entry, depth - 1) for entry in value)


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _word(value: Any) -> bool:
    return isinstance(value, str) and _WORD.fullmatch(value) is not None


def _count(value: Any) -> bool:
    return type(value) is int and 0 <= value <= MAX_COUNT


def _bool(value: Any) -> bool:
    return isinstance(value, bool)


def _flat(value: Any) -> bool:
    """A mapping of names to single values."""
    return isinstance(value, dict) and all(entry is None or isinstance(entry, str | int | float) for entry in value.values())


def _maybe(check: Check) -> Check:
    return lambda value: value is None or check(value)


def _one_of(known: frozenset[str]) -> Check:
    return lambda value: isinstance(value, str) and value in known


def _list(check: Check) -> Check:
    return lambda value: isinstance(value, list) and all(map(check, value))


def _object(needed: Mapping[str, Check], optional: Mapping[str, Check]) -> Check:
    def check(value: Any) -> bool:
        return (
            isinstance(value, dict)
            and all(name in value and test(value[name]) for name, test in needed.items())
            and all(test(value[name]) for name, test in optional.items() if name in value)
        )

    return check


def _totals(value: Any) -> bool:
    return isinstance(value, dict) and "saes" in value and all(_word(name) and _count(count) for name, count in value.items())


def _origin(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 4 and _text(value[0]) and all(map(_count, value[1:]))


_SOURCE = _object({"repo": _maybe(_text), "revision": _maybe(_text), "path": _text, "format": _text}, {})
_REASON = _object({"code": _text, "data": _flat}, {})
_ITEM = _object(
    {
        "release": _text,
        "id": _maybe(_text),
        "section": _maybe(_text),
        "status": _one_of(_STATUSES),
        "verb": _word,
        "steps": _list(_one_of(_STEPS)),
        "held": _bool,
        "reasons": _list(_REASON),
        "origin": _maybe(_origin),
        "basis": _flat,
    },
    {"move_from": _text, "hook": _text, "dtype": _text, "source": _maybe(_SOURCE)},
)
_RELEASE = _object(
    {
        "name": _text,
        "manifest": _text,
        "target": _maybe(_text),
        "location": _maybe(_text),
        "saes": _count,
        "validate": _bool,
        "pinned": _bool,
    },
    {"registry": _maybe(_text)},
)
_PLAN: Mapping[str, Check] = {
    "digest": lambda value: isinstance(value, str) and _DIGEST.fullmatch(value) is not None,
    "releases": _list(_RELEASE),
    "items": _list(_ITEM),
    "totals": _totals,
}
_REVIEW = _object({"kind": _text, "release": _text, "data": _flat}, {"origin": _maybe(_origin)})
_PATHS = _list(_text)
_CHANGED = _object({"added": _PATHS, "modified": _PATHS, "renamed": _list(_PATHS), "deleted": _PATHS, "unchanged": _count}, {})
_SCOPE: Mapping[str, Check] = {
    "review": _list(_REVIEW),
    "complete": _bool,
    "untrusted": _bool,
    "changed": _maybe(_CHANGED),
}

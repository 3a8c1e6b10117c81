"""The YAML front matter of a README, edited key by key: keys, order, style and comments written by hand stay as they are."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import yaml

from saesync.card.lines import Value, ending, rewritten, said, written

MAX_BYTES = 256 << 10
_FENCE = "---"
_OTHER_BREAKS = re.compile("\r(?!\n|\\Z)|[\x85\u2028\u2029]")  # lines to YAML, but not to us


@dataclass(frozen=True, slots=True)
class _Key:
    """One top-level key: its lines ``start:stop``, and its value where it is text or a list of texts."""

    start: int
    stop: int
    value: Value | None


def split(readme: str) -> tuple[str | None, str]:
    """Front matter (without its fences; None when there is none) and the rest of a README, byte for byte."""
    lines = readme.split("\n")
    if lines[0].rstrip("\r ") != _FENCE:
        return None, readme
    for number, line in enumerate(lines[1:], start=1):
        if line.rstrip("\r ") == _FENCE:
            return "\n".join(lines[1:number]), "\n".join(lines[number + 1 :])
    return None, readme


def joined(head: str, body: str) -> str:
    """Front matter and the rest as one text, the fences with the line ends of what they hold."""
    end = ending(head)
    return f"{_FENCE}{end}\n{head}\n{_FENCE}{end}\n{body}"


def says(front: str | None, name: str) -> bool:
    """Whether a key is there and has a value."""
    key = (_keys(front or "") or {}).get(name)
    return key is not None and key.value != []


def merge(
    front: str | None,
    set_: Mapping[str, str],
    add: Mapping[str, Sequence[str]],
    drop: Mapping[str, Sequence[str]],
    default: Mapping[str, str] = MappingProxyType({}),
) -> str | None:
    """Front matter with scalar keys set, and values taken out of and put into list keys; None when it cannot be edited safely.

    ``default`` is set only where nothing is said. What stands beside a changed value (comments, quotes, brackets) stays.
    ``drop`` holds what an earlier version of our block had put in. Text that is not a YAML mapping of ordinary keys, or that
    holds one of our keys twice or in an unknown form, is not touched.
    """
    lines = [] if front is None else front.split("\n")
    keys = _keys(front or "")
    if keys is None:
        return None
    wanted: dict[str, Value] = {}
    for name, text in {**default, **set_}.items():
        held = keys[name].value if name in keys else []
        if name in set_ and held is None:
            return None
        if name in set_ or held == []:
            wanted[name] = text
    for name in dict.fromkeys([*add, *drop]):
        held = keys[name].value if name in keys else []
        if held is None:
            return None
        before = [held] if isinstance(held, str) else held
        kept = [value for value in before if value not in drop.get(name, ()) or value in add.get(name, ())]
        wanted[name] = [*kept, *(value for value in add.get(name, ()) if value not in kept)]
    merged = "\n".join(_edited(lines, keys, wanted))
    return None if _keys(merged) is None else merged  # say, an anchor that another key referred to


def _edited(lines: list[str], keys: Mapping[str, _Key], wanted: Mapping[str, Value]) -> list[str]:
    """Lines with changed keys edited in place, and new ones at the end."""
    changed = {name: value for name, value in wanted.items() if not _same(keys.get(name), value)}
    for name in sorted((name for name in changed if name in keys), key=lambda name: -keys[name].start):
        place = slice(keys[name].start, keys[name].stop)
        lines[place] = rewritten(lines[place], name, changed[name])
    while lines and not lines[-1].strip():
        lines.pop()
    end = ending(lines[0]) if lines else ""
    for name, value in changed.items():
        if name not in keys:
            lines += [f"{line}{end}" for line in written(name, value)]
    return lines


def _same(key: _Key | None, value: Value) -> bool:
    if key is None:
        return not value
    held = key.value
    return held == value or (isinstance(held, str) and [held] == value)


def _keys(front: str) -> dict[str, _Key] | None:
    """Top-level keys of a block mapping; None when the text is anything else, or too large to be looked at."""
    if len(front) > MAX_BYTES or _OTHER_BREAKS.search(front):
        return None
    try:
        root = yaml.compose(front, Loader=yaml.SafeLoader)
    except (yaml.YAMLError, RecursionError, ValueError):
        return None
    if root is None:
        return {}
    if not isinstance(root, yaml.MappingNode) or root.flow_style:
        return None
    lines = front.split("\n")
    marks = [key for key, _ in root.value]
    found: dict[str, _Key] = {}
    for (key, value), following in zip(root.value, [*marks[1:], None], strict=True):
        stop = following.start_mark.line if following is not None else len(lines)
        if not isinstance(key, yaml.ScalarNode) or key.start_mark.column != 0 or key.value in found:
            return None
        found[key.value] = _Key(key.start_mark.line, _last(lines, key.start_mark.line, stop), said(value))
    return found


def _last(lines: Sequence[str], start: int, stop: int) -> int:
    """Where a key's lines end: comments and empty lines before the next key belong to what follows."""
    while stop > start + 1 and (not lines[stop - 1].strip() or lines[stop - 1].startswith("#")):
        stop -= 1
    return stop

"""Changing one release in the registry's text: which lines are its own, and what stands in them afterwards.

Lines are taken from the marks of YAML nodes, so comments and other people's formatting stay. Pieces that change are written by
PyYAML's dumper with the indentation that is there.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from saesync.digest import canonical
from saesync.errors import Refused
from saesync.inert import plain
from saesync.registry.entry import Entry, SaeEntry, from_yaml, same_sae, same_saes

_DUMPER: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
_BREAKS = ("\n", "\r", "\x85", "\u2028", "\u2029")
_WIDE = 1 << 30  # values are never folded: a folded line would depend on its indentation
_STR = "tag:yaml.org,2002:str"
_END = re.compile(r"\.\.\.\s*")
_KEYS = ("conversion_func", "links", "model", "repo_id", "config_overrides", "saes")
_SAE_KEYS = ("id", "path", "l0", "neuronpedia", "norm_scaling_factor", "variance_explained")


class _OtherLayout(Exception):
    """The nodes are not laid out one below the other, so lines cannot be told apart."""


@dataclass(frozen=True, slots=True)
class _Piece:
    """Lines ``start:stop`` that belong to one key or one list item, which begins at ``column``."""

    start: int
    stop: int
    column: int


def edited(text: str, root: yaml.MappingNode | None, release: str, old: Any, entry: Entry | None, *, anew: bool = False) -> str:
    """``text`` with ``entry`` as the entry of ``release``; ``old`` is what stands there now, ``root`` the text's nodes.

    ``anew``: write a release that is there as if it were new, in its place, instead of keeping the lines that say the same.

    Raises:
        Refused: releases do not stand one below the other, or the release stands there twice.
    """
    lines = text.splitlines(keepends=True)
    pairs = [] if root is None else root.value
    stop = next((number for number in range(len(lines) - 1, -1, -1) if _END.fullmatch(lines[number])), len(lines))
    try:
        pieces = _pieces([key for key, _ in pairs], lines, 0, stop, bool(root.flow_style)) if root is not None else []
    except _OtherLayout:
        said = "The releases of the registry do not stand one below the other, so a single one cannot be edited. Format the file."
        raise Refused("Registry cannot be edited", said) from None
    found = [number for number, (key, _) in enumerate(pairs) if key.tag == _STR and key.value == release]
    if len(found) > 1:
        said = f"{plain(release)} stands in the registry {len(found)} times; SAELens sees the last. Remove the others first."
        raise Refused("Registry cannot be edited", said)
    column = pieces[0].column if pieces else 0
    piece = pieces[found[0]] if found else _Piece(stop, stop, column)
    if entry is None:
        new = []
    elif found and not anew:
        new = _updated(lines, piece, pairs[found[0]][1], old, entry)
    else:
        new = _dumped({entry.release: entry.to_yaml()}, column, _newline(lines))
    return "".join([*_ended(lines[: piece.start], lines), *_ended_alike(new, lines, piece), *lines[piece.stop :]])


def _updated(lines: list[str], piece: _Piece, node: yaml.Node, old: Any, entry: Entry) -> list[str]:
    """The lines of a release with only what differs changed; written anew where its layout does not allow that."""
    try:
        known = from_yaml(entry.release, old)
        if not isinstance(node, yaml.MappingNode):
            raise _OtherLayout
        return list(_release(lines, piece, node, old, known, entry))
    except (_OtherLayout, Refused):
        return _dumped({entry.release: entry.to_yaml()}, piece.column, _newline(lines))


def _release(
    lines: list[str], piece: _Piece, node: yaml.MappingNode, old: Mapping[str, Any], known: Entry, entry: Entry
) -> Iterator[str]:
    """Key by key: kept, written anew, dropped, or new before the key that follows it in new entries."""
    keys = [key.value for key, _ in node.value]
    if len(set(keys)) != len(keys):
        raise _OtherLayout
    nodes = dict(zip(keys, (value for _, value in node.value), strict=True))
    pieces = _pieces([key for key, _ in node.value], lines, piece.start + 1, piece.stop, bool(node.flow_style))
    before, after, newline = known.to_yaml(), entry.to_yaml(), _newline(lines)
    done, column = piece.start, pieces[0].column
    fresh = [key for key in _KEYS if key not in old and _differ(before, after, key)]
    for key, part in zip(keys, pieces, strict=True):
        yield from lines[done : part.start]
        done = part.stop
        for new in [new for new in fresh if _KEYS.index(new) < (_KEYS.index(key) if key in _KEYS else -1)]:
            fresh.remove(new)
            yield from _dumped({new: after[new]}, column, newline)
        if key == "saes":
            yield from _saes(lines, part, nodes[key], old[key], known, entry)
        elif key not in _KEYS or not _differ(before, after, key):
            yield from lines[part.start : part.stop]
        elif key in after:
            yield from _dumped({key: after[key]}, column, newline)
    yield from lines[done : piece.stop]


def _saes(lines: list[str], piece: _Piece, node: yaml.Node, old: list[Any], known: Entry, entry: Entry) -> Iterator[str]:
    """Item by item, in the order that is there; new ones at the end."""
    newline = _newline(lines)
    if same_saes(known, entry):
        yield from lines[piece.start : piece.stop]
        return
    if not isinstance(node, yaml.SequenceNode) or not known.saes or not entry.saes:
        yield from _dumped({"saes": [sae.to_yaml() for sae in entry.saes]}, piece.column, newline)
        return
    parts = _pieces(node.value, lines, piece.start + 1, piece.stop, bool(node.flow_style), dashed=True)
    left = {sae.id: sae for sae in entry.saes}
    done = piece.start
    for part, raw, before in zip(parts, old, known.saes, strict=True):
        yield from lines[done : part.start]
        done = part.stop
        after = left.pop(before.id, None)
        if after is None:
            continue
        same = same_sae(before, after)
        yield from lines[part.start : part.stop] if same else _dumped([_merged(raw, before, after)], part.column, newline)
    rest = [sae.to_yaml() for sae in left.values()]
    yield from lines[done : piece.stop]
    yield from _dumped(rest, parts[0].column, newline) if rest else ()


def _merged(raw: Mapping[str, Any], before: SaeEntry, after: SaeEntry) -> dict[str, Any]:
    """An item's mapping with what differs changed, in the order that is there; new fields at its end."""
    new, old = after.to_yaml(), before.to_yaml()
    kept = {key: new.get(key) if key in _SAE_KEYS and new.get(key) != old.get(key) else value for key, value in raw.items()}
    found = {key: value for key, value in kept.items() if key not in _SAE_KEYS or value is not None}
    return {**found, **{key: value for key, value in new.items() if key not in found}}


def _pieces(
    nodes: Sequence[yaml.Node], lines: list[str], start: int, stop: int, flow: bool, dashed: bool = False
) -> list[_Piece]:
    """The lines of each node between ``start`` and ``stop``: from its own to the next one's, without what stands above that.

    Raises:
        _OtherLayout: they do not stand one below the other in one column.
    """
    starts = [node.start_mark.line for node in nodes]
    columns = {_column(lines[node.start_mark.line], node.start_mark.column, dashed) for node in nodes}
    if flow or not starts or len(columns) != 1 or starts[0] < start or starts[-1] >= stop or sorted(set(starts)) != starts:
        raise _OtherLayout
    column = columns.pop()
    bounds = itertools.pairwise([*starts, stop])
    return [_Piece(begin, _above(lines, begin, below, column), column) for begin, below in bounds]


def _column(line: str, column: int, dashed: bool) -> int:
    """Where a key, or the dash of a list item, stands; nothing else may stand before it."""
    before = line[:column]
    if dashed:
        if before.strip(" ") != "-":
            raise _OtherLayout
        return before.index("-")
    if before.strip(" "):
        raise _OtherLayout
    return column


def _above(lines: list[str], begin: int, below: int, column: int) -> int:
    """``below`` moved up over empty lines and comments that belong to what follows."""
    while below > begin + 1:
        line = lines[below - 1]
        said = line.strip()
        if said and not (said.startswith("#") and len(line) - len(line.lstrip(" ")) <= column):
            break
        below -= 1
    return below


def dumped(value: Any) -> str:
    """``value`` as the registry's own formatting has it."""
    text: str = yaml.dump(value, Dumper=_DUMPER, sort_keys=False, width=_WIDE)
    return text


def _dumped(value: Any, column: int, newline: str) -> list[str]:
    """The lines of ``value``, moved right by ``column``."""
    return [f"{' ' * column}{line}{newline}" for line in dumped(value).split("\n")[:-1]]


def _ended(part: list[str], lines: list[str]) -> list[str]:
    """``part`` with a line end on every line."""
    return [line if line.endswith(_BREAKS) else line + _newline(lines) for line in part]


def _ended_alike(new: list[str], lines: list[str], piece: _Piece) -> list[str]:
    """``new`` with a line end on every line, but for the last of a file that had none."""
    found = _ended(new, lines)
    if new and piece.start < piece.stop == len(lines) and not lines[-1].endswith(_BREAKS):
        found[-1] = found[-1].rstrip("\r\n")
    return found


def _differ(before: Mapping[str, Any], after: Mapping[str, Any], key: str) -> bool:
    """Whether a key's value has another meaning; as JSON, for 1 equals True in Python."""
    return canonical(before.get(key)) != canonical(after.get(key))


def _newline(lines: list[str]) -> str:
    return "\r\n" if lines and lines[0].endswith("\r\n") else "\n"

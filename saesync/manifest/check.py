"""From a tree of nodes to expanded documents that fit the schema, or everything that is wrong with it.

Expand first, validate after: what an SAE's value becomes is what counts. An error that many SAEs share stands once, at the
template's line.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from saesync.errors import Diagnostic, ManifestError, Origin
from saesync.manifest.expand import NAME, WHOLE, Budget, Row, Rows, Templates, distinct, names_of, rows_of
from saesync.manifest.explain import Path, Sameness, close, explain
from saesync.manifest.yaml12 import Node
from saesync.planfile import TYPE as PLAN
from saesync.schema import build, expanded
from saesync.schema.fast import Check, compile_schema

MAX_EXPLAINED = 100  # SAEs whose errors are spelled out; the rest come from the same template
MAX_EXPLAINED_VALUES = 100_000  # and values that are looked at in doing so
_WHICH_SOURCE = frozenset({"repo", "revision", "path", "format"})


@dataclass(frozen=True, slots=True)
class Expanded:
    """An expanded manifest. ``fixed`` is all but ``saes``; ``saes`` holds (row, section, neuronpedia.set) per SAE.

    Of one that does not fit the schema, ``wrong`` says why, and what does not fit was left out (``cut``: the paths): the rest is
    there to be looked at all the same, so that everything is said at once. Nothing may be made of it.
    """

    file: str
    root: Node
    fixed: Mapping[str, Any]
    saes: tuple[tuple[Row, Mapping[str, Any], str | None], ...]
    wrong: tuple[Diagnostic, ...] = ()
    cut: frozenset[Path] = frozenset()


@dataclass(frozen=True, slots=True)
class Checks:
    """The compiled schema, whole and by the parts that differ between the SAEs of one manifest."""

    written: Mapping[str, Any]
    schema: Mapping[str, Any]
    document: Check
    saes: Check
    set: Check
    for_each: Check


@functools.cache
def checks() -> Checks:
    """Compiled once per process."""
    written = build()
    schema = expanded(written)
    properties = schema["properties"]

    def part(sub: Mapping[str, Any]) -> Check:
        return compile_schema({**sub, "$defs": schema["$defs"]})

    return Checks(
        written,
        schema,
        compile_schema(schema),
        part(properties["saes"]),
        part(properties["neuronpedia"]["properties"]["set"]),
        part(properties["saes"]["properties"]["for_each"]),
    )


def check(root: Node, file: str, budget: Budget) -> Expanded:
    """The expanded manifest, if it fits the schema.

    Raises:
        ManifestError: everything that does not.
    """
    found = examine(root, file, budget)
    if found.wrong:
        raise ManifestError.of(found.wrong)
    return found


def examine(root: Node, file: str, budget: Budget) -> Expanded:
    """The expanded manifest, or as much of it as fits the schema.

    Raises:
        ManifestError: it is no manifest at all.
    """
    if not isinstance(root.value, dict):
        detail = "A manifest is a mapping: it begins with `apiVersion: saesync/v1`."
        raise ManifestError("Not a manifest", detail, root.origin(file))
    if (kind := root.get("type")) is not None and kind.value == PLAN:
        detail = "This is a plan file, and `saesync apply` knows one by its name: let it end in `.json`."
        raise ManifestError("Not a manifest", detail, kind.origin(file))
    found: list[Diagnostic] = []
    made, unknown = _made(root, file, budget, found)
    return _fitting(root, file, made, found, unknown) if made else _as_written(root, file, found)


Made = list[tuple[Row, Any, Any]]


def _made(root: Node, file: str, budget: Budget, found: list[Diagnostic]) -> tuple[Made, Collection[Origin]]:
    """What the template becomes for each row, as far as it can be filled, why it cannot goes to ``found``; and the places of
    texts whose values nobody knows, for what gives them is wrong.
    """
    saes, for_each, set_ = root.get("saes"), root.get("saes", "for_each"), root.get("neuronpedia", "set")
    if saes is None or not isinstance(saes.value, dict):
        return [], ()
    fits = for_each is None or checks().for_each(for_each.plain_value())
    rows = rows_of(for_each, file, found) if for_each is None or fits else _readable(root, for_each, file, found)
    if not _names_are_told(saes, rows.names):
        return [], ()
    templates = Templates(file, tuple(rows.names))
    section, fill = templates.compile(saes, frozenset({"for_each"}))
    set_value, set_fill = templates.compile(set_) if set_ is not None else (None, None)
    unused = templates.unused(rows.names) if fits else {}
    found += [*templates.diagnostics, *unused.values()]
    made: Made = []
    droppable, place = _droppable(saes), root.place(("saes", "for_each")).origin(file)
    try:
        budget.take(rows.count, place)
        for row in distinct(rows.make(), unused):
            filled = section if fill is None else fill(row)
            filled = _without_nulls(filled, droppable) if None in row.values() else filled
            made.append((row, filled, set_value if set_fill is None else set_fill(row)))
            budget.spend(templates.length(row), place)
    except ManifestError as error:
        found += error.diagnostics
        return [], ()
    found += templates.unfilled.values()
    if fits and not made and not found:
        found.append(Diagnostic("for_each has no values", "The exceptions leave no SAE. Remove some.", place))
    return made, templates.unknown


def _readable(root: Node, for_each: Node, file: str, found: list[Diagnostic]) -> Rows:
    """The rows of those axes, or of those rows, of a ``for_each`` that fit the schema by themselves; none where there are
    exceptions, which may mean the others.
    """
    fits, value = checks().for_each, for_each.value
    names = names_of(for_each, file)
    left: Any = ()
    if isinstance(value, list):
        left = [row for row in value if fits([row.plain_value()])]
    elif isinstance(value, dict) and "except" not in value:
        left = {name: axis for name, axis in value.items() if fits({name: axis.plain_value()})}
    if not left:
        return Rows(0, names, lambda: iter(()))
    written = checks().written
    inner = {"saes": {"properties": {"for_each": written["properties"]["saes"]["properties"]["for_each"]}}}
    document = {"saes": {"for_each": for_each.plain_value()}}
    wrong, _ = explain(document, root, file, {"$defs": written["$defs"], "properties": inner})
    found += wrong.values()
    return replace(rows_of(replace(for_each, value=left), file, found), names=names)


def _names_are_told(saes: Node, names: Mapping[str, Origin]) -> bool:
    """Whether what is said of texts that hold other names is no noise: ``for_each`` is not misspelt, nor are all of its names."""
    if saes.get("for_each") is None:
        return not any(close(key, ["for_each"]) for key in saes.keys)
    return bool(names) and all(NAME.fullmatch(name) for name in names)


def _droppable(saes: Node) -> Mapping[str, frozenset[str]]:
    """By section, the keys that may be left out and whose value is a text, and so may be a placeholder that stands for null.

    What a source is does not depend on a null: without its repo another one would be read.
    """

    def texts(node: Node | None) -> frozenset[str]:
        below = node.value if node is not None else None
        items = below.items() if isinstance(below, dict) else ()
        return frozenset(key for key, each in items if isinstance(each.value, str))

    found = {name: texts(saes.get(name)) - _WHICH_SOURCE for name in ("cfg", "entry", "source")}
    return {"": texts(saes) & {"hook_out"}, **found}


def _without_nulls(section: dict[str, Any], droppable: Mapping[str, frozenset[str]]) -> dict[str, Any]:
    """A filled section without the keys that a row has no value for."""

    def kept(part: dict[str, Any], keys: frozenset[str]) -> dict[str, Any]:
        return {key: value for key, value in part.items() if value is not None or key not in keys}

    below = {name: kept(section[name], keys) for name, keys in droppable.items() if name and keys}
    return kept({**section, **below}, droppable[""])


def _as_written(root: Node, file: str, found: list[Diagnostic]) -> Expanded:
    """A manifest that cannot be expanded: what is wrong with it besides, and what of it stands there without placeholders."""
    whole = root.plain_value()
    explained, cut = explain(whole, root, file, checks().written)
    cut |= {path for path, _ in _placeholders(root)}
    saes = whole.get("saes")
    section = {key: value for key, value in saes.items() if key != "for_each"} if isinstance(saes, dict) else {}
    set_ = root.get("neuronpedia", "set")
    return _remains(root, file, [({}, section, set_ and set_.value)], _besides(found, explained.values()), cut)


def _besides(found: list[Diagnostic], explained: Iterable[Diagnostic], unknown: Collection[Origin] = ()) -> list[Diagnostic]:
    """``found``, and what is said of other places, but for those that nothing is known of."""
    places = {*unknown, *(diagnostic.origin for diagnostic in found)}
    return [*found, *(each for each in explained if each.origin not in places)]


def _placeholders(root: Node) -> Iterator[tuple[Path, Node]]:
    """All texts with braces where these are placeholders, with their paths."""

    def walk(node: Node | None, path: Path) -> Iterator[tuple[Path, Node]]:
        if node is not None and isinstance(node.value, dict):
            for key, below in node.value.items():
                yield from walk(below, (*path, key))
        elif node is not None and isinstance(node.value, str) and "{" in node.value:
            yield path, node

    for path in (("saes",), ("neuronpedia", "set")):
        yield from walk(root.get(*path), path)


def _fitting(root: Node, file: str, made: Made, found: list[Diagnostic], unknown: Collection[Origin]) -> Expanded:
    """The expanded manifest, with what does not fit the schema besides ``found``; of ``unknown`` places nothing is said."""
    fixed = _fixed(root)
    compiled = checks()

    def document(section: Any, set_: Any) -> dict[str, Any]:
        whole = {**fixed, "saes": section}
        return whole if set_ is None else {**whole, "neuronpedia": {**fixed["neuronpedia"], "set": set_}}

    _, section, set_ = made[0]
    if not compiled.document(document(section, set_)):
        failing = made
    else:
        failing = [each for each in made[1:] if not (compiled.saes(each[1]) and (each[2] is None or compiled.set(each[2])))]
    if not failing and not found:
        return Expanded(file, root, fixed, tuple(made))
    for_each = root.get("saes", "for_each")
    size = root.size - (for_each.size if for_each is not None else 0)
    some = failing[: max(1, min(MAX_EXPLAINED, MAX_EXPLAINED_VALUES // size))]
    explained = [explain(document(part, name), root, file, compiled.schema) for _, part, name in some]
    whole = {**_whole(root.get("saes"), file), **_whole(root.get("neuronpedia", "set"), file)}
    placed = (
        {same: _with_place(each, whole, row, for_each, file) for same, each in said.items()}
        for (row, _, _), (said, _) in zip(some, explained, strict=True)
    )
    wrong = _besides(found, _merged(placed), unknown)
    places = {*unknown, *(diagnostic.origin for diagnostic in found)}
    cut = {path for path, node in _placeholders(root) if node.origin(file) in places}
    return _remains(root, file, made, wrong, cut.union(*(unfit for _, unfit in explained)))


def _whole(node: Node | None, file: str) -> dict[Origin, str]:
    """Where texts stand that are nothing but a placeholder, and its name: what is wrong with them is a value of ``for_each``."""
    if node is None:
        return {}
    if isinstance(node.value, str):
        found = WHOLE.fullmatch(node.value)
        return {} if found is None else {node.origin(file): found[1]}
    below = node.value.values() if isinstance(node.value, dict) else node.value if isinstance(node.value, list) else ()
    return {origin: name for each in below for origin, name in _whole(each, file).items()}


def _with_place(diagnostic: Diagnostic, whole: Mapping[Origin, str], row: Row, for_each: Node | None, file: str) -> Diagnostic:
    """``diagnostic``, with the place of the value that is wrong where the template only names it."""
    name = whole.get(diagnostic.origin) if diagnostic.origin is not None else None
    if name is None or for_each is None or name not in row:
        return diagnostic
    if isinstance(for_each.value, list):
        value = next(each.value[name] for each in for_each.value if each.plain_value() == row)
    else:
        axis = for_each.get(name)
        values = axis.value if axis is not None and isinstance(axis.value, list) else ()
        value = next((each for each in values if each.value == row[name]), None)
    if value is None:
        return diagnostic
    return replace(diagnostic, detail=f"{diagnostic.detail} The value stands at {value.origin(file)}.")


def _fixed(root: Node) -> dict[str, Any]:
    return {key: node.plain_value() for key, node in root.value.items() if key != "saes"}


def _remains(root: Node, file: str, made: Made, wrong: Iterable[Diagnostic], cut: Collection[Path]) -> Expanded:
    """What is left of a manifest without the values at the paths ``cut``."""
    fixed = without(_fixed(root), cut)
    below = [path[1:] for path in cut if path[0] == "saes"]
    sections = [] if () in below else [(row, without(section, below), set_) for row, section, set_ in made]
    unnamed = ("neuronpedia", "set") in cut or "neuronpedia" not in fixed
    saes = tuple((row, section, None if unnamed else set_) for row, section, set_ in sections)
    return Expanded(file, root, fixed, saes, tuple(wrong), frozenset(cut))


def without(value: Any, paths: Iterable[Path]) -> Any:
    """``value`` without what stands at some paths below it."""
    by_key: dict[str | int, list[Path]] = {}
    for path in paths:
        if path:
            by_key.setdefault(path[0], []).append(path[1:])
    if not by_key or not isinstance(value, dict):
        return value
    return {key: without(below, by_key.get(key, ())) for key, below in value.items() if () not in by_key.get(key, ())}


def _merged(explained: Iterable[Mapping[Sameness, Diagnostic]]) -> list[Diagnostic]:
    """Each error once per place and rule; where its text differs between SAEs, the first is shown and the others counted."""
    groups: dict[Sameness, list[str]] = {}
    first: dict[Sameness, Diagnostic] = {}
    for diagnostics in explained:
        for same, each in diagnostics.items():
            first.setdefault(same, each)
            groups.setdefault(same, []).append(each.detail)
    merged = []
    for key, details in groups.items():
        others = len(details) - 1
        if len(set(details)) == 1:
            merged.append(first[key])
        else:
            suffix = f" The same goes for {others} other SAE{'s' * (others != 1)} of this template."
            merged.append(replace(first[key], detail=first[key].detail + suffix))
    return merged

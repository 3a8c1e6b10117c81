"""From a tree of nodes to expanded documents that fit the schema, or everything that is wrong with it.

Expand first, validate after: what an SAE's value becomes is what counts. An error that many SAEs share stands once, at the
template's line.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from saesync.errors import Diagnostic, ManifestError, Origin
from saesync.manifest.expand import MAX_EXPANDED, NAME, WHOLE, Budget, Fill, Row, Rows, Templates, names_of, rows_of
from saesync.manifest.explain import Sameness, close, explain, sameness
from saesync.manifest.yaml12 import Node
from saesync.planfile import TYPE as PLAN
from saesync.schema import build, expanded
from saesync.schema.fast import Check, compile_schema

MAX_EXPLAINED = 100  # SAEs whose errors are spelled out; the rest come from the same template
MAX_EXPLAINED_VALUES = 100_000  # and values that are looked at in doing so
_WHICH_SOURCE = frozenset({"repo", "revision", "path", "format"})

Made = tuple[Row, Any, Any]  # row, section, neuronpedia.set


@dataclass(frozen=True, slots=True)
class Expanded:
    """A manifest that fits the schema. ``fixed`` is all but ``saes``; ``saes`` holds (row, section, neuronpedia.set) per SAE."""

    file: str
    root: Node
    fixed: Mapping[str, Any]
    saes: tuple[tuple[Row, Mapping[str, Any], str | None], ...]


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
    """The expanded manifest.

    Raises:
        ManifestError: everything that is wrong with it.
    """
    if not isinstance(root.value, dict):
        detail = "A manifest is a mapping: it begins with `apiVersion: saesync/v1`."
        raise ManifestError("Not a manifest", detail, root.origin(file))
    if (kind := root.get("type")) is not None and kind.value == PLAN:
        detail = "This is a plan file, and `saesync apply` knows one by its name: let it end in `.json`."
        raise ManifestError("Not a manifest", detail, kind.origin(file))
    found: list[Diagnostic] = []
    saes = root.get("saes")
    made = _made(root, saes, file, budget, found) if saes is not None and isinstance(saes.value, dict) else None
    if made is not None:
        return _fitting(root, file, made)
    _as_written(root, file, found)
    raise ManifestError.of(found)


def _made(root: Node, saes: Node, file: str, budget: Budget, found: list[Diagnostic]) -> list[Made] | None:
    """Every SAE, expanded; or None, and what is wrong with the template goes to ``found``."""
    rows = _rows(root, file, found)
    names = _names(saes, file)
    if names is None:
        return None
    try:
        templates = Templates(file, tuple(names))
        fills = templates.compile(saes, frozenset({"for_each"}))
        set_ = root.get("neuronpedia", "set")
        set_fills = templates.compile(set_) if set_ is not None else (None, None)
        found += templates.diagnostics
        found += templates.unused(names) if rows is not None or isinstance(saes.value["for_each"].value, dict) else ()
        if found or rows is None:
            return None
        origin = root.place(("saes", "for_each")).origin(file)
        budget.take(rows.count, origin)
        made = _expanded(rows, templates, fills, set_fills, _droppable(saes), budget, origin)
    except ManifestError as error:
        found += error.diagnostics
        return None
    found += templates.diagnostics
    return None if found else made


def _expanded(
    rows: Rows,
    templates: Templates,
    section: tuple[Any, Fill | None],
    set_: tuple[Any, Fill | None],
    droppable: Mapping[str, frozenset[str]],
    budget: Budget,
    origin: Origin,
) -> list[Made]:
    """One (row, section, neuronpedia.set) per row.

    Raises:
        ManifestError: all of them together are too long.
    """

    def filled(part: tuple[Any, Fill | None], row: Row) -> Any:
        value, fill = part
        return value if fill is None else fill(row)

    made = []
    for row in rows.make():
        whole = filled(section, row)
        whole = _without_nulls(whole, droppable) if None in row.values() else whole
        made.append((row, whole, filled(set_, row)))
        budget.characters -= templates.length(row)
        if budget.characters < 0:
            detail = f"All placeholders together expand to more than {MAX_EXPANDED:,} characters. Shorten the values."
            raise ManifestError("Text is too long", detail, origin)
    return made


def _names(saes: Node, file: str) -> Mapping[str, Origin] | None:
    """The names that texts may hold, or None where they cannot be told, and what is said of each text would be noise."""
    node = saes.get("for_each")
    if node is None:
        return None if any(close(key, ["for_each"]) for key in saes.keys) else {}
    names = names_of(node, file)
    fits = checks().for_each(node.plain_value())
    return names if names and (fits or all(NAME.fullmatch(name) for name in names)) else None


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


def _rows(root: Node, file: str, found: list[Diagnostic]) -> Rows | None:
    """The rows, if ``for_each`` is such that there are any; what is wrong otherwise goes to ``found``."""
    node = root.get("saes", "for_each")
    if node is not None and not checks().for_each(node.plain_value()):
        return None
    try:
        return rows_of(node, file)
    except ManifestError as error:
        found += error.diagnostics
        return None


def _as_written(root: Node, file: str, found: list[Diagnostic]) -> None:
    """Add what is wrong with the manifest before expansion: everything is said at once, even if it cannot be expanded."""
    places = {diagnostic.origin for diagnostic in found}
    written = checks().written
    found += [each for each in explain(root.plain_value(), root, file, written) if each.origin not in places]


def _fitting(root: Node, file: str, made: list[Made]) -> Expanded:
    """The expanded manifest, if every SAE fits the schema."""
    fixed = {key: node.plain_value() for key, node in root.value.items() if key != "saes"}
    compiled = checks()

    def document(section: Any, set_: Any) -> dict[str, Any]:
        whole = {**fixed, "saes": section}
        return whole if set_ is None else {**whole, "neuronpedia": {**fixed["neuronpedia"], "set": set_}}

    if not made:
        detail = "The exceptions leave no SAE. Remove some."
        raise ManifestError("for_each has no values", detail, root.place(("saes", "for_each")).origin(file))
    _, section, set_ = made[0]
    if not compiled.document(document(section, set_)):
        failing = list(enumerate(made))
    else:
        fit = (compiled.saes(part) and (name is None or compiled.set(name)) for _, part, name in made)
        failing = [each for each, fine in zip(enumerate(made), fit, strict=True) if not fine]
    if failing:
        for_each = root.get("saes", "for_each")
        size = root.size - (for_each.size if for_each is not None else 0)
        some = failing[: max(1, min(MAX_EXPLAINED, MAX_EXPLAINED_VALUES // size))]
        whole = {**_whole(root.get("saes"), file), **_whole(root.get("neuronpedia", "set"), file)}
        explained = [
            [
                _with_place(each, whole, index, row, for_each, file)
                for each in explain(document(part, name), root, file, compiled.schema)
            ]
            for index, (row, part, name) in some
        ]
        raise ManifestError.of(_merged(explained))
    return Expanded(file, root, fixed, tuple(made))


def _whole(node: Node | None, file: str) -> dict[Origin, str]:
    """Where texts stand that are nothing but a placeholder, and its name: what is wrong with them is a value of ``for_each``."""
    if node is None:
        return {}
    if isinstance(node.value, str):
        found = WHOLE.fullmatch(node.value)
        return {} if found is None else {node.origin(file): found[1]}
    below = node.value.values() if isinstance(node.value, dict) else node.value if isinstance(node.value, list) else ()
    return {origin: name for each in below for origin, name in _whole(each, file).items()}


def _with_place(
    diagnostic: Diagnostic, whole: Mapping[Origin, str], index: int, row: Row, for_each: Node | None, file: str
) -> Diagnostic:
    """``diagnostic`` of the SAE at ``index``, with the place of the value that is wrong where the template only names it."""
    name = whole.get(diagnostic.origin) if diagnostic.origin is not None else None
    if name is None or for_each is None:
        return diagnostic
    if isinstance(for_each.value, list):
        value = for_each.get(index, name)
    else:
        axis = for_each.get(name)
        values = axis.value if axis is not None and isinstance(axis.value, list) else ()
        value = next((each for each in values if each.value == row[name]), None)
    if value is None:
        return diagnostic
    return replace(diagnostic, detail=f"{diagnostic.detail} The value stands at {value.origin(file)}.")


def _merged(explained: Iterable[list[Diagnostic]]) -> list[Diagnostic]:
    """Each kind of error once per place; where its text differs between SAEs, the first is shown and the others counted."""
    groups: dict[Sameness, list[str]] = {}
    first: dict[Sameness, Diagnostic] = {}
    for diagnostics in explained:
        for each in diagnostics:
            key = sameness(each)
            first.setdefault(key, each)
            groups.setdefault(key, []).append(each.detail)
    merged = []
    for key, details in groups.items():
        others = len(details) - 1
        if len(set(details)) == 1:
            merged.append(first[key])
        else:
            suffix = f" The same goes for {others} other SAE{'s' * (others != 1)} of this template."
            merged.append(replace(first[key], detail=first[key].detail + suffix))
    return merged

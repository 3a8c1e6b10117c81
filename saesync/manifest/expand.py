"""``for_each`` and placeholders: one template becomes many SAEs. Counted before they are made, bounded throughout.

The whole language is ``{name}`` and ``{name:02d}``: no attributes, indices, conversions, nesting, conditions, arithmetic.
"""

from __future__ import annotations

import difflib
import itertools
import math
import re
import string
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from saesync.errors import Diagnostic, ManifestError, Origin
from saesync.manifest.yaml12 import Node, Scalar
from saesync.record import MAX_SAES

MAX_TEMPLATES = 64
MAX_TEXT = 4_000
MAX_EXPANDED = 64_000_000

NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,31}")
WHOLE = re.compile(rf"\{{({NAME.pattern})\}}")
_SPEC = re.compile(r"[<>^]?0?[0-9]{0,2}(?:\.[0-9]{1,2})?[dxXofeEgGs]?")

Row = Mapping[str, Scalar]
Fill = Callable[[Row], Any]


@dataclass
class Budget:
    """What one run of all manifests may still expand to."""

    saes: int = MAX_SAES
    characters: int = MAX_EXPANDED

    def take(self, count: int, origin: Origin) -> None:
        """Set aside room for ``count`` SAEs before any of them is made.

        Raises:
            ManifestError: there is not that much room.
        """
        if count > self.saes:
            before = MAX_SAES - self.saes
            others = f", with {before:,} of the manifests before it" if before else ""
            room = f"one run handles at most {MAX_SAES:,}, and reads whole folders"
            detail = f"This asks for {count:,} SAEs{others}; {room}. Move some to another folder."
            raise ManifestError("Too many SAEs", detail, origin)
        self.saes -= count

    def spend(self, characters: int, origin: Origin) -> None:
        """Count what the texts of one SAE hold.

        Raises:
            ManifestError: all texts together are too long.
        """
        self.characters -= characters
        if self.characters < 0:
            detail = f"All placeholders together expand to more than {MAX_EXPANDED:,} characters. Shorten the values."
            raise ManifestError("Text is too long", detail, origin)


@dataclass(frozen=True, slots=True)
class Template:
    """A text with placeholders. ``whole`` names the placeholder that is all of it, so that its value keeps its type."""

    text: str
    names: frozenset[str]
    whole: str | None
    origin: Origin

    def fill(self, row: Row) -> Scalar:
        """The value for one row.

        Raises:
            ManifestError: a format does not fit a value, or the result is too long.
        """
        if self.whole is not None:
            return row[self.whole]
        for name in self.names:
            if row[name] is None:
                detail = f"{name} is null here, which stands for nothing: only a value that is all `{{{name}}}` may be left out."
                raise ManifestError("Placeholder has no value", detail, self.origin)
        try:
            filled = self.text.format_map(row)
        except ValueError as error:
            values = ", ".join(f"{name} is {row[name]!r}" for name in sorted(self.names))
            detail = f"This format does not fit the value: {values}. `d` formats are for whole numbers only."
            raise ManifestError("Placeholder does not fit", detail, self.origin) from error
        if len(filled) > MAX_TEXT:
            raise ManifestError("Text is too long", f"It expands to more than {MAX_TEXT:,} characters.", self.origin)
        return filled


@dataclass
class Templates:
    """Every text with placeholders under some nodes; ``compile`` turns a node into a function from rows to plain values.

    What is malformed goes to ``diagnostics``, what a row cannot fill to ``unfilled``, and what it has no value for, since the
    ``for_each`` is wrong there, to ``unknown``; the text is then left as it is written.
    """

    file: str
    known: Sequence[str]
    found: list[Template] = field(default_factory=list)
    diagnostics: list[Diagnostic] = field(default_factory=list)
    guessed: set[str] = field(default_factory=set)
    unfilled: dict[Origin, Diagnostic] = field(default_factory=dict)
    unknown: set[Origin] = field(default_factory=set)
    characters: int = 0

    def compile(self, node: Node, skip: frozenset[str] = frozenset()) -> tuple[Any, Fill | None]:
        """The plain value of ``node``, and how to fill it (None: nothing varies). ``skip`` names keys to leave out."""
        if isinstance(node.value, dict):
            parts = {key: self.compile(below) for key, below in node.value.items() if key not in skip}
            fixed = {key: value for key, (value, _) in parts.items()}
            fills = [(key, fill) for key, (_, fill) in parts.items() if fill is not None]
            return fixed, None if not fills else lambda row: {**fixed, **{key: fill(row) for key, fill in fills}}
        if isinstance(node.value, list):
            items = [self.compile(below) for below in node.value]
            if all(fill is None for _, fill in items):
                return [value for value, _ in items], None
            return None, lambda row: [value if fill is None else fill(row) for value, fill in items]
        if isinstance(node.value, str) and ("{" in node.value or "}" in node.value):
            return self._text(node)
        return node.value, None

    def length(self, row: Row) -> int:
        """How many characters the texts with placeholders hold for one row, at most: what is counted against the budget."""
        if not self.found:
            return 0
        values = sum(len(value) for value in row.values() if isinstance(value, str))
        return self.characters + len(self.found) * (values + 40)

    def _text(self, node: Node) -> tuple[Any, Fill | None]:
        template = self._template(node)
        if template is None:
            return node.value, None
        if not template.names:
            return template.text.format_map({}), None
        self.found.append(template)
        self.characters += len(template.text)
        if len(self.found) > MAX_TEMPLATES:
            detail = f"At most {MAX_TEMPLATES} values of a manifest may hold placeholders."
            raise ManifestError("Too many placeholders", detail, template.origin)

        def fill(row: Row) -> Scalar:
            if not template.names <= row.keys():
                self.unknown.add(template.origin)
                return template.text
            try:
                return template.fill(row)
            except ManifestError as error:
                self.unfilled.setdefault(template.origin, error.diagnostics[0])
                return template.text

        return node.value, fill

    def _template(self, node: Node) -> Template | None:
        """The template, or None after saying what is wrong with it."""
        origin, text = node.origin(self.file), node.value
        if len(text) > MAX_TEXT:
            self._wrong("Text is too long", f"Texts with placeholders have at most {MAX_TEXT:,} characters.", origin)
            return None
        try:
            parts = list(string.Formatter().parse(text))
        except ValueError:
            detail = (
                "A brace is not closed, or not opened. Placeholders look like `{layer}`; a brace itself is written twice: `{{`."
            )
            self._wrong("Placeholder is malformed", detail, origin)
            return None
        fields = [(name, spec or "", conversion) for _, name, spec, conversion in parts if name is not None]
        if [each for each in fields if not self._fine(*each, origin)]:
            self.guessed.update(name for name, _, _ in fields)
            return None
        names = {name for name, _, _ in fields}
        only = parts[0] if len(parts) == 1 else None
        whole = only[1] if only is not None and not only[0] and not only[2] else None
        return Template(text, frozenset(names), whole, origin)

    def _fine(self, name: str, spec: str, conversion: str | None, origin: Origin) -> bool:
        """Whether one placeholder is allowed and known."""
        if not NAME.fullmatch(name) or conversion is not None:
            said = name if conversion is None else f"{name}!{conversion}"
            detail = f"Placeholders are a name and a format, such as `{{layer}}` or `{{layer:02d}}`; `{{{said}}}` is not."
            self._wrong("Placeholder is malformed", detail, origin)
            return False
        if not _SPEC.fullmatch(spec):
            detail = f'"{spec}" is not a format that placeholders may have. Use a width of at most two digits: `{{{name}:02d}}`.'
            self._wrong("Placeholder is malformed", detail, origin)
            return False
        if name not in self.known:
            close = difflib.get_close_matches(name, self.known, 1)
            self.guessed.update(close)
            if not self.known:
                advice = "There is no `for_each` that gives it values."
            else:
                advice = f"Did you mean `{{{close[0]}}}`?" if close else f"for_each has: {', '.join(self.known)}."
            self._wrong("Unknown placeholder", f'"{name}" is not a name of for_each. {advice}', origin)
            return False
        return True

    def _wrong(self, summary: str, detail: str, origin: Origin) -> None:
        self.diagnostics.append(Diagnostic(summary, detail, origin))

    def unused(self, places: Mapping[str, Origin]) -> dict[str, Diagnostic]:
        """Names of ``for_each`` that no text uses, except those that a misspelt placeholder meant."""
        used = set().union(*(template.names for template in self.found)) | self.guessed
        said = "No value holds `{{{}}}`. Use it, for example in the id, or remove it from for_each."
        left = {name: origin for name, origin in places.items() if name not in used}
        return {name: Diagnostic("Placeholder is never used", said.format(name), origin) for name, origin in left.items()}


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows of a ``for_each`` that fits the schema: how many, where its names stand, and the rows themselves."""

    count: int
    names: Mapping[str, Origin]
    make: Callable[[], Iterator[Row]]


def distinct(rows: Iterable[Row], unused: Collection[str]) -> Iterator[Row]:
    """``rows`` without those that differ from an earlier one only in names that nothing uses."""
    seen = set()
    for row in rows:
        used = tuple(value for name, value in row.items() if name not in unused) if unused else None
        if used is None or used not in seen:
            seen.add(used)
            yield row


def rows_of(node: Node | None, file: str, found: list[Diagnostic]) -> Rows:
    """The rows of a ``for_each`` that fits the schema (one empty row without it). Nothing is made until ``make`` is called.

    What is wrong goes to ``found`` and is left out of the rows: rows with other names than the first, ranges that run
    backwards, exceptions that match nothing.
    """
    if node is None:
        return Rows(1, {}, lambda: iter(({},)))
    if isinstance(node.value, list):
        return _listed(node, file, found)
    axes = {name: _axis(axis, name, file, found) for name, axis in node.value.items() if name != "except"}
    if not axes:
        found.append(Diagnostic("for_each has no values", "Give at least one placeholder values.", node.origin(file)))
        return Rows(0, {}, lambda: iter(()))
    count = math.prod(len(values) for values in axes.values())
    dropped = _exceptions(node.get("except"), axes, file, found)

    def make() -> Iterator[Row]:
        for values in itertools.product(*axes.values()):
            row = dict(zip(axes, values, strict=True))
            if not any(tuple(row[name] for name in chosen) in left_out for chosen, left_out in dropped.items()):
                yield row

    return Rows(count, names_of(node, file), make)


def names_of(node: Node, file: str) -> dict[str, Origin]:
    """The names of a ``for_each`` and their places, as far as they can be told, whether or not it fits the schema."""
    first = node.value[0] if isinstance(node.value, list) and node.value else node
    return {name: key.origin(file) for name, key in first.keys.items() if name != "except" or first is not node}


def _axis(node: Node, name: str, file: str, found: list[Diagnostic]) -> Sequence[Scalar]:
    if isinstance(node.value, list):
        return [below.value for below in node.value]
    first, last = int(node.value["first"].value), int(node.value["last"].value)
    if last < first:
        detail = f"{name} runs from {first} to {last}; `last` cannot be smaller than `first`."
        found.append(Diagnostic("Range runs backwards", detail, node.value["last"].origin(file)))
    return range(min(first, last), max(first, last) + 1)


def _listed(node: Node, file: str, found: list[Diagnostic]) -> Rows:
    names = names_of(node, file)
    rows = []
    seen: dict[tuple[tuple[str, str], ...], Origin] = {}
    for row in node.value:
        values = tuple(sorted((name, repr(below.value)) for name, below in row.value.items()))
        if values in seen:
            detail = f"The row at {seen[values]} says the same, and every row is one SAE. Change or remove one of them."
            found.append(Diagnostic("Rows are equal", detail, row.origin(file)))
            continue
        seen[values] = row.origin(file)
        if row.keys.keys() == names.keys():
            rows.append({name: below.value for name, below in row.value.items()})
        else:
            odd = sorted(row.keys.keys() ^ names.keys())
            detail = f'Every row has the same names as the first; "{odd[0]}" is not in both.'
            found.append(Diagnostic("Rows differ in their names", detail, row.origin(file)))
    return Rows(len(rows), names, lambda: iter(rows))


def _exceptions(
    node: Node | None, axes: Mapping[str, Sequence[Scalar]], file: str, wrong: list[Diagnostic]
) -> dict[tuple[str, ...], set[tuple[Scalar, ...]]]:
    """The values to leave out, by the names they are given for; all must be known and occur."""
    found: dict[tuple[str, ...], set[tuple[Scalar, ...]]] = {}
    for row in node.value if node is not None else ():
        for name, below in row.value.items():
            if name not in axes:
                detail = f'"{name}" is not a name of for_each. Names: {", ".join(axes)}.'
                wrong.append(Diagnostic("Unknown placeholder", detail, row.keys[name].origin(file)))
            elif below.value not in axes[name]:
                detail = f"No SAE has {name} = {below.value}, so this leaves nothing out."
                wrong.append(Diagnostic("Exception matches nothing", detail, below.origin(file)))
        names = tuple(sorted(row.value))
        if axes.keys() >= set(names):
            found.setdefault(names, set()).add(tuple(row.value[name].value for name in names))
    return found

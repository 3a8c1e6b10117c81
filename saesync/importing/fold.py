"""From a list of SAEs to one template: the reverse of ``manifest.expand``. Pure.

What is the same everywhere stands in the template. If everything else is made of one whole number (consecutive layers), that
is an axis of ``for_each``; otherwise each SAE has a row with what differs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from saesync.inspection.text import yaml

Value = str | int | float | None
Row = Mapping[str, Value]

_DIGITS = re.compile(r"([0-9]+)")
_WORD = re.compile(r"([A-Za-z]+)[^A-Za-z]*$")
_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_./+{}:-]*[A-Za-z0-9_}]")
_LAYERS = frozenset(("block", "blocks", "h", "l", "layer", "layers"))
_MOST_DIGITS = 9  # axes of manifests end at 10**9


@dataclass(frozen=True, slots=True)
class Folded:
    """``for_each`` are the lines of that section, indented by two, none for a single SAE. ``values`` are YAML scalars by column:
    templates, or what is the same for all."""

    for_each: tuple[str, ...]
    values: Mapping[str, str]


def fold(rows: Sequence[Row]) -> Folded:
    """The template of ``rows``, which all have the same columns; ``id`` is one, and differs between any two.

    Filling the template with the rows of ``for_each`` gives ``rows`` again: order, and int or float, included. A value that is
    None is null in its row, and has no place in a template that is a text with more than the placeholder.
    """
    varying = [name for name in rows[0] if any(_kind(row[name]) != _kind(rows[0][name]) for row in rows)]
    constants = {name: literal(value) for name, value in rows[0].items() if name not in varying}
    if not varying:
        return Folded((), constants)
    number = _number(rows, varying)
    if number is not None:
        templates, shown = number.templates, [{number.word: value} for value in number.values]
    else:
        templates, shown = {name: made for name in varying if (made := _around_id(rows, name)) is not None}, [{} for _ in rows]
    kept = [name for name in varying if name not in templates]
    values = {**constants, **{name: f'"{{{name}}}"' for name in kept}, **templates}
    if number is not None and not kept:
        return Folded(("  for_each:", f"    {number.word}: {_axis(number.values)}"), values)
    rowed = ({**first, **{name: row[name] for name in kept}} for first, row in zip(shown, rows, strict=True))
    lines = (f"    - {{{', '.join(f'{name}: {scalar(value)}' for name, value in row.items())}}}" for row in rowed)
    return Folded(("  for_each:", *lines), values)


def scalar(value: Any) -> str:
    """A value as YAML, where placeholders mean nothing."""
    return "null" if value is None else yaml(value)


def literal(value: Any) -> str:
    """A value as YAML, where braces would be taken for placeholders."""
    return scalar(value.replace("{", "{{").replace("}", "}}") if isinstance(value, str) else value)


def _kind(value: Value) -> tuple[type, Value]:
    """1, 1.0 and True are equal, and different things in a manifest."""
    return type(value), value


def _template(text: str) -> str:
    """A text with placeholders as a YAML scalar of a block mapping."""
    return text if _PLAIN.fullmatch(text) else yaml(text)


def _around_id(rows: Sequence[Row], name: str) -> str | None:
    """``prefix{id}suffix`` if a column is just that."""
    first, sae_id = rows[0][name], rows[0]["id"]
    if name == "id" or not isinstance(first, str) or not isinstance(sae_id, str) or sae_id not in first:
        return None
    before, _, after = first.partition(sae_id)
    if any(row[name] != f"{before}{row['id']}{after}" for row in rows):
        return None
    escaped = [part.replace("{", "{{").replace("}", "}}") for part in (before, after)]
    return _template(f"{escaped[0]}{{id}}{escaped[1]}")


@dataclass(frozen=True, slots=True)
class _Number:
    """The whole number of each SAE, what it is called, and the columns that are made of it."""

    word: str
    values: Sequence[int]
    templates: Mapping[str, str]


def _number(rows: Sequence[Row], varying: Sequence[str]) -> _Number | None:
    """One whole number per SAE that tells their ids apart, and other columns that follow it; None where ids differ in more."""
    split = _split([row["id"] for row in rows])
    if split is None:
        return None
    fixed, moving = split
    numbers, *others = ([int(text) for text in digits] for digits in moving.values())
    word = _word(fixed[min(moving) - 1], rows[0])
    own = _with_placeholders(fixed, moving, word)
    if own is None or any(other != numbers for other in others):
        return None
    templates = {"id": own}
    for name in varying:
        split = _split([row[name] for row in rows])
        if split is not None and all([int(text) for text in digits] == numbers for digits in split[1].values()):
            made = _with_placeholders(*split, word)
            templates |= {} if made is None else {name: made}
    return _Number(word, numbers, templates)


def _split(values: Sequence[Value]) -> tuple[list[str], dict[int, list[str]]] | None:
    """Parts of the first text, and for each position of a number that differs, its digits in all; None if more differs."""
    texts = [value for value in values if isinstance(value, str)]
    if len(texts) < len(values):
        return None
    parts = [_DIGITS.split(text) for text in texts]
    first = parts[0]
    moving: dict[int, list[str]] = {}
    if any(len(each) != len(first) for each in parts):
        return None
    for position, column in enumerate(zip(*parts, strict=True)):
        if len(set(column)) == 1:
            continue
        if position % 2 == 0 or max(map(len, column)) > _MOST_DIGITS:
            return None
        moving[position] = list(column)
    return first, moving


def _with_placeholders(fixed: Sequence[str], moving: Mapping[int, Sequence[str]], word: str) -> str | None:
    found = []
    for position, part in enumerate(fixed):
        if position not in moving:
            found.append(part.replace("{", "{{").replace("}", "}}"))
            continue
        width = len(moving[position][0])
        if all(str(int(text)) == text for text in moving[position]):
            found.append(f"{{{word}}}")
        elif all(f"{int(text):0{width}d}" == text for text in moving[position]):
            found.append(f"{{{word}:0{width}d}}")
        else:
            return None
    text = "".join(found)
    # A value that is all placeholder would keep the number's type, and these are texts.
    return _template(f"{{{word}:d}}" if text == f"{{{word}}}" else text)


def _word(before: str, taken: Row) -> str:
    """A name for the number, from what stands before it in the id."""
    found = _WORD.search(before)
    word = found[1].lower()[:32] if found is not None else ""
    return "layer" if word in _LAYERS else word if word not in ("", "except", *taken) else "index"


def _axis(numbers: Sequence[int]) -> str:
    if list(numbers) == list(range(numbers[0], numbers[0] + len(numbers))):
        return f"{{first: {numbers[0]}, last: {numbers[-1]}}}"
    return f"[{', '.join(map(str, numbers))}]"

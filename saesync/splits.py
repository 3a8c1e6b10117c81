"""Which files of a dataset belong to a split, by the words in their names, as the Hub's own libraries find them. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable

_WORDS = (
    frozenset({"train", "training"}),
    frozenset({"validation", "valid", "val", "dev"}),
    frozenset({"test", "testing", "eval", "evaluation"}),
)


def of_split(names: Iterable[str], split: str) -> list[str]:
    """The names that have the split's word, in their order.

    Where none has, "train" is what belongs to no other split; any other split is then empty: numbers of one split are never
    passed off as those of another.
    """
    found = [(name, words_of(name)) for name in names]
    asked = split.lower()
    alike = next((words for words in _WORDS if asked in words), frozenset({asked}))
    chosen = [name for name, words in found if words & alike]
    if chosen or asked != "train":
        return chosen
    return [name for name, words in found if not words & frozenset().union(*_WORDS)]


def words_of(name: str) -> frozenset[str]:
    """The words of a path, in small letters: ``data/train-00000.parquet`` has data, train, 00000 and parquet."""
    return frozenset(re.split(r"[^a-z0-9]+", name.lower()))

"""Which files of a dataset belong to a split or a config, by the words in their names, as the Hub's own libraries find them."""

from __future__ import annotations

import re
from collections.abc import Iterable

DEFAULT = "train"
_FAMILIES = (
    frozenset({"train", "training"}),
    frozenset({"validation", "valid", "val", "dev"}),
    frozenset({"test", "testing", "eval", "evaluation"}),
)
_SHARD = re.compile(r"(?:^|/)([\w.]+)-\d{5}-of-\d{5}")  # how the Hub's libraries name what they write: the split stands alone


def of_split(names: Iterable[str], split: str) -> list[str]:
    """The names that are told to be of the split, in their order.

    Shards that are named as of this very split are taken alone. Otherwise folders tell before file names, the innermost first.
    Where none is of the split, "train" is what belongs to no other; any other split is then empty: numbers of one split are
    never passed off as those of another.
    """
    names, asked = list(names), _family(split.lower())
    shards = [name for name in names if (match := _SHARD.search(name.lower())) is not None and _family(match[1]) == asked]
    if shards or len(asked) == 1:
        return shards or [name for name in names if says(name, split)]
    told = {name: _told(name) for name in names}
    chosen = [name for name, splits in told.items() if splits & asked]
    if chosen or split.lower() != DEFAULT:
        return chosen
    return [name for name, splits in told.items() if not splits]


def says(name: str, phrase: str) -> bool:
    """Whether a part of a path has the words of a phrase, one after the other: ``data/en-US/x`` says "en us"."""
    wanted = _words(phrase)
    return bool(wanted) and any(
        words[at : at + len(wanted)] == wanted for words in map(_words, name.split("/")) for at in range(len(words))
    )


def _told(name: str) -> frozenset[str]:
    """All words for the splits that a name is told to be of; empty when it tells nothing."""
    *folders, file = name.split("/")
    for part in (*reversed(folders), file):
        letters = set(re.findall(r"[a-z]+", part.lower()))  # digits part words: train1
        found = [family for family in _FAMILIES if family & letters]
        if found:
            return frozenset[str]().union(*found)
    return frozenset()


def _family(split: str) -> frozenset[str]:
    return next((family for family in _FAMILIES if split in family), frozenset({split}))


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", text.lower())

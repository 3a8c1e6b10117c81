"""Digests of a plan: of all of it, and of each release, so that two plans can be compared release by release. Pure.

Both are of the items' steps and basis, whatever the order of the manifests. The parts may come from a plan or its JSON form.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from saesync.digest import key_of
from saesync.planning.basis import ASKED, compared
from saesync.planning.registration import SECTION

Part = tuple[tuple[str, str, str], Sequence[str], Mapping[str, Any]]
"""What of an item counts: its key (``basis.key_of_item``), its steps, its basis."""

Row = list[Any]


@dataclass(frozen=True, slots=True)
class Digests:
    """``releases`` are equal in two plans when both would do the same there, for the same reasons.

    Of an entry in a registry only what is asked counts there: what stands in the registry is nothing that the manifest's review
    is of, and a plan of a stranger's manifest never looks at it. ``whole`` covers that, too.
    """

    whole: str
    releases: Mapping[str, str]


def digests_of(parts: Iterable[Part]) -> Digests:
    """The digests of all items of a plan."""
    rows: dict[str, list[Row]] = {}
    entries: list[Row] = []
    for key, steps, basis in parts:
        found = compared(basis)
        row = [*key, list(steps), found]
        if key[2] == SECTION:
            entries.append(row)
            row = [*key, [], {name: value for name, value in found.items() if name.startswith(ASKED)}]
        rows.setdefault(key[0], []).append(row)
    releases = {release: key_of(_sorted(members)) for release, members in rows.items()}
    return Digests(key_of([releases, _sorted(entries)]), releases)


def _sorted(rows: list[Row]) -> list[Row]:
    return sorted(rows, key=lambda row: row[:3])

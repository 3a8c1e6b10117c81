"""SAEs that are measured together share the fate of their worker; this finds the one that kills it.

When a worker dies, its SAEs are tried again in two parts, and those of a part that dies in two parts again. An SAE whose worker
died while it was alone is tried once more alone: what killed the process may have been somebody else's need of memory. An answer,
also one that says what is wrong, is never asked for twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from saesync.apply.work import Work
from saesync.workers import WorkerLost

MOST_DEATHS = 12  # over one group: enough to find two of 32; the cause may be none of them, and each costs a fresh process
Answer = Mapping[str, Any]


def in_groups(
    works: Sequence[Work], measure: Callable[[Sequence[Work]], Answer], tell: Callable[[str], None]
) -> Iterator[tuple[Sequence[Work], Answer | WorkerLost]]:
    """Every SAE in one group, with the worker's answer or with what became of the worker. ``tell`` is told of new tries.

    Raises:
        SaesyncError: as ``measure`` does, unless the worker was lost.
    """
    waiting: list[tuple[Sequence[Work], bool]] = [(works, False)]
    deaths = 0
    while waiting:
        group, again = waiting.pop(0)
        try:
            answer = measure(group)
        except WorkerLost as error:
            deaths += 1
            if deaths > MOST_DEATHS or (again and len(group) == 1):
                yield group, error
                continue
            half = -(-len(group) // 2)
            waiting[:0] = [(part, True) for part in (group[:half], group[half:]) if part]
            tell(_said(group))
        else:
            yield group, answer


def _said(group: Sequence[Work]) -> str:
    if len(group) == 1:
        return f"The worker that measured {group[0].address} died. Trying once more."
    return f"The worker that measured {group[0].address} and {len(group) - 1} more died. Trying them again in two parts."

"""When a commit goes out, and how much of what waits goes into it. Pure: time comes in as a number.

The hosted Hub rations commits by the hour, and nobody wants to wait an hour for the first SAE: the first commit goes out after a
moment (what an earlier run has left finished comes all at once), later ones when enough files wait or some time has passed.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

FILES = 100  # a commit goes out as soon as this many files wait
MOMENT = 0.125  # seconds for which the first commit waits for others
INTERVAL = 120.0  # seconds after which whatever waits goes out
PER_HOUR = 30
HOUR = 3600.0
MOST_FILES = 1000  # in one commit, however much waits


@dataclass(frozen=True, slots=True)
class Decision:
    """``take`` is how many of the waiting SAEs to commit now; when it is 0, ``wait`` is the seconds until asking again makes
    sense (None: not before something new waits)."""

    take: int
    wait: float | None = None


@dataclass(slots=True)
class Batching:
    """The commits of one location so far. ``decide`` does not change it; ``committed`` notes a commit."""

    _times: deque[float] = field(default_factory=deque)

    def decide(self, now: float, files: Sequence[int], ending: bool, since: float = -math.inf) -> Decision:
        """``files`` are the file counts of the waiting SAEs, oldest first; ``since`` is when the very first one was ready;
        ``ending``: nothing more will come."""
        if not files:
            return Decision(0)
        recent = [time for time in self._times if time > now - HOUR]
        if len(recent) >= PER_HOUR:
            return Decision(0, recent[-PER_HOUR] + HOUR - now)
        due = (self._times[-1] + INTERVAL if self._times else since + MOMENT) - now
        if not ending and sum(files) < FILES and due > 0:
            return Decision(0, due)
        return Decision(_fill(files, _room(sum(files), PER_HOUR - len(recent))))

    def committed(self, now: float) -> None:
        """Note a commit (also one whose outcome is unknown)."""
        self._times.append(now)
        while self._times[0] <= now - HOUR:
            self._times.popleft()


def _room(waiting: int, left: int) -> int:
    """Files for the next commit: as usual, or more when the hour's remaining commits would not be enough for what waits."""
    return min(MOST_FILES, max(FILES, -(-waiting // left)))


def _fill(files: Sequence[int], room: int) -> int:
    """How many whole SAEs fit; always at least one."""
    total = 0
    for index, count in enumerate(files):
        total += count
        if total > room:
            return max(index, 1)
    return len(files)

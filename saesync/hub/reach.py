"""Whether an endpoint can be reached at all: learnt by one request, known to all others of the process."""

from __future__ import annotations

import functools
import threading
import time

NEVER_REACHED_SECONDS = 5.0
"""How long an address that never answered is tried: it is mistyped, or there is no network."""

_FORGOTTEN = 60.0  # seconds after which an earlier failure says nothing about the next request


class Reach:
    """What the requests to one endpoint found out together. Safe to share between threads.

    Only failures to connect count (a name that is not known, a refused or an unanswered connection): an answer of any kind
    means that the endpoint is there.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._reached = False
        self._given_up = False
        self._failed: tuple[float, float] | None = None  # first and latest failure since the last answer

    def answered(self) -> None:
        """The endpoint sent something."""
        with self._lock:
            self._reached, self._given_up, self._failed = True, False, None

    def failed(self, took: float = 0.0) -> None:
        """No connection could be made; finding out took so many seconds."""
        now = time.monotonic()
        with self._lock:
            first = self._failed[0] if self._failed is not None and self._recent(now) else now - took
            self._given_up, self._failed = self._given_up and self._recent(now), (first, now)

    def gone(self, seconds: float, pause: float = 0.0) -> bool:
        """Whether, after a further ``pause``, it will have been away for longer than is waited. Once this is so for one, it is
        so for all.

        ``seconds`` is the patience with an endpoint that was there before.
        """
        now = time.monotonic()
        with self._lock:
            if self._failed is None or not self._recent(now):
                return False
            limit = seconds if self._reached else min(seconds, NEVER_REACHED_SECONDS)
            self._given_up = self._given_up or now + pause - self._failed[0] > limit
            return self._given_up

    def _recent(self, now: float) -> bool:
        return self._failed is not None and now - self._failed[1] <= _FORGOTTEN


@functools.cache
def reach_of(endpoint: str) -> Reach:
    """The one shared by all clients of an endpoint in this process."""
    return Reach()

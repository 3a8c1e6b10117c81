"""What apply needs besides the plan, and how it is told to stop."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from saesync.cache import Cache
from saesync.convert.rows import REAL_LIMIT
from saesync.keys import Wanted
from saesync.model import Choices, Observed
from saesync.nothing import nothing
from saesync.observe import Place
from saesync.planning.registration import Seen
from saesync.policy import OPEN, Policy
from saesync.resolve import Resolver
from saesync.targets.base import Target
from saesync.workers import Launcher, spawn


class StopFlag:
    """Set by Ctrl-C. Once: finish running steps, publish what passed, then stop. Twice: stop now.

    ``request`` takes no lock, so a signal handler may call it at any instant.
    """

    def __init__(self) -> None:
        self._asked = 0
        self._hurry: Callable[[], None] | None = None

    def request(self) -> int:
        """Count one request; returns how many there were so far."""
        self._asked += 1
        if self.now and self._hurry is not None:
            self._hurry()
        return self._asked

    def at_once(self, hurry: Callable[[], None]) -> None:
        """What the second request does by itself: end what its caller may be waiting for."""
        self._hurry = hurry

    @property
    def stopping(self) -> bool:
        """Start nothing new."""
        return self._asked > 0

    @property
    def now(self) -> bool:
        """Wait for nothing."""
        return self._asked > 1


@dataclass(frozen=True)
class Context:
    """Everything ``apply`` works with. ``wanted``, ``observed`` and ``registries`` are what the plan was made from.

    ``devices`` are torch device names, one measure worker each; empty means: every GPU found, else the CPU.
    ``converters`` is the number of convert workers. ``proof_rows`` is how many rows of real activations a proof uses
    (at most as many as a proof takes). ``debug`` tells what a failing worker wrote to stderr. ``start`` starts a worker
    process. ``clock`` is monotonic seconds, ``now`` wall-clock seconds for the record's ``run`` part.
    """

    cache: Cache
    resolver: Resolver
    wanted: Mapping[str, Wanted]
    observed: Mapping[Place, Observed]
    open_target: Callable[[str], Target]
    registries: Mapping[str, Seen] = field(default_factory=nothing)
    policy: Policy = OPEN
    choices: Choices = field(default_factory=Choices)
    devices: tuple[str, ...] = ()
    converters: int = 1
    proof_rows: int = REAL_LIMIT
    debug: bool = False
    start: Launcher = spawn
    clock: Callable[[], float] = time.monotonic
    now: Callable[[], float] = time.time

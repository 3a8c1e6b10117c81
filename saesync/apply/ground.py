"""What every step of an apply stands on: what its kind is granted, how it tells of itself, and the processes that work for it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from saesync.apply.context import Context
from saesync.apply.crew import Crew
from saesync.apply.work import USES, Work
from saesync.errors import SaesyncError
from saesync.events import Emit
from saesync.hub import Hub
from saesync.model import StepKind
from saesync.targets.base import Target
from saesync.workers import Worker

Progress = Callable[[int, int], None]
_PROGRESS_EVERY = 0.1


class NotGrantedError(RuntimeError):
    """A step asked for what its kind may not use (``work.USES``): a mistake of ours."""


@dataclass
class Ground:
    """Shared by all steps of one apply, in whichever lane they run."""

    context: Context
    crew: Crew
    emit: Emit

    def __post_init__(self) -> None:
        self._hub: Hub | None = None
        self._targets: dict[str, Target] = {}
        self._lock = threading.Lock()

    # ------------------------------------------------------------------------------------------- what is granted

    def hub(self, step: StepKind) -> Hub:
        """The Hub, for steps that may use the network.

        Raises:
            NotGrantedError: this step may not.
        """
        _check(step)
        with self._lock:
            if self._hub is None:
                self._hub = self.context.resolver.hub or Hub(self.context.cache)
            return self._hub

    def target(self, step: StepKind, name: str) -> Target:
        """A target, for steps that may use the network.

        Raises:
            NotGrantedError: this step may not.
        """
        _check(step)
        with self._lock:
            if name not in self._targets:
                self._targets[name] = self.context.open_target(name)
            return self._targets[name]

    # --------------------------------------------------------------------------------------------------- telling

    @contextmanager
    def step(self, addresses: Sequence[str], kind: StepKind, unit: str = "B") -> Iterator[tuple[Progress, dict[str, Any]]]:
        """Say that a step begins and ends. Yields a progress function and what else the end shall say of each address."""
        for address in addresses:
            self.emit({"type": "step_started", "address": address, "step": str(kind)})
        began = self.context.clock()
        said = 0.0
        more: dict[str, Any] = {}

        def progress(done: int, total: int) -> None:
            nonlocal said
            now = time.monotonic()
            if now - said >= _PROGRESS_EVERY or done >= total:
                said = now
                others = {"others": len(addresses) - 1} if len(addresses) > 1 else {}
                about = {"address": addresses[0], "step": str(kind), **others}
                self.emit({"type": "progress", **about, "done": done, "total": total, "unit": unit})

        yield progress, more
        seconds = round(self.context.clock() - began, 3)
        for address in addresses:
            said_of = more.get(address, {})
            self.emit(
                {"type": "step_finished", "address": address, "step": str(kind), "seconds": seconds, "cached": False, **said_of}
            )

    def cached(self, work: Work, kind: StepKind, **more: Any) -> None:
        """Say that a step had been done before."""
        about = {"address": work.address, "step": str(kind), "seconds": 0.0, "cached": True}
        self.emit({"type": "step_finished", **about, **more})

    @contextmanager
    def timed(self, works: Sequence[Work], kind: StepKind) -> Iterator[None]:
        """Note in each SAE how long a step took."""
        began = self.context.clock()
        for work in works:
            work.began = began if work.began is None else work.began
        yield
        for work in works:
            work.seconds[str(kind)] = round(self.context.clock() - began, 3)

    def note(self, said: str) -> None:
        """Tell whoever watches."""
        self.emit({"type": "note", "text": said})

    def _work(self, worker: Worker, job: str, data: Any, progress: Progress) -> Any:
        """One job of a worker; with ``debug``, what the process said when it failed."""
        try:
            return worker.run(job, data, progress)
        except SaesyncError:
            if self.context.debug and worker.last_words:
                self.note("\n".join(worker.last_words))
            raise


def _check(step: StepKind) -> None:
    if "network" not in USES[step]:
        raise NotGrantedError(f"{step} has no network")

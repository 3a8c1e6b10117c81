"""One ready queue, lanes by resource, keep going. Knows nothing of SAEs.

A ``Task`` runs when all it ``needs`` succeeded, and what it comes ``after`` is settled, however. Lanes of a resource are
threads; a ``Picker`` says which of the ready tasks a lane takes together (a commit takes many SAEs, a measurement shares
forward passes). When a task fails, what needs it is skipped, and everything else goes on. On a first request to stop, tasks
that have not started are dropped, except those marked ``finishing``; on a second, ``run`` returns at once.
"""

from __future__ import annotations

import threading
from bisect import insort
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from saesync.errors import SaesyncError
from saesync.system import os_trouble


class State(StrEnum):
    """Where a task is. The last four are settled."""

    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    SKIPPED = "skipped"  # something it needs failed
    STOPPED = "stopped"  # never started


SETTLED = frozenset({State.DONE, State.FAILED, State.SKIPPED, State.STOPPED})


class Stop(Protocol):
    """How a run is told to end; see ``StopFlag``."""

    @property
    def stopping(self) -> bool:
        """Start nothing new."""
        ...

    @property
    def now(self) -> bool:
        """Wait for nothing."""
        ...


@dataclass(frozen=True)
class Task:
    """One piece of work. ``run`` gets the lane's number and the tasks taken together, and returns the errors of those that
    failed, by key; an error it raises is that of all of them. ``group`` tells tasks apart that must not be taken together."""

    key: str
    resource: str
    run: Callable[[int, Sequence[Task]], Mapping[str, SaesyncError] | None]
    needs: frozenset[str] = frozenset()
    group: str = ""
    weight: int = 1
    finishing: bool = False
    after: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Pick:
    """How many of the ready tasks to take now, or how long to wait (None: for news)."""

    take: int
    wait: float | None = None


class Picker(Protocol):
    """Decides what a lane takes. ``ready`` are tasks of one group, oldest first; ``ending``: none of their group will
    become ready later. ``lanes`` is how many lanes share the resource."""

    def __call__(self, ready: Sequence[Task], ending: bool) -> Pick:
        """Never blocks; called under the scheduler's lock."""
        ...


def one_at_a_time(ready: Sequence[Task], ending: bool) -> Pick:
    """The ordinary picker."""
    return Pick(1)


@dataclass(frozen=True, slots=True)
class Resource:
    """A pool: how many lanes it has and how they pick."""

    lanes: int = 1
    pick: Picker = one_at_a_time


@dataclass
class Outcome:
    """What became of a task. ``cause`` is the key of the failed task that made this one be skipped."""

    state: State = State.WAITING
    error: SaesyncError | None = None
    cause: str | None = None


Settled = Callable[[Task, Outcome], None]

_LOOK = 2000  # ready tasks a picker is shown at most
_POLL = 0.1  # seconds between looks at the stop flag, which a signal handler sets without waking anybody


@dataclass
class _Queue:
    """The tasks of one resource that are not settled: how many there are by group, and those that are ready, oldest first."""

    waiting: Counter[str] = field(default_factory=Counter)
    running: int = 0
    ready: dict[str, list[tuple[int, str]]] = field(default_factory=dict)

    def choose(self, tasks: Mapping[str, Task], pick: Picker) -> tuple[list[str], float | None]:
        """Keys to take now, else the seconds to wait (None: for news). The group of the oldest ready task is asked first."""
        waits: list[float] = []
        for group in sorted((name for name in self.ready if self.ready[name]), key=lambda name: self.ready[name][0]):
            line = self.ready[group]
            picked = pick([tasks[key] for _, key in line[:_LOOK]], len(line) == self.waiting[group])
            if picked.take:
                keys = [key for _, key in line[: picked.take]]
                del line[: picked.take]
                self.waiting[group] -= len(keys)
                self.running += len(keys)
                return keys, None
            if picked.wait is not None:
                waits.append(picked.wait)
        return [], min(waits, default=None)

    @property
    def over(self) -> bool:
        """Nothing is left, and nothing that runs can be followed by more."""
        return not self.running and not self.waiting.total()


class Scheduler:
    """Runs tasks. ``settled`` is told of every task that is settled, in the thread that settled it, never concurrently."""

    def __init__(
        self, resources: Mapping[str, Resource], settled: Settled, stopping: Callable[[Sequence[Task]], None] | None = None
    ) -> None:
        """``stopping`` is told once, after the first request to stop, which tasks still run."""
        self._stopping = stopping
        self.outcomes: dict[str, Outcome] = {}
        self._resources = resources
        self._settled = settled
        self._tasks: dict[str, Task] = {}
        self._order: dict[str, int] = {}
        self._dependents: dict[str, list[str]] = {}
        self._missing: dict[str, int] = {}  # how many needs are not done yet
        self._queues: dict[str, _Queue] = {}
        self._open = 0
        self._news = threading.Condition()
        self._closing = False
        self._crash: BaseException | None = None
        self._stop: Stop | None = None
        self._dropped = False

    def run(self, tasks: Iterable[Task], stop: Stop) -> None:
        """Run everything; returns when all tasks are settled, or at once on a second request to stop.

        Raises:
            KeyError: a task needs one that is not there, or a resource that is not.
            BaseException: what a task raised that is no SaesyncError or OSError: a mistake of ours, never swallowed.
        """
        self._enter(tasks)
        self._stop = stop
        lanes = [(name, lane) for name in self._queues for lane in range(self._resources[name].lanes)]
        threads = [threading.Thread(target=self._lane, args=pair, daemon=True, name=f"{pair[0]}-{pair[1]}") for pair in lanes]
        for thread in threads:
            thread.start()
        self._watch(stop)
        for thread in threads if not stop.now else ():
            thread.join()
        if self._crash is not None:
            raise self._crash

    def left(self) -> list[Task]:
        """Tasks that still ran when ``run`` returned, on a second request to stop: nobody waited for what comes of them."""
        with self._news:
            return [task for task in self._tasks.values() if self.outcomes[task.key].state is State.RUNNING]

    def _enter(self, tasks: Iterable[Task]) -> None:
        for task in tasks:
            self._order[task.key] = len(self._tasks)
            self._tasks[task.key] = task
            self.outcomes[task.key] = Outcome()
            self._dependents.setdefault(task.key, [])
            self._missing[task.key] = len(task.needs | task.after)
            self._queues.setdefault(task.resource, _Queue()).waiting[task.group] += 1
        self._open = len(self._tasks)
        for task in self._tasks.values():
            for need in task.needs | task.after:
                self._dependents[need].append(task.key)
            if not self._missing[task.key]:
                self._make_ready(task)

    def _make_ready(self, task: Task) -> None:
        insort(self._queues[task.resource].ready.setdefault(task.group, []), (self._order[task.key], task.key))

    def _watch(self, stop: Stop) -> None:
        """Wait for the end, looking at the stop flag."""
        with self._news:
            while self._open and not stop.now and self._crash is None:
                if not self._heed():
                    self._news.wait(_POLL)
            self._closing = True
            self._news.notify_all()

    def _heed(self) -> bool:
        """Act on a request to stop, once; whether this was the time."""
        if self._dropped or self._stop is None or not self._stop.stopping:
            return False
        self._dropped = True
        if self._stopping is not None:
            self._stopping([task for task in self._tasks.values() if self.outcomes[task.key].state is State.RUNNING])
        self._drop()
        return True

    def _drop(self) -> None:
        """Settle what has not started, and with it what can no longer start."""
        for task in self._tasks.values():
            if self.outcomes[task.key].state is State.WAITING and not task.finishing:
                self._withdraw(task, State.STOPPED, None)
        self._news.notify_all()

    def _lane(self, resource: str, lane: int) -> None:
        try:
            while taken := self._next(resource):
                self._finish(taken, self._errors(lane, taken))
        except BaseException as error:
            with self._news:
                self._crash = error
                self._news.notify_all()
            raise

    def _next(self, resource: str) -> list[Task]:
        with self._news:
            return self._take(resource)

    def _take(self, resource: str) -> list[Task]:
        """The next tasks of a lane; waits for them. Empty: there will be none."""
        queue = self._queues[resource]
        while not self._closing and not queue.over:
            if self._heed():  # at once: what has become ready since is not begun
                continue
            keys, wait = queue.choose(self._tasks, self._resources[resource].pick)
            if keys:
                for key in keys:
                    self.outcomes[key].state = State.RUNNING
                return [self._tasks[key] for key in keys]
            self._news.wait(wait)
        return []

    def _errors(self, lane: int, taken: Sequence[Task]) -> Mapping[str, SaesyncError]:
        try:
            return taken[0].run(lane, taken) or {}
        except SaesyncError as error:
            return {task.key: error for task in taken}
        except OSError as error:
            found = os_trouble(error)
            return {task.key: found for task in taken}

    def _finish(self, taken: Sequence[Task], errors: Mapping[str, SaesyncError]) -> None:
        with self._news:
            for task in taken:
                self._queues[task.resource].running -= 1
                error = errors.get(task.key)
                if error is None:
                    self._settle(task, Outcome(State.DONE))
                    self._release(task)
                else:
                    self._settle(task, Outcome(State.FAILED, error))
                    self._skip_dependents(task, State.SKIPPED, task.key)
            self._news.notify_all()

    def _release(self, task: Task) -> None:
        """Tasks that waited for this one only are ready now."""
        for key in self._dependents[task.key]:
            self._count_down(key)

    def _count_down(self, key: str) -> None:
        self._missing[key] -= 1
        if not self._missing[key] and self.outcomes[key].state is State.WAITING:
            self._make_ready(self._tasks[key])

    def _withdraw(self, task: Task, state: State, cause: str | None) -> None:
        """Settle a task that has not started, and all that need it."""
        queue = self._queues[task.resource]
        queue.waiting[task.group] -= 1
        place = (self._order[task.key], task.key)
        if not self._missing[task.key]:
            queue.ready[task.group].remove(place)
        self._settle(task, Outcome(state, cause=cause))
        self._skip_dependents(task, state, cause)

    def _skip_dependents(self, task: Task, state: State, cause: str | None) -> None:
        for key in self._dependents[task.key]:
            if task.key not in self._tasks[key].needs:
                self._count_down(key)
            elif self.outcomes[key].state is State.WAITING:
                self._withdraw(self._tasks[key], state, cause)

    def _settle(self, task: Task, outcome: Outcome) -> None:
        self.outcomes[task.key] = outcome
        self._open -= 1
        self._settled(task, outcome)

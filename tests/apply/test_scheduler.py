"""The ready queue: order, lanes, failure, groups and stopping, on tasks that do nothing but say so."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable, Mapping, Sequence

import pytest

from saesync.apply.context import StopFlag
from saesync.apply.scheduler import Outcome, Pick, Resource, Scheduler, State, Task
from saesync.errors import Refused, SaesyncError

Run = Callable[[int, Sequence[Task]], Mapping[str, SaesyncError] | None]


class Log:
    """Runs tasks and remembers what ran together, in order."""

    def __init__(self) -> None:
        self.ran: list[list[str]] = []
        self.settled: dict[str, Outcome] = {}
        self._lock = threading.Lock()

    def run(self, _lane: int, tasks: Sequence[Task]) -> None:
        with self._lock:
            self.ran.append([task.key for task in tasks])

    def task(self, key: str, resource: str = "a", needs: str = "", run: Run | None = None, **more: object) -> Task:
        return Task(key, resource, run or self.run, frozenset(needs.split()), **more)

    def note(self, task: Task, outcome: Outcome) -> None:
        assert task.key not in self.settled, "settled twice"
        self.settled[task.key] = outcome

    def go(
        self, tasks: list[Task], resources: dict[str, Resource] | None = None, stop: StopFlag | None = None
    ) -> dict[str, State]:
        names = {task.resource for task in tasks}
        scheduler = Scheduler(resources or {name: Resource() for name in names}, self.note)
        scheduler.run(tasks, stop or StopFlag())
        return {key: outcome.state for key, outcome in scheduler.outcomes.items()}


def test_needs_come_first_and_the_order_is_the_given_one() -> None:
    log = Log()
    states = log.go([log.task("c", needs="b"), log.task("a"), log.task("b", needs="a"), log.task("d")])
    assert log.ran == [["a"], ["b"], ["c"], ["d"]]
    assert set(states.values()) == {State.DONE}
    assert set(log.settled) == set("abcd")


def test_a_failure_skips_what_needs_it_and_nothing_else() -> None:
    log = Log()

    def fail(_lane: int, tasks: Sequence[Task]) -> None:
        raise Refused("No", "No.")

    states = log.go([log.task("a", run=fail), log.task("b", needs="a"), log.task("c", needs="b d"), log.task("d")])
    assert states == {"a": State.FAILED, "b": State.SKIPPED, "c": State.SKIPPED, "d": State.DONE}
    assert log.settled["c"].cause == "a"
    assert isinstance(log.settled["a"].error, Refused)


def test_what_comes_after_runs_however_the_others_end() -> None:
    log = Log()

    def fail(_lane: int, tasks: Sequence[Task]) -> None:
        raise Refused("No", "No.")

    tasks = [
        log.task("a", run=fail),
        log.task("b", needs="a"),
        log.task("c"),
        log.task("last", resource="b", after=frozenset("abc")),
        log.task("strict", resource="b", needs="c", after=frozenset("b")),
    ]
    states = log.go(tasks)
    assert states == {"a": State.FAILED, "b": State.SKIPPED, "c": State.DONE, "last": State.DONE, "strict": State.DONE}
    assert [keys for keys in log.ran if keys[0] in ("last", "strict")] == log.ran[-2:]


def test_what_comes_after_is_dropped_with_the_rest_on_a_stop() -> None:
    log = Log()
    stop = StopFlag()

    def ask(_lane: int, tasks: Sequence[Task]) -> None:
        stop.request()
        time.sleep(0.3)

    states = log.go([log.task("a", run=ask), log.task("b", needs="a"), log.task("c", "b", after=frozenset("ab"))], stop=stop)
    assert states == {"a": State.DONE, "b": State.STOPPED, "c": State.STOPPED}


def test_one_of_a_group_may_fail_alone() -> None:
    log = Log()

    def some(_lane: int, tasks: Sequence[Task]) -> Mapping[str, SaesyncError]:
        return {"b": Refused("No", "No.")}

    resources = {"a": Resource(1, lambda ready, ending: Pick(len(ready)))}
    states = log.go([log.task(key, run=some) for key in "abc"], resources)
    assert states == {"a": State.DONE, "b": State.FAILED, "c": State.DONE}


def test_groups_are_not_mixed_and_pickers_see_the_end() -> None:
    log = Log()
    seen: list[tuple[int, bool]] = []

    def pick(ready: Sequence[Task], ending: bool) -> Pick:
        seen.append((len(ready), ending))
        return Pick(len(ready)) if ending else Pick(0)

    tasks = [
        log.task("slow", "x"),
        log.task("a", "g", group="1"),
        log.task("b", "g", group="2"),
        log.task("c", "g", "slow", group="1"),
    ]
    log.go(tasks, {"x": Resource(), "g": Resource(1, pick)})
    assert ["b"] in log.ran, "a group that is complete goes before an older one that is not"
    assert ["a", "c"] in log.ran
    assert (2, True) in seen


def test_a_picker_that_waits_is_asked_again() -> None:
    log = Log()
    asked: list[float] = []

    def pick(ready: Sequence[Task], ending: bool) -> Pick:
        asked.append(time.monotonic())
        return Pick(0, 0.05) if len(asked) == 1 else Pick(1)

    log.go([log.task("a")], {"a": Resource(1, pick)})
    assert len(asked) == 2
    assert asked[1] - asked[0] >= 0.04


def test_lanes_work_at_the_same_time() -> None:
    log = Log()
    barrier = threading.Barrier(3, timeout=10)

    def meet(_lane: int, tasks: Sequence[Task]) -> None:
        barrier.wait()

    states = log.go([log.task(key, run=meet) for key in "abc"], {"a": Resource(3)})
    assert set(states.values()) == {State.DONE}


def test_stopping_finishes_what_runs_and_what_it_leads_to() -> None:
    log, stop = Log(), StopFlag()

    def press(_lane: int, tasks: Sequence[Task]) -> None:
        stop.request()
        time.sleep(0.3)  # the flag is seen while this runs

    tasks = [
        log.task("run", run=press),
        log.task("out", "b", "run", finishing=True),
        log.task("next"),
        log.task("later", "b", "next", finishing=True),
    ]
    states = log.go(tasks, stop=stop)
    assert states == {"run": State.DONE, "out": State.DONE, "next": State.STOPPED, "later": State.STOPPED}


def test_a_second_request_waits_for_nothing() -> None:
    log, stop, hang = Log(), StopFlag(), threading.Event()

    def press(_lane: int, tasks: Sequence[Task]) -> None:
        stop.request()
        stop.request()
        hang.wait(30)

    begun = time.monotonic()
    states = log.go([log.task("a", run=press), log.task("b")], stop=stop)
    hang.set()
    assert time.monotonic() - begun < 5
    assert states["b"] is State.WAITING


def test_trouble_with_files_is_a_failure_and_a_mistake_of_ours_is_not() -> None:
    log = Log()

    def full(_lane: int, tasks: Sequence[Task]) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "/cache/x")

    log.go([log.task("a", run=full)])
    error = log.settled["a"].error
    assert error is not None
    assert error.diagnostics[0].summary == "Disk is full"
    assert "/cache/x" in error.diagnostics[0].detail


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # the traceback is meant to be seen
def test_a_mistake_of_ours_ends_the_run() -> None:
    log = Log()

    def bug(_lane: int, tasks: Sequence[Task]) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        log.go([log.task("a", run=bug), log.task("b")])


def test_a_missing_need_is_a_mistake() -> None:
    log = Log()
    with pytest.raises(KeyError):
        log.go([log.task("a", needs="nowhere")])


def test_many_tasks_stay_cheap() -> None:
    log = Log()
    tasks = [log.task(f"f{i}", "x") for i in range(10_000)] + [log.task(f"p{i}", "y", f"f{i}") for i in range(10_000)]
    begun = time.monotonic()
    log.go(tasks, {"x": Resource(4), "y": Resource(1, lambda ready, ending: Pick(100))})
    assert time.monotonic() - begun < 20

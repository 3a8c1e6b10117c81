"""Several at a time: in order, and whoever turns away waits for nobody."""

from __future__ import annotations

import itertools
import threading

import pytest

from saesync.lanes import in_lanes


def test_results_come_in_order_as_soon_as_they_are_known() -> None:
    last_may_go = threading.Event()

    def slow(value: int) -> int:
        if value == 9:
            assert last_may_go.wait(60)
        return value * value

    found = in_lanes("squares", slow, range(10), lanes=3)
    assert list(itertools.islice(found, 9)) == [value * value for value in range(9)]
    last_may_go.set()
    assert list(found) == [81]
    assert list(in_lanes("none", slow, [])) == []


def test_so_many_run_at_once_and_no_more() -> None:
    together = threading.Barrier(3, timeout=60)
    running, most, lock = 0, 0, threading.Lock()

    def meet(_: int) -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        together.wait()
        with lock:
            running -= 1
        together.wait()

    list(in_lanes("three", meet, range(9), lanes=3))
    assert most == 3


def test_an_error_is_raised_in_its_turn_and_ends_it() -> None:
    def work(value: int) -> int:
        if value == 2:
            raise OSError("no")
        return value

    found = in_lanes("failing", work, range(1000), lanes=1)
    assert [next(found), next(found)] == [0, 1]
    with pytest.raises(OSError, match="no"):
        next(found)
    assert list(found) == []


def test_who_turns_away_waits_for_nobody() -> None:
    begun: list[int] = []
    held, entered = threading.Event(), threading.Event()

    def work(value: int) -> int:
        begun.append(value)
        if value == 1:
            entered.set()
            assert held.wait(60)
        return value

    found = in_lanes("left", work, range(100), lanes=1)
    assert next(found) == 0
    assert entered.wait(60)
    found.close()
    (lane,) = [thread for thread in threading.enumerate() if thread.name == "left-0"]
    assert lane.daemon
    held.set()
    lane.join(60)
    assert begun == [0, 1]

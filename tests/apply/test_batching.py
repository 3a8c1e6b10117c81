"""When commits go out, on a clock that only the tests move."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saesync.apply.batching import FILES, HOUR, INTERVAL, MOMENT, MOST_FILES, PER_HOUR, Batching, Decision


def publish(arrivals: list[tuple[float, int]]) -> Iterator[tuple[float, int]]:
    """Play a whole release: SAEs arrive at given times with given numbers of files. Yields (time, files) of every commit."""
    batching, waiting, now = Batching(), [], 0.0
    arrivals = sorted(arrivals)
    since = arrivals[0][0] if arrivals else 0.0
    while arrivals or waiting:
        while arrivals and arrivals[0][0] <= now:
            waiting.append(arrivals.pop(0)[1])
        decision = batching.decide(now, waiting, ending=not arrivals, since=since)
        if decision.take:
            batching.committed(now)
            yield now, sum(waiting[: decision.take])
            del waiting[: decision.take]
            continue
        ends = [
            at
            for at in (arrivals[0][0] if arrivals else None, None if decision.wait is None else now + decision.wait)
            if at is not None
        ]
        assert ends, "it waits for nothing"
        assert min(ends) > now, "it does not wait"
        now = min(ends)


def test_the_first_goes_out_after_a_moment() -> None:
    assert Batching().decide(7.0, [2], ending=False, since=7.0) == Decision(0, MOMENT)
    assert Batching().decide(7.0 + MOMENT, [2, 2], ending=False, since=7.0) == Decision(2)
    assert Batching().decide(7.0, [2], ending=True, since=7.0) == Decision(1)


def test_then_they_gather_until_time_has_passed() -> None:
    batching = Batching()
    batching.committed(1000.0)
    assert batching.decide(1030.0, [2, 2], ending=False) == Decision(0, INTERVAL - 30)
    assert batching.decide(1000.0 + INTERVAL, [2, 2], ending=False) == Decision(2)


def test_or_until_enough_wait() -> None:
    batching = Batching()
    batching.committed(1000.0)
    assert batching.decide(1001.0, [2] * (FILES // 2 - 1), ending=False).take == 0
    assert batching.decide(1001.0, [2] * (FILES // 2), ending=False) == Decision(FILES // 2)


def test_the_end_waits_for_nothing() -> None:
    batching = Batching()
    batching.committed(1000.0)
    assert batching.decide(1001.0, [2], ending=True) == Decision(1)
    assert batching.decide(1001.0, [], ending=True) == Decision(0)


def test_an_sae_is_never_split() -> None:
    assert Batching().decide(0.0, [FILES * 3, 1], ending=True) == Decision(1)


def test_three_hundred_that_were_ready_before() -> None:
    commits = list(publish([(0.0, 2)] * 300))
    assert [files for _, files in commits] == [FILES] * 6
    assert commits[-1][0] == 0.0


def test_one_every_ten_seconds_for_two_hours() -> None:
    commits = list(publish([(10.0 * i, 2) for i in range(720)]))
    assert sum(files for _, files in commits) == 1440
    assert len(commits) <= 2 * PER_HOUR + 2
    assert commits[0][0] == MOMENT


def test_a_huge_release_makes_larger_commits_instead_of_waiting_an_hour() -> None:
    commits = list(publish([(0.0, 2)] * 10_000))
    assert commits[-1][0] == 0.0
    assert len(commits) <= PER_HOUR
    assert max(files for _, files in commits) <= MOST_FILES


@given(st.lists(st.tuples(st.floats(0, 3 * HOUR), st.integers(1, 40)), min_size=1, max_size=120))
def test_everything_goes_out_and_no_hour_has_too_many(arrivals: list[tuple[float, int]]) -> None:
    commits = list(publish(arrivals))
    assert sum(files for _, files in commits) == sum(files for _, files in arrivals)
    times = [time for time, _ in commits]
    for time in times:
        assert sum(1 for other in times if time - HOUR < other <= time) <= PER_HOUR


@pytest.mark.parametrize("count", [PER_HOUR, PER_HOUR + 5])
def test_a_spent_hour_is_waited_for(count: int) -> None:
    batching = Batching()
    for i in range(count):
        batching.committed(float(i))
    assert batching.decide(100.0, [2], ending=True).take == 0
    wait = batching.decide(100.0, [2], ending=True).wait
    assert wait is not None
    assert batching.decide(100.0 + wait, [2], ending=True).take == 1

"""An SAE that kills its worker fails alone; those that were measured with it are measured all the same."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from apply_world import Run
from tiny import TinyWorld

from saesync.apply import Context
from saesync.apply.crew import Crew
from saesync.apply.graph import Graph
from saesync.apply.regroup import MOST_DEATHS, in_groups
from saesync.apply.steps import Steps
from saesync.apply.work import Work
from saesync.errors import Refused
from saesync.executors import validate
from saesync.jobs import CaptureJob, CaptureResult, MeasureJob, MeasureResult
from saesync.model import Release
from saesync.worker_main import JOBS
from saesync.workers import WorkerLost, fork

Look = Callable[..., Run]
Progress = Callable[[int, int], None]
pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


def poisoned(job: MeasureJob, progress: Progress) -> MeasureResult:
    """As a crash in native code would end it: no exception, no answer."""
    with Path(job.cache, "tries").open("a") as tries:
        tries.write(" ".join(sae.address.rpartition("/")[2] for sae in job.saes) + "\n")
    if any(sae.address.endswith("copy_5") for sae in job.saes):
        os.kill(os.getpid(), signal.SIGSEGV)
    return validate.run(job, progress)


def refusing(job: MeasureJob, progress: Progress) -> MeasureResult:
    raise Refused("No", "Not today.")


def accident(job: CaptureJob, progress: Progress) -> CaptureResult:
    """The first capture is killed, as for memory, when it had begun to write."""
    tries = Path(job.cache, "captures")
    first = not tries.exists()
    tries.touch()
    if first:
        for path in job.out.values():
            Path(path).write_bytes(b"half")
        os.kill(os.getpid(), signal.SIGKILL)
    return validate.capture(job, progress)


def deadly(job: CaptureJob, progress: Progress) -> CaptureResult:
    with Path(job.cache, "captures").open("a") as tries:
        tries.write("x")
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def launcher(name: str, job: str = "measure") -> Callable[..., Any]:
    own = replace(JOBS[job], module=__name__, function=name)
    return partial(fork, jobs={**JOBS, job: own})


def eight(release: Release) -> Release:
    first = release.saes[0]
    return replace(release, saes=tuple(replace(first, id=f"copy_{n}") for n in range(8)))


def converted(run: Run, name: str) -> tuple[Steps, Sequence[Work], Context]:
    """All eight SAEs, converted and ready to be measured by workers that ``name`` describes."""
    run.start = launcher("refusing")
    run.apply()
    plan, context = run.look()
    context = replace(context, start=launcher(name))
    crew = Crew(context.cache, context.start, 1, context.devices)
    steps = Steps(context, crew, run.events.append)
    crew.find_devices(steps.note)
    graph = Graph(plan, context, steps)
    graph.build()
    works = [duty.work for duty in graph.duties.values() if duty.final and duty.work is not None]
    for spec, _ in graph.models:
        steps.fetch_model(spec)
    for text, _ in graph.texts:
        steps.fetch_text(text)
    assert all(work.build is not None for work in works)
    return steps, works, context


def test_the_one_that_kills_its_worker_fails_alone(world: TinyWorld, look: Look) -> None:
    run = look(world.good, edit=eight)
    steps, works, context = converted(run, "poisoned")
    run.events.clear()
    errors = steps.validate(0, works)
    steps.crew.close()
    assert set(errors) == {"tiny-res/copy_5"}
    (found,) = errors["tiny-res/copy_5"].diagnostics
    assert found.summary == "Worker process died"
    assert "SIGSEGV" in found.detail
    assert [work.address for work in works if work.evidence is None] == ["tiny-res/copy_5"]
    assert {event["address"] for event in run.events if event["type"] == "step_finished" and "metrics" in event} == {
        f"tiny-res/copy_{n}" for n in range(8) if n != 5
    }
    tries = [line.split() for line in (context.cache.root / "tries").read_text().splitlines()]
    assert [len(line) for line in tries] == [8, 4, 4, 2, 1, 1, 2]
    notes = [event["text"] for event in run.told("note")]
    assert notes[0] == "The worker that measured tiny-res/copy_0 and 7 more died. Trying them again in two parts."
    assert len(notes) == 3


def test_an_answer_is_never_asked_for_twice(world: TinyWorld, look: Look) -> None:
    run = look(world.good, edit=eight)
    steps, works, _ = converted(run, "refusing")
    with pytest.raises(Refused, match="Not today"):
        steps.validate(0, works)
    steps.crew.close()


def test_a_capture_whose_worker_is_killed_is_tried_once_more(world: TinyWorld, look: Look) -> None:
    run = look(world.good, edit=eight)
    run.start = launcher("accident", "capture")
    assert run.apply().exit_code == 0
    (note,) = [event["text"] for event in run.told("note")]
    assert note.startswith("The worker that captured activations of ")
    assert note.endswith(" died. Trying once more.")
    assert run.plan().pending == ()


def test_a_capture_that_kills_every_worker_fails_what_waits_for_it(world: TinyWorld, look: Look) -> None:
    run = look(world.good, edit=eight)
    run.start = launcher("deadly", "capture")
    result = run.apply()
    assert result.exit_code == 1
    assert (run.look()[1].cache.root / "captures").read_text() == "xx"
    assert {outcome.name for outcome in result.outcomes.values()} <= {"FAILED", "SKIPPED"}


def works_named(count: int) -> list[Any]:
    return [SimpleNamespace(address=f"r/{n}") for n in range(count)]


def played(count: int, kills: Callable[[Sequence[str]], bool]) -> tuple[list[str], list[str], int]:
    """Who got an answer, who did not, and how many workers died."""
    deaths = 0

    def measure(group: Sequence[Any]) -> Mapping[str, Any]:
        nonlocal deaths
        if kills([work.address for work in group]):
            deaths += 1
            raise WorkerLost("Worker process died", "It was killed.")
        return {}

    good, lost = [], []
    for group, found in in_groups(works_named(count), measure, lambda said: None):
        (lost if isinstance(found, WorkerLost) else good).extend(work.address for work in group)
    assert sorted(good + lost) == sorted(f"r/{n}" for n in range(count)), "each of them once"
    return good, lost, deaths


@pytest.mark.parametrize("poison", [(0,), (31,), (7, 8), (0, 31)])
def test_one_or_two_of_thirty_two_are_found(poison: tuple[int, ...]) -> None:
    bad = {f"r/{n}" for n in poison}
    good, lost, deaths = played(32, lambda group: bool(bad & set(group)))
    assert set(lost) == bad
    assert len(good) == 32 - len(bad)
    assert deaths <= MOST_DEATHS


def test_what_kills_every_worker_ends_soon() -> None:
    """A driver that is gone is no SAE's fault; nobody waits for sixty-three processes to say so."""
    _, lost, deaths = played(32, lambda group: True)
    assert len(lost) == 32
    assert deaths <= MOST_DEATHS + 12


def test_an_accident_happens_once() -> None:
    """Somebody else needed the memory: alone or not, the second try counts."""
    for count in (1, 2, 32):
        times = iter([True])
        _, lost, deaths = played(count, lambda group, times=times: next(times, False))  # type: ignore[misc]
        assert (lost, deaths) == ([], 1)

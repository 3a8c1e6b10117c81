"""Workers that never answer: the second Ctrl-C ends everything, whatever is waited for."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from apply_world import Run
from tiny import TinyWorld

from saesync import preflight
from saesync.apply import Outcome, StopFlag, apply, gpus
from saesync.errors import Interrupted
from saesync.worker_main import JOBS, Job
from saesync.workers import fork

Look = Callable[..., Run]
pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


def hang(_data: Mapping[str, Any]) -> None:
    time.sleep(60)


def hanging(job: str) -> Callable[..., Any]:
    """A launcher of workers that do not come back from one job, as with a driver that hangs."""
    return partial(fork, jobs={**JOBS, job: Job(__name__, "hang", dict, tells=False)})


def press_twice(stop: StopFlag) -> None:
    for delay in (1.0, 1.5):
        timer = threading.Timer(delay, stop.request)
        timer.daemon = True
        timer.start()


def test_while_devices_are_looked_for(world: TinyWorld, look: Look, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "_ALL", ("null",))  # /dev/null is there
    run, stop = look(world.good), StopFlag()
    run.start = hanging("devices")
    plan, context = run.look()
    press_twice(stop)
    began = time.monotonic()
    with pytest.raises(Interrupted):
        apply(plan, context_without_devices(context), run.events.append, stop)
    assert time.monotonic() - began < 10
    assert (run.events[-1]["type"], run.events[-1]["exit_code"]) == ("ended", 130), "there is no summary, and an end all the same"


def context_without_devices(context: Any) -> Any:
    return replace(context, devices=())


@pytest.mark.parametrize("job", ["capture", "convert", "measure"])
def test_while_a_step_runs(world: TinyWorld, look: Look, job: str) -> None:
    run, stop = look(world.good), StopFlag()
    run.start = hanging(job)
    plan, context = run.look()

    def emit(event: Mapping[str, Any]) -> None:
        run.events.append(event)
        if event["type"] == "step_started" and event["step"] == ("validate" if job == "measure" else "convert") and not pressed:
            pressed.append(job)
            press_twice(stop)

    pressed: list[str] = []
    began = time.monotonic()
    result = apply(plan, context, emit, stop)
    assert time.monotonic() - began < 40
    assert (result.interrupted, result.exit_code) == (True, 130)
    assert set(result.outcomes.values()) <= {Outcome.STOPPED, Outcome.PUBLISHED}
    assert not result.failures
    assert run.events[-1]["type"] == "summary"


@pytest.mark.skipif(torch.cuda.is_available(), reason="it is here")
def test_a_device_that_is_not_here_is_named(world: TinyWorld, look: Look) -> None:
    plan, context = look(world.good).look()
    (found,) = preflight.check(plan, replace(context, devices=("cuda:0", "cpu")))
    assert found.summary == "Device is not here"
    assert "There is no cuda:0. This machine has cpu" in found.detail

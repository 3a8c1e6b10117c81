"""Several GPUs: each has a worker of its own, they share the SAEs, and what comes out is what one CPU gives."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from apply_world import Run
from pretend_device import pretend
from tiny import TinyWorld

from saesync import worker_main
from saesync.apply import StopFlag, apply, crew
from saesync.executors import validate
from saesync.jobs import CaptureJob, CaptureResult, MeasureJob, MeasureResult
from saesync.record import SaeRecord, parse_record
from saesync.worker_main import JOBS, Job
from saesync.workers import fork

Look = Callable[..., Run]
Progress = Callable[[int, int], None]
pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
GPUS = ("cuda:0", "cuda:1")


def measure(job: MeasureJob, progress: Progress) -> MeasureResult:
    """Both workers have to be at work at the same time, or this waits in vain."""
    place = Path(job.cache, "measuring")
    place.mkdir(exist_ok=True)
    (place / job.device).touch()
    for _ in range(600):
        if len(list(place.iterdir())) == len(GPUS):
            with pretend("cuda", count=2):
                return validate.run(job, progress)
        time.sleep(0.1)
    raise TimeoutError("the other device has nothing to do")


def capture(job: CaptureJob, progress: Progress) -> CaptureResult:
    with pretend("cuda", count=2):
        return validate.capture(job, progress)


def devices(data: Mapping[str, Any]) -> Mapping[str, Any]:
    with pretend("cuda", count=2):
        return worker_main.devices(data)


def with_two_gpus() -> Callable[..., Any]:
    own = {name: replace(JOBS[name], module=__name__, function=name) for name in ("measure", "capture", "devices")}
    jobs: Mapping[str, Job] = {**JOBS, **own}
    return partial(fork, jobs=jobs)


def entries(world: TinyWorld) -> Mapping[str, SaeRecord]:
    return parse_record((world.published / "saesync" / "tiny-res.json").read_bytes(), "tiny-res").saes


def test_all_gpus_share_the_work(world: TinyWorld, look: Look, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crew, "_GPU_NODES", ("null",))  # /dev/null is there
    run = look(world.good)
    plan, context = run.look()
    two = replace(context, devices=(), start=with_two_gpus())
    result = apply(plan, two, run.events.append, StopFlag())
    assert result.exit_code == 0, result.failures
    found = entries(world)
    used = {str(entry.evidence[0].about["device"]) for entry in found.values()}
    assert used == {"Pretended GPU 0", "Pretended GPU 1"}

    alone = world.copy(tmp_path / "alone")
    for path in sorted(alone.published.rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    again = Run((alone.good,), type(run.cache)(tmp_path / "other-cache"), (alone.folder,), start=fork)
    assert again.apply().exit_code == 0
    for name, entry in entries(alone).items():
        assert entry.evidence[0].about["device"] == "cpu"
        assert entry.evidence[0].metrics == found[name].evidence[0].metrics, name
        assert entry.files == found[name].files, name
        assert entry.proof == found[name].proof, name

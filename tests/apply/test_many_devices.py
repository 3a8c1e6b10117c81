"""Several GPUs: each has a worker of its own, they share the SAEs, and what comes out is what one CPU gives."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from apply_world import Run
from pretend_device import pretend
from tiny import TinyWorld

from saesync import worker_main
from saesync.apply import StopFlag, apply, gpus
from saesync.apply.crew import Crew
from saesync.cache import Cache
from saesync.errors import Missing
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
    monkeypatch.setattr(gpus, "_ALL", ("null",))  # /dev/null is there
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


def nothing_found(data: Mapping[str, Any]) -> Mapping[str, Any]:
    return {**worker_main.devices(data), "devices": {"cpu": "2 threads"}}


@pytest.mark.skipif(torch.cuda.is_available(), reason="torch can use it")
def test_a_gpu_that_torch_cannot_use_is_told(world: TinyWorld, look: Look, monkeypatch: pytest.MonkeyPatch) -> None:
    """The numbers are right all the same, and somebody waits for them much longer than they think."""
    monkeypatch.setattr(gpus, "_ALL", ("null",))
    jobs = {**JOBS, "devices": Job(__name__, "nothing_found", dict, tells=False)}
    for patterns, told in ((("null",), 1), (("no-such-file",), 0)):
        monkeypatch.setattr(gpus, "NVIDIA", patterns)
        run = look(world.good)
        plan, context = run.look()
        result = apply(plan, replace(context, devices=(), start=partial(fork, jobs=jobs)), run.events.append, StopFlag())
        assert result.exit_code == 0, result.failures
        notes = [event["text"] for event in run.told("note")]
        assert len(notes) == told
        if notes:
            assert notes[0].startswith("Measuring on the CPU: this machine has an NVIDIA GPU, but torch 2.")
            assert notes[0].endswith(". With --device cpu this is not said.")
        shutil.rmtree(world.published)
        shutil.rmtree(run.cache.root)


def nothing_on_it(data: Mapping[str, Any]) -> Mapping[str, Any]:
    with pretend("mps", memory=0):
        return worker_main.devices(data)


def test_an_apple_gpu_that_holds_nothing_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in virtual machines."""
    monkeypatch.setattr(gpus, "_ALL", ("null",))
    monkeypatch.setattr(gpus, "NVIDIA", ("no-such-file",))
    start = partial(fork, jobs={**JOBS, "devices": Job(__name__, "nothing_on_it", dict, tells=False)})
    said: list[str] = []
    crew = Crew(Cache(tmp_path), start, 1, ())
    crew.find_devices(said.append)
    assert crew.devices == ("cpu",)
    (note,) = said
    assert re.fullmatch(
        r"Measuring on the CPU: this machine has an Apple GPU, but torch \S+ says: Invalid buffer size: .*"
        r"\. With --device cpu this is not said\.",
        note,
    )
    asked = Crew(Cache(tmp_path), start, 1, ("mps",))
    with pytest.raises(
        Missing, match=r"There is no mps \(torch \S+ says: Invalid buffer size.*\)\. This machine has cpu; name one"
    ):
        asked.check_devices()
    for each in (crew, asked):
        each.close()


@pytest.mark.parametrize(
    ("there", "asked"),
    [((), "-u -c=0 -c=1"), (("nvidia0", "nvidia1"), "-u -c=0 -c=1"), (("nvidia1", "nvidia-uvm"), None)],
    ids=["just started", "no uvm", "all there"],
)
def test_the_drivers_device_files_are_made_before_workers_need_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: tuple[str, ...], asked: str | None
) -> None:
    dev, driver, maker = tmp_path / "dev", tmp_path / "driver", tmp_path / "nvidia-modprobe"
    dev.mkdir()
    for name, path in (("_DEV", dev), ("_DRIVER", driver), ("_MAKER", maker)):
        monkeypatch.setattr(gpus, name, path)
    for name in there:
        (dev / name).touch()
    gpus.wake()  # no driver, and nothing that makes device files
    maker.write_text(f'#!/bin/sh\necho "$*" > {tmp_path}/asked\ntouch {dev}/nvidia0 {dev}/nvidia1 {dev}/nvidia-uvm\n')
    maker.chmod(0o755)
    gpus.wake()
    assert not (tmp_path / "asked").exists(), "no GPU of NVIDIA's"
    for bus in ("0000:01:00.0", "0000:02:00.0"):
        (driver / "gpus" / bus).mkdir(parents=True)
    gpus.wake()
    assert (tmp_path / "asked").exists() == (asked is not None)
    if asked is not None:
        assert (tmp_path / "asked").read_text().strip() == asked
        (tmp_path / "asked").unlink()
        gpus.wake()
        assert not (tmp_path / "asked").exists(), "once is enough"


def test_why_there_is_no_cuda() -> None:
    said = worker_main.devices({})
    assert (said["why"] is None) == any(name.startswith("cuda") for name in said["devices"])
    if said["why"] is not None:
        assert re.match(r"torch 2\S+ (is built without CUDA|says: .+|does not see it)$", said["why"])

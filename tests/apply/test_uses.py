"""What each step may use is enforced, not declared."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from apply_world import bare_context

from saesync.apply.crew import Crew, best, named
from saesync.apply.ground import NotGrantedError
from saesync.apply.steps import Steps
from saesync.apply.work import USES
from saesync.errors import SaesyncError
from saesync.events import Event
from saesync.hub import Hub
from saesync.model import StepKind
from saesync.workers import Worker, spawn


@pytest.fixture
def steps(tmp_path_factory: pytest.TempPathFactory) -> Steps:
    context = bare_context(tmp_path_factory.mktemp("cache"))
    return Steps(context, Crew(context.cache, spawn, 1, ("cpu",)), lambda event: None)


def test_every_kind_of_step_says_what_it_uses() -> None:
    assert set(USES) == set(StepKind)


@pytest.mark.parametrize("kind", [StepKind.CONVERT, StepKind.ADOPT, StepKind.VALIDATE, StepKind.RELABEL, StepKind.MOVE])
def test_only_fetch_and_publish_get_the_hub(steps: Steps, kind: StepKind) -> None:
    with pytest.raises(NotGrantedError):
        steps.hub(kind)
    with pytest.raises(NotGrantedError):
        steps.target(kind, "huggingface")


def test_fetch_and_publish_do(steps: Steps) -> None:
    assert isinstance(steps.hub(StepKind.FETCH), Hub)
    assert steps.target(StepKind.PUBLISH, "local").name == "local"
    assert steps.target(StepKind.PUBLISH, "local") is steps.target(StepKind.FETCH, "local")


@pytest.mark.parametrize("debug", [True, False])
def test_debug_tells_what_a_dying_worker_said(steps: Steps, tmp_path: Path, debug: bool) -> None:
    told: list[Event] = []
    steps.emit = told.append
    steps.context = replace(steps.context, debug=debug)
    worker = Worker(tmp_path, partial(spawn, module="worker_probe"))
    with pytest.raises(SaesyncError):
        steps._work(worker, "die", {}, lambda done, total: None)
    assert [event["text"] for event in told] == (["about to run out of memory"] if debug else [])


def test_all_gpus_or_else_one_device() -> None:
    assert best(("cuda:0", "cuda:1", "cpu")) == ("cuda:0", "cuda:1")
    assert best(("mps", "cpu")) == ("mps",)
    assert best(("cpu",)) == ("cpu",)


def test_each_device_is_used_once() -> None:
    assert named(("cuda", "cuda:1", "cuda:0", "cpu")) == ("cuda:0", "cuda:1", "cpu")

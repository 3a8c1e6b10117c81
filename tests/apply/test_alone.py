"""What is wrong with one SAE stops that one: it fails by itself, at its own place in the manifest, and the others go on."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from apply_world import Run
from tiny import TinyWorld

from saesync.apply import Outcome, StopFlag, apply
from saesync.convert.rows import REAL_LIMIT
from saesync.formats._saelens_reference import write_example
from saesync.model import Failure, Release, StepKind
from saesync.record import parse_record
from saesync.workers import Child, fork

Look = Callable[..., Run]
pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
GOOD = {"tiny-res/layer_0/topk": Outcome.PUBLISHED, "tiny-res/layer_1/batchtopk": Outcome.PUBLISHED}


def only_failure(result: Any, address: str) -> Failure:
    assert result.outcomes == {**GOOD, address: Outcome.FAILED}, result.failures
    (failure,) = result.failures
    assert failure.address == address
    assert all(diagnostic.origin is not None for diagnostic in failure.diagnostics)
    return failure


@pytest.mark.parametrize(
    ("hook", "words"),
    [("blocks.7.hook_resid_post", "The model has layers 0 to 1"), ("blocks.0.hook_mlp_in", "gives no activation per token")],
)
def test_a_hook_that_is_not_there(world: TinyWorld, look: Look, hook: str, words: str) -> None:
    def wrong(release: Release) -> Release:
        saes = [replace(sae, hook=hook) if sae.id == "layer_0/standard" else sae for sae in release.saes]
        return replace(release, saes=tuple(saes))

    failure = only_failure(look(world.good, edit=wrong).apply(), "tiny-res/layer_0/standard")
    assert failure.step is StepKind.CONVERT
    (diagnostic,) = failure.diagnostics
    assert words in diagnostic.detail
    assert diagnostic.origin is not None
    assert "hook:" in world.good.read_text().splitlines()[diagnostic.origin.line - 1]


def test_a_transcoder_without_its_second_hook(world: TinyWorld, look: Look) -> None:
    shape = {"d_in": 32, "d_sae": 64, "d_out": 32, "apply_b_dec_to_input": False}
    write_example(world.sources / "coder", 0, architecture="transcoder", **shape)
    text = world.good.read_text()
    world.good.write_text(text.replace("format: goodfire, path: goodfire/layer_0.pth", "format: saelens, path: coder"))
    failure = only_failure(look(world.good).apply(), "tiny-res/layer_0/standard")
    assert failure.step is StepKind.CONVERT
    assert [diagnostic.summary for diagnostic in failure.diagnostics] == ["Needs hook_out"]


def test_the_proof_takes_all_rows_that_were_captured(world: TinyWorld, look: Look) -> None:
    run = look(world.good)
    assert run.look()[1].proof_rows == REAL_LIMIT
    run.apply()
    record = parse_record((world.published / "saesync" / "tiny-res.json").read_bytes(), "tiny-res")
    assert {entry.proof["real_rows"] for entry in record.saes.values()} == {REAL_LIMIT}


def test_a_worker_that_is_killed_while_it_measures(world: TinyWorld, look: Look) -> None:
    """Killed from outside, once: a new process does the work, and nothing is lost."""
    started: list[Child] = []

    def start(home: Path) -> Child:
        started.append(fork(home))
        return started[-1]

    run = look(world.good)
    run.start = start
    emit = run.events.append
    killed: list[int] = []

    def kill(event: Mapping[str, Any]) -> None:
        emit(event)
        if event["type"] == "step_started" and event["step"] == "validate" and not killed:
            killed.append(started[-1].pid)  # workers that measure are started last
            os.kill(killed[0], signal.SIGKILL)

    plan, context = run.look()
    result = apply(plan, context, kill, StopFlag())
    assert result.exit_code == 0, result.failures
    assert any("died. Trying" in event["text"] for event in run.told("note"))
    assert look(world.good).plan().pending == ()


@pytest.mark.parametrize("name", ["model", "dataset"])
def test_a_model_or_dataset_that_changes_after_the_plan_gives_no_evidence(world: TinyWorld, look: Look, name: str) -> None:
    """Its key would say what was there when the plan was made."""
    run = look(world.good)
    plan, context = run.look()
    if name == "model":
        (world.model / "generation_config.json").write_text("{}")
    else:
        world.held_out.write_text(world.held_out.read_text() + '{"text": "more"}\n')
    result = apply(plan, context, run.events.append, StopFlag())
    assert {d.summary for failure in result.failures for d in failure.diagnostics} == {f"{name.capitalize()} changed meanwhile"}
    assert set(result.outcomes.values()) == {Outcome.FAILED}
    assert not (run.cache.root / "evidence").exists()
    assert not (world.published / "layer_0").exists()
    assert look(world.good).apply().exit_code == 0


@pytest.mark.parametrize("when", ["before", "while it is read"])
def test_a_source_that_changes_after_the_plan_is_not_published(world: TinyWorld, look: Look, when: str) -> None:
    """Its record would name a digest that nobody has; the other SAEs go on."""
    run = look(world.good)
    weights = world.sources / "goodfire" / "layer_0.pth"
    address = "tiny-res/layer_0/standard"

    def change() -> None:
        weights.write_bytes(weights.read_bytes() + b"\n")

    def emit(event: Mapping[str, Any]) -> None:
        run.events.append(event)
        if when != "before" and event["type"] == "step_started" and (event["address"], event["step"]) == (address, "convert"):
            change()

    plan, context = run.look()
    if when == "before":
        change()
    result = apply(plan, context, emit, StopFlag())
    assert result.exit_code == 1
    assert result.outcomes[address] is Outcome.FAILED
    assert [d.summary for failure in result.failures for d in failure.diagnostics] == ["Source changed meanwhile"]
    assert not (world.published / "layer_0" / "standard").exists()
    assert (world.published / "layer_0" / "topk").exists()

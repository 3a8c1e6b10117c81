"""Apply over the local target, with really trained tiny SAEs and real workers."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from apply_world import Run
from safetensors.torch import load_file, save_file
from tiny import TinyWorld

from saesync import manifest, preflight
from saesync.apply import Outcome, StopFlag, apply
from saesync.cache import Cache
from saesync.errors import Conflict
from saesync.executors import fetch
from saesync.hub import Hub
from saesync.model import Choices, PublishSpec, Release, Requirement, StepKind
from saesync.record import parse_record
from saesync.resolve import Resolver

Look = Callable[..., Run]
# Forking a process with threads is what Python 3.12 warns of; the workers are forked before the lanes start.
pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


def record(world: TinyWorld, release: str = "tiny-res") -> Any:
    return parse_record((world.published / "saesync" / f"{release}.json").read_bytes(), release)


def tree(folder: Path) -> Mapping[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def validating(**changes: Any) -> Callable[[Release], Release]:
    """An edit of every SAE's validate section."""

    def edit(release: Release) -> Release:
        saes = tuple(
            replace(sae, validate=replace(sae.validate, **changes)) if sae.validate is not None else sae for sae in release.saes
        )
        return replace(release, saes=saes)

    return edit


def test_publish_then_nothing_to_do(world: TinyWorld, look: Look) -> None:
    first = look(world.good, world.failing)
    result = first.apply()
    assert result.exit_code == 1
    assert result.outcomes == {
        "tiny-res/layer_0/topk": Outcome.PUBLISHED,
        "tiny-res/layer_0/standard": Outcome.PUBLISHED,
        "tiny-res/layer_1/batchtopk": Outcome.PUBLISHED,
        "tiny-sweep/sweep/layer_0": Outcome.PUBLISHED,
        "tiny-sweep/sweep/layer_1": Outcome.FAILED,
    }
    (failure,) = result.failures
    assert failure.address == "tiny-sweep/sweep/layer_1"
    (diagnostic,) = failure.diagnostics
    assert diagnostic.detail.startswith("explained_variance ")
    assert diagnostic.origin is not None
    assert "min" in world.failing.read_text().splitlines()[diagnostic.origin.line - 1]
    assert not (world.published / "sweep" / "layer_1").exists()
    assert first.events[0]["type"] == "version"
    assert first.events[-1]["type"] == "summary"
    entry = record(world).saes["layer_0/standard"]
    assert entry.proof["real_rows"] > 0
    assert entry.evidence[0].metrics["explained_variance"].stderr is not None
    assert entry.run["finished"].endswith("Z")
    assert str(world.folder) not in (world.published / "saesync" / "tiny-res.json").read_text(), "a record is public"

    before = tree(world.published)
    second = look(world.good, world.failing)
    again = second.apply()
    assert again.exit_code == 1
    assert again.outcomes == {"tiny-sweep/sweep/layer_1": Outcome.FAILING}
    assert again.failures[0].diagnostics == failure.diagnostics
    assert [event["type"] for event in second.events] == ["version", "plan", "summary"]
    assert tree(world.published) == before


def test_metadata_says_which_hook_of_which_model(world: TinyWorld, look: Look) -> None:
    world.good.write_text(world.good.read_text().replace("  path: ../model", "  kwargs: {fold_ln: true}\n  path: ../model", 1))
    assert look(world.good).apply().failures == ()
    cfg = json.loads((world.published / "layer_1" / "batchtopk" / "cfg.json").read_text())
    assert cfg["metadata"]["hook_name"] == "blocks.1.hook_resid_post"
    assert cfg["metadata"]["hf_hook_name"] == "transformer.h.1"
    assert cfg["metadata"]["model_name"] == "model"
    assert cfg["metadata"]["model_class_name"] == "HookedTransformer"
    assert cfg["metadata"]["model_from_pretrained_kwargs"] == {"fold_ln": True}


def test_a_lost_cache_costs_nothing_that_is_published(world: TinyWorld, look: Look) -> None:
    run = look(world.good)
    run.apply()
    shutil.rmtree(run.cache.root)
    again = look(world.good)
    assert again.apply().exit_code == 0
    assert not again.told("step_started")


def test_validate_again_publishes_evidence_also_when_it_fails(world: TinyWorld, look: Look) -> None:
    look(world.good).apply()
    weights = {name: data for name, data in tree(world.published).items() if name.endswith((".safetensors", "cfg.json"))}
    strict = (Requirement("explained_variance", "min", 0.9999),)
    run = look(world.good, edit=validating(tokens=512, require=strict))
    result = run.apply()
    assert result.exit_code == 1
    assert set(result.outcomes.values()) == {Outcome.FAILING}
    assert len(result.failures) == 3
    assert {event["step"] for event in run.told("step_started")} == {"fetch", "validate", "publish"}
    assert {name: tree(world.published)[name] for name in weights} == weights
    entry = record(world).saes["layer_0/topk"]
    assert [found.inputs["validate.tokens"] for found in entry.evidence] == [512, 1024]
    assert "fails" in (world.published / "README.md").read_text()
    assert look(world.good, edit=validating(tokens=512, require=strict)).plan().pending == ()


def test_what_was_measured_before_is_current_again_without_measuring(world: TinyWorld, look: Look) -> None:
    """Card, tag and registry say what the current evidence is: an earlier one that is asked for again has to become that."""
    look(world.good).apply()
    card = (world.published / "README.md").read_text()
    look(world.good, edit=validating(tokens=512)).apply()
    assert (world.published / "README.md").read_text() != card
    back = look(world.good)
    assert back.apply().exit_code == 0
    assert {event["step"] for event in back.told("step_started")} == {"publish"}
    entry = record(world).saes["layer_0/topk"]
    assert [found.inputs["validate.tokens"] for found in entry.evidence] == [1024, 512]
    assert (world.published / "README.md").read_text() == card
    assert look(world.good).plan().pending == ()


@pytest.mark.parametrize("harm", ["removed", "edited", "unmarked"])
def test_a_card_that_was_harmed_is_written_again(world: TinyWorld, look: Look, harm: str) -> None:
    look(world.good).apply()
    readme = world.published / "README.md"
    card = readme.read_text()
    if harm == "removed":
        readme.unlink()
    else:
        old, new = ("| `layer_0/topk` |", "| `layer_0/best` |") if harm == "edited" else ("<!-- saesync:end tiny-res -->", "")
        assert card.count(old) == 1
        readme.write_text(card.replace(old, new))
    run = look(world.good)
    (item,) = run.plan().pending
    assert (item.id, item.steps, [str(reason.code) for reason in item.reasons]) == (None, (StepKind.CARD,), ["card_edited"])
    assert run.apply().exit_code == 0
    if harm != "unmarked":  # there, text between damaged markers is kept: it may be somebody's
        assert readme.read_text() == card
    assert look(world.good).plan().pending == ()


def test_what_people_write_around_the_card_is_theirs(world: TinyWorld, look: Look) -> None:
    look(world.good).apply()
    readme = world.published / "README.md"
    text = readme.read_text().replace("\n", "\r\n") + "\r\nOurs.\r\n"
    readme.write_bytes(text.encode())
    assert look(world.good).plan().pending == ()


def test_front_matter_that_cannot_be_edited_is_told(world: TinyWorld, look: Look) -> None:
    readme = world.published / "README.md"
    readme.parent.mkdir(parents=True)
    readme.write_text("---\n{license: other}\n---\nOurs.\n")
    run = look(world.good)
    assert run.apply().exit_code == 0
    (said,) = run.told("note")
    assert said["text"].startswith("tiny-res: the front matter of README.md cannot be edited safely and stays as it is")
    assert readme.read_text().startswith("---\n{license: other}\n---\nOurs.\n")


def test_relabel_keeps_weights_and_evidence(world: TinyWorld, look: Look) -> None:
    look(world.good).apply()
    before = record(world).saes["layer_0/topk"]

    def name(release: Release) -> Release:
        return replace(release, saes=(replace(release.saes[0], neuronpedia_id="tiny/0-res"), *release.saes[1:]))

    run = look(world.good, edit=name)
    assert run.apply().outcomes == {"tiny-res/layer_0/topk": Outcome.PUBLISHED}
    assert not {"convert", "validate"} & {event["step"] for event in run.told("step_started")}
    after = record(world).saes["layer_0/topk"]
    assert after.evidence == before.evidence
    assert after.files["sae_weights.safetensors"] == before.files["sae_weights.safetensors"]
    cfg = world.published / "layer_0" / "topk" / "cfg.json"
    assert json.loads(cfg.read_text())["metadata"]["neuronpedia_id"] == "tiny/0-res"
    assert [event["bytes"] for event in run.told("committed")] == [cfg.stat().st_size], "the cfg alone is put in place"
    assert look(world.good, edit=name).plan().pending == ()

    look(world.good).apply()
    assert "neuronpedia_id" not in json.loads(cfg.read_text())["metadata"]
    assert look(world.good).plan().pending == ()


def test_what_is_measured_with_says_nothing_of_training(world: TinyWorld, look: Look) -> None:
    """Goodfire's file says nothing of its training; the others were trained on sequences of 32."""

    def contexts() -> dict[str, int]:
        found = {sae_id: world.published / sae_id / "cfg.json" for sae_id in record(world).saes}
        return {sae_id: json.loads(cfg.read_text())["metadata"]["context_size"] for sae_id, cfg in found.items()}

    for context in (16, 8):
        assert look(world.good, edit=validating(context=context)).apply().exit_code == 0
        assert contexts() == {"layer_0/topk": 32, "layer_0/standard": context, "layer_1/batchtopk": 32}
        assert look(world.good, edit=validating(context=context)).plan().pending == ()


def test_a_hook_that_the_model_lacks_is_said_at_its_own_line(world: TinyWorld, look: Look) -> None:
    """Found while measuring: what is published gets another label only."""
    look(world.good).apply()

    def elsewhere(release: Release) -> Release:
        return replace(release, saes=(replace(release.saes[0], hook="blocks.9.hook_resid_post"), *release.saes[1:]))

    run = look(world.good, edit=elsewhere)
    asked = run.plan().releases[0].saes[0]
    (failure,) = run.apply().failures
    assert failure.step is StepKind.VALIDATE
    (found,) = failure.diagnostics
    assert (found.summary, found.origin) == ("Hook does not exist", asked.origins["hook"])
    assert asked.origins["hook"] != asked.origins["validate"]
    assert asked.address not in found.detail, "the summary names it"


def test_move_then_prune(world: TinyWorld, look: Look) -> None:
    look(world.good).apply()

    def rename(release: Release) -> Release:
        return replace(release, saes=(replace(release.saes[0], id="layer_0/renamed"), *release.saes[1:]))

    moved = look(world.good, edit=rename)
    assert moved.apply().outcomes["tiny-res/layer_0/renamed"] is Outcome.PUBLISHED
    assert not {"convert", "validate"} & {event["step"] for event in moved.told("step_started")}
    published = tree(world.published)
    assert published["layer_0/renamed/cfg.json"] == published["layer_0/topk/cfg.json"]
    pruned = look(world.good, edit=rename, choices=Choices(prune=("tiny-res",)))
    assert pruned.apply().outcomes == {"tiny-res/layer_0/topk": Outcome.DELETED}
    assert not (world.published / "layer_0" / "topk").exists()
    assert set(record(world).saes) == {"layer_0/renamed", "layer_0/standard", "layer_1/batchtopk"}


def test_move_and_prune_at_once(world: TinyWorld, look: Look) -> None:
    look(world.good).apply()

    def rename(release: Release) -> Release:
        return replace(release, saes=(replace(release.saes[0], id="layer_0/renamed"), *release.saes[1:]))

    result = look(world.good, edit=rename, choices=Choices(prune=("tiny-res",))).apply()
    assert result.outcomes == {"tiny-res/layer_0/renamed": Outcome.PUBLISHED, "tiny-res/layer_0/topk": Outcome.DELETED}
    assert (world.published / "layer_0" / "renamed" / "sae_weights.safetensors").exists()


def test_retire_takes_a_release_back_and_nothing_else(world: TinyWorld, look: Look) -> None:
    """What others wrote beside it stays: a file in an SAE's folder, text in the README, another release."""
    look(world.good, world.failing).apply()
    note, readme = world.published / "layer_0" / "topk" / "note.txt", world.published / "README.md"
    note.write_text("mine")
    readme.write_text(readme.read_text() + "\nBy hand.\n")
    world.good.write_text(world.good.read_text() + "\nretire: true\n")
    run = look(world.good, world.failing)
    result = run.apply()
    deleted = {f"tiny-res/{name}" for name in ("layer_0/topk", "layer_0/standard", "layer_1/batchtopk")}
    assert {address for address, outcome in result.outcomes.items() if outcome is Outcome.DELETED} == deleted
    assert not {"fetch", "convert", "validate"} & {event["step"] for event in run.told("step_started")}
    left = {name for name in tree(world.published) if not name.startswith("sweep/")}
    assert left == {"README.md", "layer_0/topk/note.txt", "saesync/tiny-res.json", "saesync/tiny-sweep.json"}
    assert not record(world).saes
    assert "By hand." in readme.read_text()
    assert "tiny-sweep" in readme.read_text()
    assert "layer_0/standard" not in readme.read_text()
    assert look(world.good).plan().pending == ()


def test_packages_that_are_not_installed_are_named_at_once(world: TinyWorld, look: Look, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    there = importlib.util.find_spec
    gone = ("transformer_lens", "pyarrow")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name in gone else there(name, *rest))
    found = preflight.check(*look(world.good).look())
    assert [diagnostic.summary for diagnostic in found] == ["Package is missing"] * 2
    assert "pip install transformer-lens" in found[0].detail
    assert "pip install pyarrow" in found[1].detail


@pytest.mark.parametrize("name", ["held_out.csv", "folder"])
def test_a_dataset_that_cannot_be_read_as_text_is_named_before_any_work(world: TinyWorld, look: Look, name: str) -> None:
    place = world.held_out.with_name(name)
    place.mkdir() if name == "folder" else place.write_text("text\nx = 1\n")
    world.good.write_text(world.good.read_text().replace("held_out.jsonl", name))
    (found,) = preflight.check(*look(world.good).look())
    assert found.summary == "Dataset kind is not known"
    assert str(place) in found.detail
    assert found.origin is not None


@pytest.mark.parametrize("bounded", [False, True])
def test_a_source_that_says_another_hook_is_refused_unless_bounds_decide(world: TinyWorld, look: Look, bounded: bool) -> None:
    def edit(release: Release) -> Release:
        sae = next(sae for sae in release.saes if sae.id == "layer_0/topk")
        assert sae.validate is not None
        require = sae.validate.require if bounded else ()
        return replace(
            release, saes=(replace(sae, hook="blocks.1.hook_resid_post", validate=replace(sae.validate, require=require)),)
        )

    result = look(world.good, edit=edit).apply()
    if bounded:
        assert list(result.outcomes.values()) == [Outcome.PUBLISHED], "its bounds hold there"
        return
    (failure,) = result.failures
    (found,) = failure.diagnostics
    assert found.summary == "Another hook"
    assert found.detail.startswith(
        "The source says hook_name 'blocks.0.hook_resid_post', and the manifest 'blocks.1.hook_resid_post'"
    )
    assert found.origin is not None
    assert "hook:" in world.good.read_text().splitlines()[found.origin.line - 1]
    assert not world.published.exists() or not list(world.published.rglob("cfg.json"))


def test_no_build_and_no_relabel_gets_around_the_sources_hook(world: TinyWorld, look: Look) -> None:
    """First with bounds, which hold at the other layer, too; then without: what was built or published is no way around."""

    def only(hook: str, bounded: bool) -> Callable[[Release], Release]:
        def edit(release: Release) -> Release:
            sae = next(sae for sae in release.saes if sae.id == "layer_0/topk")
            assert sae.validate is not None
            asked = replace(sae.validate, require=sae.validate.require if bounded else ())
            return replace(release, saes=(replace(sae, hook=hook, validate=asked),))

        return edit

    right, wrong = "blocks.0.hook_resid_post", "blocks.1.hook_resid_post"
    assert look(world.good, edit=only(wrong, bounded=True)).apply().exit_code == 0
    shutil.rmtree(world.published)
    again = look(world.good, edit=only(wrong, bounded=False)).apply()
    assert [failure.diagnostics[0].summary for failure in again.failures] == ["Another hook"], "its build is cached"
    assert look(world.good, edit=only(right, bounded=False)).apply().exit_code == 0
    moved = look(world.good, edit=only(wrong, bounded=False))
    assert [StepKind.RELABEL in item.steps for item in moved.plan().pending] == [True]
    (failure,) = moved.apply().failures
    assert (failure.step, failure.diagnostics[0].summary) == (StepKind.RELABEL, "Another hook")
    assert failure.diagnostics[0].origin is not None


def test_what_a_model_folder_lacks_is_named_before_any_work(world: TinyWorld, look: Look) -> None:
    for name in ("model.safetensors", "tokenizer.json"):
        (world.model / name).unlink()
    found = preflight.check(*look(world.good).look())
    assert len(found) == 2, found
    assert "model.safetensors" in found[0].detail
    assert "tokenizer" in found[1].detail
    assert all(diagnostic.origin is not None for diagnostic in found)


def test_a_context_that_the_model_cannot_read_is_named_before_any_work(world: TinyWorld, look: Look) -> None:
    text = world.good.read_text()
    world.good.write_text(re.sub(r"context: \d+", "context: 4096", text))
    (found,) = preflight.check(*look(world.good).look())
    assert found.summary == "Context does not fit the model"
    assert "4,096" in found.detail
    assert found.origin is not None
    assert "context: 4096" in world.good.read_text().splitlines()[found.origin.line - 1]


def test_adopt_keeps_the_bytes_and_refuses_another_function(world: TinyWorld, look: Look) -> None:
    run = look(world.good)
    run.apply()
    shutil.rmtree(run.cache.root)  # another machine: it does not know these weights
    folder = world.published / "layer_0" / "topk"
    cfg = json.loads((folder / "cfg.json").read_text())
    (folder / "cfg.json").write_text(json.dumps(cfg, indent=7))
    other = world.published / "layer_0" / "standard"
    shutil.copyfile(world.published / "layer_1" / "batchtopk" / "sae_weights.safetensors", other / "sae_weights.safetensors")
    shutil.copyfile(world.published / "layer_1" / "batchtopk" / "cfg.json", other / "cfg.json")
    (world.published / "saesync" / "tiny-res.json").unlink()
    before = tree(world.published / "layer_0")
    held = look(world.good).apply()
    assert held.outcomes["tiny-res/layer_0/topk"] is Outcome.HELD
    (why,) = next(failure.diagnostics for failure in held.failures if failure.address == "tiny-res/layer_0/topk")
    assert why.summary == "Held by the plan"
    assert "--adopt" in why.detail
    assert why.origin is not None, "the summary names it, with its place"
    assert held.exit_code == 1
    run = look(world.good, choices=Choices(adopt=("tiny-res/layer_0/*",)))
    result = run.apply()
    assert result.outcomes["tiny-res/layer_0/topk"] is Outcome.PUBLISHED
    assert result.outcomes["tiny-res/layer_0/standard"] is Outcome.FAILED
    assert tree(world.published / "layer_0") == before
    entry = record(world).saes["layer_0/topk"]
    assert entry.adopted
    assert entry.proof["real_rows"] == 512, "on the model's activations, too, as what we convert is proved"
    assert entry.evidence[0].weights_sha256 == entry.files["sae_weights.safetensors"].sha256
    assert "layer_0/standard" not in record(world).saes
    after = look(world.good).plan()
    assert [item.id for item in after.items if item.held] == ["layer_0/standard", "layer_1/batchtopk"]


def test_adopt_is_proved_on_real_activations_also_where_the_conversion_is_cached(world: TinyWorld, look: Look) -> None:
    run = look(world.good)
    run.apply()
    (world.published / "saesync" / "tiny-res.json").unlink()
    shutil.rmtree(run.cache.root / "activations")
    run = look(world.good, choices=Choices(adopt=("*",)))
    assert run.apply().exit_code == 0
    assert [event["cached"] for event in run.told("step_finished") if event["step"] == "convert"].count(True) == 3
    assert {entry.proof["real_rows"] for entry in record(world).saes.values()} == {512}


def test_what_was_measured_of_our_own_bytes_says_nothing_of_those_that_are_adopted(world: TinyWorld, look: Look) -> None:
    """The same function under the same key, and other bytes: the cache knows numbers, of a conversion of ours."""
    look(world.good).apply()
    weights = world.published / "layer_0" / "topk" / "sae_weights.safetensors"
    save_file(load_file(weights), weights, metadata={"format": "pt"})
    (world.published / "saesync" / "tiny-res.json").unlink()
    run = look(world.good, choices=Choices(adopt=("*",)))
    assert run.apply().exit_code == 0
    assert {event["address"]: event["cached"] for event in run.told("step_finished") if event["step"] == "validate"} == {
        "tiny-res/layer_0/topk": False,
        "tiny-res/layer_0/standard": True,
        "tiny-res/layer_1/batchtopk": True,
    }
    for entry in record(world).saes.values():
        assert entry.adopted
        assert entry.evidence[0].weights_sha256 == entry.files["sae_weights.safetensors"].sha256


def test_a_damaged_target_is_told_of_its_place_and_of_publish(world: TinyWorld, look: Look) -> None:
    look(world.good).apply()
    weights = world.published / "layer_0" / "topk" / "sae_weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    (world.published / "saesync" / "tiny-res.json").unlink()
    address = "tiny-res/layer_0/topk"
    failure = next(one for one in look(world.good, choices=Choices(adopt=(address,))).apply().failures if one.address == address)
    (told,) = failure.diagnostics
    assert failure.step is StepKind.ADOPT
    assert f"layer_0/topk in {world.published}" in told.detail
    assert told.origin is not None
    lines = world.good.read_text().splitlines()
    assert "publish:" in "\n".join(lines[told.origin.line - 2 : told.origin.line])


def test_what_is_shared_fails_once_and_skips_by_name(world: TinyWorld, look: Look) -> None:
    (world.model / "model.safetensors").unlink()
    run = look(world.good)
    result = run.apply()
    assert result.exit_code == 1
    assert set(result.outcomes.values()) == {Outcome.SKIPPED}
    (failure,) = result.failures
    assert failure.address == "activations of model"
    assert "model.safetensors" in failure.diagnostics[0].detail
    assert failure.diagnostics[0].origin is not None
    assert not world.published.exists()


def test_too_little_text_publishes_nothing(world: TinyWorld, look: Look) -> None:
    run = look(world.good, edit=validating(tokens=10_000_000))
    result = run.apply()
    assert result.exit_code == 1
    assert set(result.outcomes.values()) <= {Outcome.FAILED, Outcome.SKIPPED}
    assert any("tokens" in diagnostic.detail for failure in result.failures for diagnostic in failure.diagnostics)
    assert not world.published.exists()


def test_a_broken_source_stops_itself_alone(world: TinyWorld, look: Look) -> None:
    path = world.sources / "goodfire" / "layer_0.pth"
    path.write_bytes(path.read_bytes()[:-2000])
    result = look(world.good).apply()
    assert result.outcomes["tiny-res/layer_0/standard"] is Outcome.FAILED
    assert result.outcomes["tiny-res/layer_0/topk"] is Outcome.PUBLISHED
    (failure,) = result.failures
    assert failure.step is StepKind.CONVERT
    assert failure.diagnostics[0].origin is not None


@pytest.mark.parametrize("begins", ["plan", "convert"])
def test_a_source_that_changes_after_the_plan_is_not_published(world: TinyWorld, look: Look, begins: str) -> None:
    """Also where it does only after it was looked at again: its weights would stand under the key of others."""
    run = look(world.good)
    path = world.sources / "goodfire" / "layer_0.pth"

    def change(event: Mapping[str, Any]) -> None:
        run.events.append(event)
        started = (
            event.get("step") if event["type"] == "step_started" and event["address"].endswith("standard") else event["type"]
        )
        if started == begins:
            state = torch.load(path)
            torch.save({name: tensor + 0.001 for name, tensor in state.items()}, path)

    plan, context = run.look()
    result = apply(plan, context, change, StopFlag())
    assert result.outcomes["tiny-res/layer_0/standard"] is Outcome.FAILED
    assert {d.summary for f in result.failures for d in f.diagnostics} == {"Source changed meanwhile"}
    assert "layer_0/standard" not in record(world).saes


def test_weights_that_change_while_they_are_measured_are_not_published(world: TinyWorld, look: Look) -> None:
    """Numbers count for the bytes that were proved; the cache is a folder like any other."""
    run = look(world.failing)

    def change(event: Mapping[str, Any]) -> None:
        run.events.append(event)
        if event["type"] == "step_started" and event["step"] == "validate":
            for path in (run.cache.root / "build").rglob("sae_weights.safetensors"):
                save_file({name: tensor * 1.01 for name, tensor in load_file(path).items()}, path)

    plan, context = run.look()
    result = apply(plan, context, change, StopFlag())
    assert {d.summary for f in result.failures for d in f.diagnostics} == {"Weights changed while they were measured"}
    assert not list(world.published.rglob("*.safetensors"))


def test_what_fails_says_whether_it_is_published_already(world: TinyWorld, look: Look) -> None:
    for path in (world.sources / "legacy" / "sae_weights.safetensors", world.sources / "goodfire" / "layer_0.pth"):
        path.write_bytes(path.read_bytes()[:-2000])  # the second one after its SAE was published
        run = look(world.good)
        run.apply()
    told = {
        event["address"]: event["stays"]
        for event in run.events
        if event["type"] == "sae_finished" and event["outcome"] == "failed"
    }
    assert told == {"tiny-res/layer_0/standard": True, "tiny-res/layer_0/topk": False}


def test_what_is_measured_while_it_is_stopped_is_published(world: TinyWorld, look: Look) -> None:
    stop = StopFlag()
    run = look(world.good)
    emit = run.events.append

    def press(event: Mapping[str, Any]) -> None:
        emit(event)
        if event["type"] == "step_started" and event["step"] == "validate" and not stop.stopping:
            stop.request()

    plan, context = run.look()
    result = apply(plan, context, press, stop)
    assert result.interrupted
    measured = {event["address"] for event in run.told("step_started") if event["step"] == "validate"}
    assert measured == {address for address, outcome in result.outcomes.items() if outcome is Outcome.PUBLISHED}
    assert {f"tiny-res/{name}" for name in record(world).saes} == measured


def test_stopping_publishes_what_passed_and_the_next_run_does_the_rest(world: TinyWorld, look: Look) -> None:
    uninterrupted = look(world.good)
    stop = StopFlag()
    run = look(world.good)
    emit = run.events.append

    def press(event: Mapping[str, Any]) -> None:
        emit(event)
        if event["type"] == "step_finished" and event["step"] == "convert" and event["address"].endswith("topk"):
            stop.request()

    plan, context = run.look()
    result = apply(plan, context, press, stop)
    assert result.interrupted
    assert result.exit_code == 130
    assert Outcome.STOPPED in result.outcomes.values()
    assert [event for event in run.events if event["type"] == "note"]
    rest = uninterrupted.apply()
    assert rest.exit_code == 0
    assert set(record(world).saes) == {"layer_0/topk", "layer_0/standard", "layer_1/batchtopk"}


def test_failing_evidence_goes_to_the_records_folder(world: TinyWorld, look: Look, tmp_path: Path) -> None:
    records = tmp_path / "records"

    def kept(release: Release) -> Release:
        return replace(release, records=PublishSpec("local", str(records)))

    first = look(world.failing, edit=kept)
    assert first.apply().outcomes["tiny-sweep/sweep/layer_1"] is Outcome.FAILED
    entry = parse_record((records / "saesync" / "tiny-sweep.json").read_bytes(), "tiny-sweep")
    assert set(entry.saes) == {"sweep/layer_1"}
    shutil.rmtree(first.cache.root)
    before = tree(records)
    again = look(world.failing, edit=kept)
    assert again.apply().outcomes == {"tiny-sweep/sweep/layer_1": Outcome.FAILING}
    assert not again.told("step_started"), "known from the records, not measured again"
    assert tree(records) == before


def test_a_reader_that_goes_away_does_not_stop_the_work(world: TinyWorld, look: Look) -> None:
    def closed(event: Mapping[str, Any]) -> None:
        raise BrokenPipeError

    plan, context = look(world.good).look()
    assert apply(plan, context, closed, StopFlag()).exit_code == 0
    assert set(record(world).saes) == {"layer_0/topk", "layer_0/standard", "layer_1/batchtopk"}


def test_a_local_source_that_changed_since_the_plan_is_not_read(own_tiny_world: TinyWorld, tmp_path: Path) -> None:
    """By the step itself: what is converted would be compared once more, when hours have gone."""
    cache = Cache(tmp_path / "cache")
    sae = manifest.load((own_tiny_world.good,), roots=(own_tiny_world.folder,))[0].saes[0]
    assert sae.source is not None
    planned = Resolver(cache).source(sae.source).digest

    def bring() -> Mapping[str, Path]:
        return fetch.source_files(sae, Resolver(cache), planned, lambda: Hub(cache), cache, None)

    found = bring()
    assert found
    for path in found.values():
        path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(Conflict, match="is not what the plan was made from"):
        bring()

"""Somebody else's SAEs: measured where they are, and only the evidence is published, to a folder or a Hub repo of ours."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from apply_world import Run
from hub_world import SOURCES, HubWorld
from servers.loopback import BOB
from tiny import TinyWorld

from saesync import planfile, preflight
from saesync.apply import Outcome
from saesync.model import Choices, Status, StepKind
from saesync.reason import ReasonCode
from saesync.record import Record, parse_record

Look = Callable[..., Run]
pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")

PROGRAM = str(Path(sys.executable).with_name("saesync"))
IDS = {"layer_0/topk", "layer_0/standard", "layer_1/batchtopk"}
RECORDS = "alice/evidence"
BOUND = "explained_variance: {min: 0.3}"


def theirs(path: Path, where: str, name: str = "tiny-theirs") -> Path:
    """The manifest at ``path`` as that of somebody else's SAEs, beside it."""
    text = path.read_text()
    text = text[: text.index("publish:")] + f"records:\n  {where}\n"
    release = next(line for line in text.splitlines() if line.startswith("release: "))
    found = path.with_name(f"{name}.yaml")
    found.write_text(text.replace(release, f"release: {name}"))
    return found


def edited(path: Path, *changes: tuple[str, str]) -> Path:
    text = path.read_text()
    for before, after in changes:
        assert text.count(before) == 1, before
        text = text.replace(before, after)
    path.write_text(text)
    return path


@pytest.fixture
def local(world: TinyWorld) -> Path:
    return theirs(world.good, "local: ../records")


def record(world: TinyWorld, name: str = "tiny-theirs") -> Record:
    return parse_record((world.folder / "records" / "saesync" / f"{name}.json").read_bytes(), name)


def tree(folder: Path) -> Mapping[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def started(run: Run) -> set[str]:
    return {event["step"] for event in run.told("step_started")}


def test_evidence_is_published_and_nothing_else(world: TinyWorld, look: Look, local: Path) -> None:
    run = look(local)
    plan, context = run.look()
    for item in plan.items:
        if item.id is not None:
            assert (item.status, item.held) == (Status.UNPROVEN, False)
            assert item.steps == (StepKind.FETCH, StepKind.CONVERT, StepKind.VALIDATE, StepKind.PUBLISH)
            assert [reason.code for reason in item.reasons] == [ReasonCode.NOT_MEASURED]
    assert preflight.check(plan, context) == ()
    sources = tree(world.sources)
    result = run.apply()
    assert result.exit_code == 0, result.failures
    assert result.outcomes == {f"tiny-theirs/{sae_id}": Outcome.PUBLISHED for sae_id in IDS}
    assert set(tree(world.folder / "records")) == {"README.md", "saesync/tiny-theirs.json"}
    assert not world.published.exists()
    assert tree(world.sources) == sources
    found = record(world)
    assert set(found.saes) == IDS
    for entry in found.saes.values():
        assert not entry.files
        assert entry.proof["real_rows"] > 0
        assert entry.evidence[0].metrics["explained_variance"].stderr is not None
        assert entry.run["finished"].endswith("Z")
    assert str(world.folder) not in (world.folder / "records" / "saesync" / "tiny-theirs.json").read_text()


def test_the_second_apply_does_nothing_even_without_the_cache(world: TinyWorld, look: Look, local: Path) -> None:
    first = look(local)
    assert first.apply().exit_code == 0
    before = tree(world.folder / "records")
    for _ in range(2):
        again = look(local)
        assert again.apply().exit_code == 0
        assert [event["type"] for event in again.events] == ["version", "plan", "summary"]
        assert tree(world.folder / "records") == before
        shutil.rmtree(first.cache.root)
    assert {item.status for item in look(local).plan().items} == {Status.CURRENT}


def test_a_missed_requirement_is_kept_as_evidence_and_judged_again_without_measuring(
    world: TinyWorld, look: Look, local: Path
) -> None:
    edited(local, (BOUND, "explained_variance: {min: 0.9999}"))
    result = look(local).apply()
    assert result.exit_code == 1
    assert set(result.outcomes.values()) == {Outcome.FAILING}
    assert all(diagnostic.origin is not None for failure in result.failures for diagnostic in failure.diagnostics)
    assert set(record(world).saes) == IDS
    before = tree(world.folder / "records")
    again = look(local)
    assert {item.status for item in again.plan().items if item.id is not None} == {Status.FAILING}
    assert again.apply().outcomes == result.outcomes
    assert not started(again)
    edited(local, ("min: 0.9999", "min: 0.3"))
    assert {item.status for item in look(local).plan().items} == {Status.CURRENT}
    assert tree(world.folder / "records") == before


def test_what_is_measured_otherwise_is_measured_again(world: TinyWorld, look: Look, local: Path) -> None:
    look(local).apply()
    edited(local, ("tokens: 1024", "tokens: 512"))
    run = look(local)
    (why,) = {reason.data["name"] for item in run.plan().items for reason in item.reasons}
    assert why == "validate.tokens"
    assert run.apply().exit_code == 0
    assert "convert" not in started(run), "the conversion is in the cache"
    assert [found.inputs["validate.tokens"] for found in record(world).saes["layer_0/topk"].evidence] == [512, 1024]
    assert look(local).plan().pending == ()


def test_a_changed_source_is_another_question(world: TinyWorld, look: Look, local: Path) -> None:
    look(local).apply()
    shutil.copyfile(world.sources / "sweep" / "layer_0" / "cfg.json", world.sources / "legacy" / "cfg.json")
    shutil.copyfile(
        world.sources / "sweep" / "layer_0" / "sae_weights.safetensors", world.sources / "legacy" / "sae_weights.safetensors"
    )
    run = look(local)
    pending = {item.id: {reason.data.get("name") for reason in item.reasons} for item in run.plan().pending}
    assert pending == {"layer_0/topk": {"source.digest"}}
    before = record(world).saes
    assert run.apply().exit_code == 0
    after = record(world).saes
    assert {sae_id for sae_id in IDS if after[sae_id] != before[sae_id]} == {"layer_0/topk"}


def test_a_source_that_is_not_here_is_compared_by_the_record(world: TinyWorld, look: Look, local: Path) -> None:
    look(local).apply()
    shutil.rmtree(world.sources / "goodfire")
    items = {item.id: item for item in look(local).plan().items}
    assert items["layer_0/standard"].status is Status.CURRENT
    assert [reason.code for reason in items["layer_0/standard"].reasons] == [ReasonCode.SOURCE_NOT_HERE]


def test_evidence_that_nobody_asks_for_stays_until_it_is_pruned(world: TinyWorld, look: Look, local: Path) -> None:
    look(local).apply()
    row = next(line for line in local.read_text().splitlines(keepends=True) if "id: layer_0/standard" in line)
    edited(local, (row, ""))
    items = {item.id: item for item in look(local).plan().items}
    assert items["layer_0/standard"].status is Status.ORPHANED
    assert look(local).plan().pending == ()
    result = look(local, choices=Choices(prune=("tiny-theirs",))).apply()
    assert result.outcomes == {"tiny-theirs/layer_0/standard": Outcome.DELETED}
    assert set(record(world).saes) == IDS - {"layer_0/standard"}
    local.write_text(local.read_text() + "retire: true\n")
    assert set(look(local).apply().outcomes.values()) == {Outcome.DELETED}
    assert not record(world).saes


def test_releases_share_a_place_and_may_name_saes_alike(world: TinyWorld, look: Look, local: Path) -> None:
    other = theirs(world.good, "local: ../records", "tiny-others")
    run = look(local, other)
    assert run.apply().exit_code == 0
    assert set(record(world).saes) == set(record(world, "tiny-others").saes) == IDS
    assert look(local, other).plan().pending == ()


def test_a_plan_file_holds_after_its_own_progress_and_not_after_another_change(world: TinyWorld, look: Look, local: Path) -> None:
    run = look(local)
    saved = json.loads(json.dumps(planfile.plan_json(run.plan())))
    assert saved["releases"][0]["location"] == str(world.folder / "records")
    assert planfile.compare(saved, look(local).plan()) == []
    assert run.apply().exit_code == 0
    assert planfile.compare(saved, look(local).plan()) == []
    edited(local, ("tokens: 1024", "tokens: 512"))
    (difference,) = planfile.compare(saved, look(local).plan())
    assert "validate.tokens" in difference.what


def test_publishing_later_does_not_measure_again(world: TinyWorld, look: Look, local: Path) -> None:
    look(local).apply()
    local.write_text(local.read_text() + "publish:\n  local: ../published\n")
    run = look(local)
    assert run.apply().exit_code == 0
    assert "validate" not in started(run)
    assert (world.published / "layer_0" / "topk" / "cfg.json").exists()


def test_a_record_of_a_newer_version_locks(world: TinyWorld, look: Look, local: Path) -> None:
    look(local).apply()
    path = world.folder / "records" / "saesync" / "tiny-theirs.json"
    found = json.loads(path.read_text())
    path.write_text(json.dumps({**found, "version": 99}))
    items = look(local).plan().items
    assert {(item.status, item.held) for item in items} == {(Status.LOCKED, True)}
    for entry in found["saes"].values():
        (evidence,) = entry["evidence"]
        evidence["inputs"]["metrics"] = evidence["inputs"]["metrics"].replace("rows:", "rows:9")
        evidence["measure_key"] = "0" * 64
    path.write_text(json.dumps(found))
    items = [item for item in look(local).plan().items if item.id is not None]
    assert {(item.held, item.steps, item.reasons[0].code) for item in items} == {(True, (), ReasonCode.MADE_NEWER)}


def program(world: TinyWorld, cache: Path, *words: str) -> Any:
    environment = {**os.environ, "SAESYNC_CACHE": str(cache)}
    return subprocess.run([PROGRAM, *words], cwd=world.folder, env=environment, capture_output=True, text=True, check=False)


def test_what_people_read(world: TinyWorld, look: Look, local: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    words = ("--manifests", str(local))
    before = program(world, cache, "show", "tiny-theirs/layer_0/topk", *words)
    assert before.returncode == 0, before.stderr
    assert "apply would fetch, convert, validate, publish" in before.stdout
    assert "never measured" in before.stdout
    plan = program(world, cache, "plan", str(local))
    assert "~ layer_0/topk … layer_1/batchtopk (3)" in plan.stdout
    assert "3 to validate" in plan.stdout
    assert "Looked at 1 folder" in plan.stdout
    assert look(local).apply().exit_code == 0
    after = program(world, cache, "show", "tiny-theirs/layer_0/topk", *words)
    assert "only evidence stands here, the weights stay at their source" in after.stdout
    assert "explained_variance" in after.stdout
    assert "passing" in after.stdout
    assert "other weights" not in after.stdout
    assert "Nothing to do: 3 SAEs up to date." in program(world, cache, "plan", str(local)).stdout


# ------------------------------------------------------------------------------------------------------ on the Hub


def on_hub(hub_world: HubWorld) -> Path:
    return theirs(hub_world.manifest(), f"huggingface: {RECORDS}")


def test_records_on_the_hub(hub_world: HubWorld, look: Look) -> None:
    server, manifest = hub_world.server, on_hub(hub_world)
    run = look(manifest)
    plan, context = run.look()
    assert preflight.check(plan, context) == ()
    assert StepKind.CREATE in next(item for item in plan.items if item.id is None).steps
    theirs_before = server.head(SOURCES)
    result = run.apply()
    assert result.exit_code == 0, result.failures
    assert result.commits == server.commits_landed() > 0
    found = parse_record(server.file(RECORDS, "saesync/tiny-theirs.json"), "tiny-theirs")
    assert set(found.saes) == IDS
    assert set(server.tree_of(RECORDS)) - {".gitattributes"} == {"README.md", "saesync/tiny-theirs.json"}
    assert server.head(SOURCES) == theirs_before
    assert server.stats()["auth_leaks"] == 0

    server.restart_counters()
    shutil.rmtree(run.cache.root)
    again = look(manifest)
    assert again.apply().exit_code == 0
    assert [event["type"] for event in again.events] == ["version", "plan", "summary"]
    assert server.commits_landed() == server.uploaded_bytes() == 0
    assert server.count("lfs.get") + server.count("resolve.get") <= 2, "record and README, no weights"


@pytest.mark.parametrize("hub_process", ["lfs"], indirect=True)
def test_records_that_cannot_be_seen_are_unknown(hub_world: HubWorld, look: Look, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = on_hub(hub_world)
    hub_world.server.create_repo(RECORDS, private=True)
    monkeypatch.delenv("HF_TOKEN")
    items = look(manifest).plan().items
    assert {(item.status, item.held) for item in items} == {(Status.UNKNOWN, True)}


@pytest.mark.parametrize("hub_process", ["lfs"], indirect=True)
def test_records_that_we_may_not_write_are_named_before_any_work(
    hub_world: HubWorld, look: Look, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = on_hub(hub_world)
    hub_world.server.create_repo(RECORDS)
    monkeypatch.setenv("HF_TOKEN", BOB)
    (complaint,) = preflight.check(*look(manifest).look())
    assert RECORDS in complaint.detail
    assert complaint.origin is not None

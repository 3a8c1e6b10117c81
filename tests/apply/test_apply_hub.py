"""Apply with everything on a loopback Hub, in both upload protocols."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from apply_world import Run
from hub_world import DATA, MODEL, SOURCES, TARGET, HubWorld
from servers.loopback import BOB

from saesync import preflight
from saesync.apply import Outcome, StopFlag, apply
from saesync.digest import digest_bytes
from saesync.reason import ReasonCode
from saesync.record import parse_record

Look = Callable[..., Run]
pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
IDS = {"layer_0/topk", "layer_0/standard", "layer_1/batchtopk"}


def test_everything_on_the_hub(hub_world: HubWorld, look: Look) -> None:
    server, manifest = hub_world.server, hub_world.manifest()
    run = look(manifest)
    assert preflight.check(*run.look()) == ()
    result = run.apply()
    assert result.exit_code == 0, result.failures
    record = parse_record(server.file(TARGET, "saesync/tiny-hub.json"), "tiny-hub")
    assert set(record.saes) == IDS
    tree = server.tree_of(TARGET)
    for sae_id in IDS:
        assert {f"{sae_id}/cfg.json", f"{sae_id}/sae_weights.safetensors"} <= set(tree)
    cfg = json.loads(server.file(TARGET, "layer_1/batchtopk/cfg.json"))
    assert cfg["metadata"]["model_name"] == MODEL
    assert cfg["metadata"]["hf_hook_name"] == "transformer.h.1"
    assert record.saes["layer_0/topk"].about["source"] == f"{SOURCES}/legacy"
    assert server.stats()["auth_leaks"] == 0
    assert server.commits_landed() == result.commits
    assert result.commits in (1, 2)  # SAEs that are ready within a moment go together

    server.restart_counters()
    again = look(manifest)
    assert again.apply().exit_code == 0
    assert [event["type"] for event in again.events] == ["version", "plan", "summary"]
    assert server.commits_landed() == 0
    assert server.uploaded_bytes() == 0
    assert server.count("lfs.get") + server.count("resolve.get") == 0


def test_only_what_is_needed_is_downloaded(hub_world: HubWorld, look: Look) -> None:
    hub_world.server.push(MODEL, {"modeling_evil.py": b"raise SystemExit", "pytorch_model.bin": b"\0" * 1000})
    sha = hub_world.server.head(MODEL)
    run = look(hub_world.manifest(model_sha=sha))
    assert run.apply().exit_code == 0
    asked = {entry["path"] for entry in hub_world.server.log() if "resolve" in entry["path"]}
    assert not [path for path in asked if path.endswith((".py", ".bin"))]


@pytest.mark.parametrize("hub_process", ["lfs"], indirect=True)
def test_preflight_names_everything_at_once(hub_world: HubWorld, look: Look, monkeypatch: pytest.MonkeyPatch) -> None:
    hub_world.server.gate(MODEL)
    monkeypatch.setenv("HF_TOKEN", BOB)
    run = look(hub_world.manifest(target="alice/other", data_sha="ab" * 20))
    found = preflight.check(*run.look())
    details = " ".join(diagnostic.detail for diagnostic in found)
    assert "alice/other" in details
    assert MODEL in details
    assert DATA in details
    assert all(diagnostic.origin is not None for diagnostic in found), found
    assert BOB not in details


@pytest.mark.parametrize("hub_process", ["lfs"], indirect=True)
def test_a_model_without_safetensors_and_one_only_in_a_pull_request(hub_world: HubWorld, look: Look) -> None:
    server = hub_world.server
    server.create_repo("alice/pickled")
    pickled = server.push("alice/pickled", {"config.json": b"{}", "pytorch_model.bin": b"x"})
    (found,) = preflight.check(*look(hub_world.manifest(model="alice/pickled", model_sha=pickled)).look())
    assert found.summary == "Model has no safetensors"
    proposed = server.push(MODEL, {"note.txt": b"x"}, create_pr=True)
    (found,) = preflight.check(*look(hub_world.manifest(model_sha=proposed)).look())
    assert found.summary == "Commit is only in a pull request"


@pytest.mark.parametrize("hub_process", ["lfs"], indirect=True)
def test_a_source_only_in_a_pull_request_is_held_by_name(hub_world: HubWorld, look: Look) -> None:
    proposed = hub_world.server.push(SOURCES, {"note.txt": b"x"}, create_pr=True)
    plan, _ = look(hub_world.manifest(sources_sha=proposed)).look()
    held = [item for item in plan.items if item.id is not None]
    assert len(held) == 3
    assert {reason.code for item in held for reason in item.reasons} == {ReasonCode.SOURCE_UNREACHABLE}
    assert all(item.held and reason.data["revision"] == proposed for item in held for reason in item.reasons)
    assert not plan.pending


@pytest.mark.parametrize("hub_process", ["lfs"], indirect=True)
def test_the_history_of_a_source_is_read_only_for_what_is_built(hub_world: HubWorld, look: Look, tmp_path: Path) -> None:
    """What is published was made of these very bytes: where else they stand does not matter any more."""
    server = hub_world.server

    def asked() -> list[str]:
        return [entry["path"] for entry in server.log() if entry["path"].endswith((f"{SOURCES}/refs", f"{SOURCES}/commits"))]

    server.restart_counters()
    assert look(hub_world.manifest()).apply().exit_code == 0
    assert asked()
    shutil.rmtree(tmp_path / "cache")
    server.restart_counters()
    plan, _ = look(hub_world.manifest()).look()
    assert not plan.pending
    assert asked() == []


@pytest.mark.parametrize("hub_process", ["lfs"], indirect=True)
def test_a_context_that_a_model_on_the_hub_cannot_read(hub_world: HubWorld, look: Look) -> None:
    manifest = hub_world.manifest()
    manifest.write_text(manifest.read_text().replace("context: 32", "context: 3200"))
    (found,) = preflight.check(*look(manifest).look())
    assert found.summary == "Context does not fit the model"
    assert "3,200 tokens" in found.detail
    assert found.origin is not None
    assert "context: 3200" in manifest.read_text().splitlines()[found.origin.line - 1]


@pytest.mark.parametrize("hub_process", ["lfs"], indirect=True)
@pytest.mark.parametrize("what", ["model_sha", "data_sha", "sources_sha"])
def test_a_commit_that_is_nowhere_is_called_so(hub_world: HubWorld, look: Look, what: str) -> None:
    """Not a repository that cannot be seen, and not a commit of somebody's pull request."""
    run = look(hub_world.manifest(**{what: "ab" * 20}))
    plan, context = run.look()
    told = [diagnostic.detail for diagnostic in preflight.check(plan, context)]
    told += [str(reason.data["detail"]) for item in plan.items if item.held for reason in item.reasons]
    assert told
    assert all("is there, but no commit of that hash" in detail for detail in told), told


@pytest.mark.parametrize("hub_process", ["lfs"], indirect=True)
@pytest.mark.parametrize("others", [1, 0])
def test_somebody_else_changes_some_saes_meanwhile(hub_world: HubWorld, look: Look, others: int) -> None:
    """Those they touched are left alone, each named by itself; the others are published, if there are any."""
    server = hub_world.server
    server.create_repo(TARGET)
    run = look(hub_world.manifest(), edit=lambda release: replace(release, saes=release.saes[: 2 + others]))
    plan, context = run.look()

    def emit(event: Mapping[str, Any]) -> None:
        run.events.append(event)
        if event["type"] == "step_finished" and event["step"] == "validate" and not meddled:
            meddled.append(server.push(TARGET, {"layer_0/standard/cfg.json": b"{}", "layer_0/topk/mine.txt": b""}))

    meddled: list[str] = []
    result = apply(plan, context, emit, StopFlag())
    published = [address for address, outcome in result.outcomes.items() if outcome is Outcome.PUBLISHED]
    assert published == ["tiny-hub/layer_1/batchtopk"][:others]
    assert {failure.address for failure in result.failures} == {"tiny-hub/layer_0/standard", "tiny-hub/layer_0/topk"}
    for failure in result.failures:
        assert failure.diagnostics[0].detail.startswith(failure.address.removeprefix("tiny-hub/"))  # its own folder, or file
        assert f" in {TARGET} was changed since the plan looked" in failure.diagnostics[0].detail
    assert server.file(TARGET, "layer_0/standard/cfg.json") == b"{}"


@pytest.mark.parametrize("hub_process", ["lfs"], indirect=True)
def test_one_downloads_while_others_are_measured_and_published(hub_world: HubWorld, look: Look) -> None:
    """Its line breaks again and again until the others are there."""
    server, slow = hub_world.server, "tiny-hub/layer_1/batchtopk"
    weights = (hub_world.folder / "sources" / "training_checkpoint" / "sae_weights.safetensors").read_bytes()
    server.fault(route="lfs.get", path=digest_bytes(weights).sha256, action="truncate", after_bytes=1, times=2000)
    run = look(hub_world.manifest())
    plan, context = run.look()

    def emit(event: Mapping[str, Any]) -> None:
        run.events.append(event)
        if len(run.told("sae_finished")) == 2:
            server.admin("faults", method="DELETE")

    assert apply(plan, context, emit, StopFlag()).exit_code == 0
    told = [(event["type"], event.get("address"), event.get("step")) for event in run.events]
    arrived = told.index(("step_finished", slow, "fetch"))
    others = {f"tiny-hub/{one}" for one in IDS} - {slow}
    assert {address for kind, address, _ in told[:arrived] if kind == "sae_finished"} == others
    assert told.index(("step_started", slow, "fetch")) < told.index(("step_started", "tiny-hub/layer_0/topk", "validate"))


@pytest.mark.parametrize("hub_process", ["lfs"], indirect=True)
def test_dataset_files_are_those_of_the_split(hub_world: HubWorld, look: Look) -> None:
    server = hub_world.server
    server.create_repo("alice/many", kind="dataset")
    text = (hub_world.folder / "data" / "held_out.jsonl").read_bytes()
    card = b"---\nconfigs:\n- config_name: default\n  data_files:\n  - split: test\n    path: held/*.jsonl\n---\n"
    sha = server.push(
        "alice/many",
        {"README.md": card, "held/00.jsonl": text, "held/01.jsonl": text, "train/00.jsonl": b'{"text": "x"}\n'},
        kind="dataset",
    )
    path = hub_world.manifest(data="alice/many", data_sha=sha)
    path.write_text(path.read_text().replace("  tokens: 1024", "    split: test\n  tokens: 1024"))
    run = look(path)
    assert run.apply().exit_code == 0
    fetched = {entry["path"].rsplit("/many/", 1)[1] for entry in server.log() if "/many/resolve/" in entry["path"]}
    assert [name for name in fetched if name.endswith("held/00.jsonl")]
    assert not [name for name in fetched if "train" in name or "01" in name.rsplit("/", 1)[1]], "one file is enough"


def test_private_stays_private(hub_world: HubWorld, look: Look, tmp_path: Path) -> None:
    assert look(hub_world.manifest(private=True)).apply().exit_code == 0
    assert hub_world.server.call("GET", f"/api/models/{TARGET}")["private"] is True


@pytest.mark.parametrize("hub_process", ["lfs"], indirect=True)
def test_three_hundred_saes_with_sixty_commits_an_hour(hub_world: HubWorld, look: Look) -> None:
    server = hub_world.server
    server.ration(commit={"quota": 60, "window": 3600})
    path = hub_world.manifest()
    text = path.read_text()
    rows = text[text.index("    - {") : text.index("  id:")]
    text = text.replace(rows, "    index: {first: 1, last: 300}\n").replace("{id}", "sae_{index}").replace("{layer}", "0")
    text = text.replace("{path}", "legacy").replace("{format}", "saelens")
    path.write_text(text[: text.index("validate:")] + text[text.index("publish:") :])
    result = look(path).apply()
    assert result.exit_code == 0, result.failures[:1]
    record = parse_record(server.file(TARGET, "saesync/tiny-hub.json"), "tiny-hub")
    assert len(record.saes) == 300
    assert len([name for name in server.tree_of(TARGET) if name.endswith("cfg.json")]) == 300
    assert server.commits_landed() <= 8
    assert look(path).plan().pending == ()

"""What SAELens cannot express: its authors' own files are published where the manifest allows it, with a refusal for machines."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from apply_world import Run
from hub_world import MODEL, SOURCES, TARGET, HubWorld
from safetensors.torch import save_file
from tiny import TinyWorld

from saesync import planfile, render
from saesync.apply import Outcome
from saesync.digest import digest_file
from saesync.model import Choices, Item, Plan, Release, Status, StepKind
from saesync.reason import ReasonCode
from saesync.record import Record, parse_record

Look = Callable[..., Run]
pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
NAME = "tiny-native"
MANIFEST = """\
apiVersion: saesync/v1
release: tiny-native
model: {path: ../model}
saes:
  for_each:
    coder: [plain, topk]
  id: coders/{coder}
  hook: blocks.1.ln2.hook_normalized
  hook_out: blocks.1.hook_mlp_out
  source:
    path: ../sources/coders/{coder}
    format: circuit_tracer
publish:
  local: ../coders
  native: true
"""
VALIDATE = """\
validate:
  dataset: {path: ../data/held_out.jsonl}
  tokens: 512
  context: 32
"""
SAES = {f"{NAME}/coders/plain": Outcome.PUBLISHED, f"{NAME}/coders/topk": Outcome.NATIVE}
WHY = "layer_1.safetensors holds k: a TopK transcoder, and SAELens has none."


def write_coders(sources: Path) -> None:
    """Two of circuit-tracer's transcoders: one that SAELens has a class for, and one with a tensor k."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"W_enc": (64, 32), "b_enc": (64,), "W_dec": (64, 32), "b_dec": (32,)}
    for name, more in (("plain", {}), ("topk", {"k": torch.tensor(8.0)})):
        folder = sources / "coders" / name
        folder.mkdir(parents=True)
        tensors = {key: torch.randn(shape, generator=generator) / 8 for key, shape in shapes.items()}
        save_file({**tensors, **more}, folder / "layer_1.safetensors")
        (folder / "config.yaml").write_text("model_name: tiny\nmodel_kind: transcoder_set\n")


@pytest.fixture
def manifest(world: TinyWorld) -> Path:
    write_coders(world.sources)
    path = world.folder / "manifests" / "native.yaml"
    path.write_text(MANIFEST)
    return path


def edited(path: Path, before: str, after: str) -> Path:
    text = path.read_text()
    assert text.count(before) == 1, before
    path.write_text(text.replace(before, after))
    return path


def record_in(world: TinyWorld) -> Record:
    return parse_record((world.folder / "coders" / "saesync" / f"{NAME}.json").read_bytes(), NAME)


def tree(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def item_of(plan: Plan, sae: str = "coders/topk") -> Item:
    return next(item for item in plan.items if item.id == sae)


def codes(item: Item) -> list[ReasonCode]:
    return [reason.code for reason in item.reasons]


def said(result: Any) -> str:
    return " ".join(each.detail for failure in result.failures for each in failure.diagnostics)


def refusal(files: Mapping[str, Any], **source: Any) -> dict[str, Any]:
    return {
        "version": 1,
        "convertible": False,
        "format": "circuit_tracer",
        "reason": {"title": "Cannot be expressed in SAELens", "detail": WHY},
        "tensor_or_field": "k",
        "source": source,
        "files": files,
    }


# ------------------------------------------------------------------------------------------------ what is published


def test_the_original_is_published_beside_what_is_converted(world: TinyWorld, manifest: Path, look: Look) -> None:
    run = look(manifest)
    assert {item.status for item in run.plan().items if item.id} == {Status.ABSENT}
    result = run.apply()
    assert result.outcomes == SAES
    assert (result.exit_code, result.failures) == (0, ())
    published, source = tree(world.folder / "coders"), world.sources / "coders" / "topk"
    native = {name: data for name, data in published.items() if "topk" in name}
    assert set(native) == {f"native/coders/topk/{name}" for name in ("layer_1.safetensors", "config.yaml", "refusal.json")}
    files = {}
    for name in ("config.yaml", "layer_1.safetensors"):
        assert native[f"native/coders/topk/{name}"] == (source / name).read_bytes()
        digest = digest_file(source / name)
        files[name] = {"size": digest.size, "sha256": digest.sha256}
    assert json.loads(native["native/coders/topk/refusal.json"]) == refusal(files, path="topk")
    entry = record_in(world).saes["coders/topk"]
    assert entry.native is not None
    assert (entry.native.said_by, entry.native.detail) == ("k", WHY)
    assert set(entry.files) == {"native/layer_1.safetensors", "native/config.yaml", "native/refusal.json"}
    assert {"coders/plain/cfg.json", "coders/plain/sae_weights.safetensors"} <= set(published)
    assert json.loads(published[f"saesync/{NAME}.json"])["version"] == 2


def test_the_second_apply_does_nothing_and_the_plan_says_why(world: TinyWorld, manifest: Path, look: Look) -> None:
    look(manifest).apply()
    before = tree(world.folder / "coders")
    run = look(manifest)
    plan, context = run.look()
    assert plan.pending == ()
    assert item_of(plan).status is Status.NATIVE
    assert codes(item_of(plan)) == [ReasonCode.NOT_CONVERTIBLE]
    text = render.plan_text(planfile.plan_json(plan))
    assert "Nothing to do: 1 as original files, 1 up to date." in text
    assert "original files" in text
    assert "not converted: Cannot be expressed in SAELens (says k)" in text
    place = ("local", str(world.folder / "coders"))
    view = planfile.show_json(item_of(plan), context.wanted[f"{NAME}/coders/topk"], context.observed[place])
    assert WHY in render.show_text(view)
    result = run.apply()
    assert (result.exit_code, result.commits, result.outcomes) == (0, 0, {})
    assert tree(world.folder / "coders") == before


def test_the_refusal_has_the_same_bytes_however_often_it_is_made(
    world: TinyWorld, manifest: Path, look: Look, tmp_path: Path
) -> None:
    look(manifest).apply()
    first = tree(world.folder / "coders" / "native")
    for path in (world.folder / "coders", tmp_path / "cache"):
        path.rename(path.with_name(f"{path.name}-before"))
    look(manifest).apply()
    assert tree(world.folder / "coders" / "native") == first


def test_the_card_lists_it_apart_and_loads_the_other(world: TinyWorld, manifest: Path, look: Look) -> None:
    look(manifest).apply()
    card = (world.folder / "coders" / "README.md").read_text()
    table, _, native = card.partition("### Not convertible: original files")
    assert '"coders/plain"' in table
    assert "topk" not in table
    assert "`coders/topk` | `native/coders/topk` |" in native
    assert "a TopK transcoder" in native
    assert "1 sparse autoencoder, published" in card


def test_a_release_of_originals_alone_claims_no_library(world: TinyWorld, manifest: Path, look: Look) -> None:
    result = look(edited(manifest, "[plain, topk]", "[topk]")).apply()
    assert result.exit_code == 0
    card = (world.folder / "coders" / "README.md").read_text()
    front = yaml.safe_load(card.split("---\n")[1])
    assert "library_name" not in front
    assert "saelens" not in front["tags"]
    assert "from_pretrained" not in card
    assert look(manifest).plan().pending == ()


# --------------------------------------------------------------------------------------------------- what is not


def test_without_the_permission_it_fails_as_before(world: TinyWorld, manifest: Path, look: Look) -> None:
    edited(manifest, "  native: true\n", "")
    for _ in range(2):
        result = look(manifest).apply()
        assert result.exit_code == 1
        assert result.outcomes[f"{NAME}/coders/topk"] is Outcome.FAILED
        assert WHY in said(result)
    assert not (world.folder / "coders" / "native").exists()
    assert json.loads((world.folder / "coders" / "saesync" / f"{NAME}.json").read_text())["version"] == 1


def test_what_is_damaged_is_not_inexpressible(world: TinyWorld, manifest: Path, look: Look) -> None:
    path = world.sources / "coders" / "topk" / "layer_1.safetensors"
    path.write_bytes(path.read_bytes()[:-4])
    result = look(manifest).apply()
    assert result.outcomes[f"{NAME}/coders/topk"] is Outcome.FAILED
    assert "not a whole safetensors file" in said(result)
    assert not (world.folder / "coders" / "native").exists()


def test_a_source_that_is_wrong_is_not_inexpressible(world: TinyWorld, manifest: Path, look: Look) -> None:
    edited(world.sources / "coders" / "topk" / "config.yaml", "transcoder_set", "transcoder_set\nactivation: [relu")
    assert look(manifest).apply().outcomes[f"{NAME}/coders/topk"] is Outcome.FAILED


class _Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("gotcha",)


def evil_checkpoint(path: Path) -> None:
    """An OpenAI checkpoint in a zip whose pickle also names ``print``."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"activation": "GELU", "more": _Evil()}, protocol=2))
        archive.writestr("archive/version", "3\n")


def openai_state(activation: str) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"encoder.weight": (64, 32), "decoder.weight": (32, 64), "latent_bias": (64,), "pre_bias": (32,)}
    tensors = {name: torch.randn(shape, generator=generator) / 8 for name, shape in shapes.items()}
    return {**tensors, "stats_last_nonzero": torch.zeros(64), "activation": activation}


def torch_manifest(manifest: Path, name: str) -> Path:
    text = (
        manifest.read_text()
        .replace("    coder: [plain, topk]", f"    coder: [{name}]")
        .replace("  hook_out: blocks.1.hook_mlp_out\n", "")
    )
    manifest.write_text(text.replace("coders/{coder}\n    format: circuit_tracer", "coders/{coder}.pt\n    format: openai"))
    return manifest


def test_a_torch_zip_may_go_along_and_one_that_runs_code_never(world: TinyWorld, manifest: Path, look: Look) -> None:
    folder = world.sources / "coders"
    torch.save(openai_state("GELU"), folder / "gelu.pt")
    result = look(torch_manifest(manifest, "gelu")).apply()
    assert result.outcomes == {f"{NAME}/coders/gelu": Outcome.NATIVE}, said(result)
    assert (world.folder / "coders" / "native" / "coders" / "gelu" / "gelu.pt").read_bytes() == (folder / "gelu.pt").read_bytes()
    evil_checkpoint(folder / "evil.pt")
    result = look(edited(manifest, "[gelu]", "[evil]")).apply()
    assert result.outcomes[f"{NAME}/coders/evil"] is Outcome.FAILED
    assert "names builtins.print" in said(result).replace("__builtin__", "builtins")
    assert not (world.folder / "coders" / "native" / "coders" / "evil").exists()


# -------------------------------------------------------------------------------------------------- requirements


@pytest.mark.parametrize("require", [False, True])
def test_nothing_is_measured_and_a_requirement_is_failed_every_time(
    world: TinyWorld, manifest: Path, look: Look, require: bool
) -> None:
    edited(manifest, "publish:\n", VALIDATE + ("  require: {l0: {max: 60}}\n" if require else "") + "publish:\n")
    if require:
        edited(manifest, "[plain, topk]", "[topk]")
    first, second = look(manifest).apply(), look(manifest).apply()
    assert (world.folder / "coders" / "native" / "coders" / "topk" / "refusal.json").is_file()
    assert [run.exit_code for run in (first, second)] == ([1, 1] if require else [0, 0])
    assert second.commits == 0
    if require:
        for result in (first, second):
            assert result.outcomes == {f"{NAME}/coders/topk": Outcome.FAILING}
            assert "l0 could not be measured" in said(result)
            assert WHY in said(result)
    else:
        assert first.outcomes == SAES
        assert record_in(world).saes["coders/plain"].evidence
        assert record_in(world).saes["coders/topk"].evidence == ()


# --------------------------------------------------------------------------------------- drift, and what comes after


def test_drift_is_noticed_and_replaced_on_request(world: TinyWorld, manifest: Path, look: Look) -> None:
    look(manifest).apply()
    path = world.folder / "coders" / "native" / "coders" / "topk" / "layer_1.safetensors"
    kept = path.read_bytes()
    path.write_bytes(b"\0" * len(kept))
    item = item_of(look(manifest).plan())
    assert (item.status, item.held, codes(item)) == (Status.DRIFTED, True, [ReasonCode.FILES_CHANGED])
    look(manifest, choices=Choices(replace=(f"{NAME}/coders/topk",))).apply()
    assert path.read_bytes() == kept
    path.unlink()
    assert codes(item_of(look(manifest).plan())) == [ReasonCode.FILES_MISSING]


def test_somebody_elses_files_in_its_place_are_foreign(world: TinyWorld, manifest: Path, look: Look) -> None:
    path = world.folder / "coders" / "native" / "coders" / "topk" / "notes.txt"
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    item = item_of(look(manifest).plan())
    assert (item.status, item.held) == (Status.FOREIGN, True)


def test_a_source_that_can_be_converted_replaces_the_original(world: TinyWorld, manifest: Path, look: Look) -> None:
    look(manifest).apply()
    source = world.sources / "coders" / "topk" / "layer_1.safetensors"
    topk = source.read_bytes()
    source.write_bytes((world.sources / "coders" / "plain" / "layer_1.safetensors").read_bytes())
    assert item_of(look(manifest).plan()).status is Status.OUTDATED
    assert look(manifest).apply().outcomes == {f"{NAME}/coders/topk": Outcome.PUBLISHED}
    published = world.folder / "coders"
    assert not (published / "native").exists()
    assert (published / "coders" / "topk" / "cfg.json").is_file()
    assert record_in(world).version == 1
    source.write_bytes(topk)
    assert look(manifest).apply().outcomes == {f"{NAME}/coders/topk": Outcome.NATIVE}
    assert not (published / "coders" / "topk").exists()
    assert (published / "native" / "coders" / "topk" / "layer_1.safetensors").read_bytes() == topk
    assert look(manifest).plan().pending == ()


def test_a_permission_that_is_withdrawn_deletes_nothing(world: TinyWorld, manifest: Path, look: Look) -> None:
    look(manifest).apply()
    before = tree(world.folder / "coders" / "native")
    edited(manifest, "  native: true\n", "")
    item = item_of(look(manifest).plan())
    assert (item.status, StepKind.CONVERT in item.steps) == (Status.OUTDATED, True)
    assert item.reasons[0].data["name"] == "publish.native"
    result = look(manifest).apply()
    assert (result.exit_code, result.commits) == (1, 0)
    assert WHY in said(result)
    assert tree(world.folder / "coders" / "native") == before


def test_an_older_plan_does_not_hold_without_the_permission(world: TinyWorld, manifest: Path, look: Look) -> None:
    saved = planfile.plan_json(look(manifest).plan())
    assert planfile.compare(saved, look(manifest).plan()) == []
    found = planfile.compare(saved, look(edited(manifest, "  native: true\n", "")).plan())
    assert any("native" in difference.what for difference in found)


def test_an_interrupted_plan_is_continued(world: TinyWorld, manifest: Path, look: Look) -> None:
    saved = planfile.plan_json(look(manifest).plan())
    look(manifest).apply()
    assert planfile.compare(saved, look(manifest).plan()) == []


def retired(release: Release) -> Release:
    return replace(release, retire=True)


def test_retire_and_prune_take_it_away(world: TinyWorld, manifest: Path, look: Look) -> None:
    look(manifest).apply()
    published = world.folder / "coders"
    edited(manifest, "[plain, topk]", "[plain]")
    assert item_of(look(manifest).plan()).status is Status.ORPHANED
    pruned = look(manifest, choices=Choices(prune=(NAME,))).apply()
    assert pruned.outcomes == {f"{NAME}/coders/topk": Outcome.DELETED}
    assert not (published / "native").exists()
    edited(manifest, "[plain]", "[plain, topk]")
    look(manifest).apply()
    assert (published / "native").exists()
    assert look(manifest, edit=retired).apply().exit_code == 0
    assert set(tree(published)) == {"README.md", f"saesync/{NAME}.json"}
    assert "topk" not in (published / "README.md").read_text()


def test_under_another_id_it_is_made_anew(world: TinyWorld, manifest: Path, look: Look) -> None:
    look(manifest).apply()
    edited(manifest, "  id: coders/{coder}", "  id: moved/{coder}")
    result = look(manifest, choices=Choices(prune=(NAME,))).apply()
    assert result.exit_code == 0
    assert {name for name in tree(world.folder / "coders") if "topk" in name} == {
        f"native/moved/topk/{name}" for name in ("layer_1.safetensors", "config.yaml", "refusal.json")
    }
    assert look(manifest).plan().pending == ()


# ------------------------------------------------------------------------------------------------------- the Hub


def on_the_hub(hub_world: HubWorld) -> Path:
    world = TinyWorld(hub_world.folder)
    write_coders(world.sources)
    files = {f"coders/{name}": data for name, data in tree(world.sources / "coders").items()}
    sha = hub_world.server.push(SOURCES, files, lfs=tuple(name for name in files if name.endswith(".safetensors")))
    text = MANIFEST.replace("{path: ../model}", f"{{name: {MODEL}, revision: {hub_world.model_sha}}}")
    text = text.replace("path: ../sources/coders", f"repo: {SOURCES}\n    revision: {sha}\n    path: coders")
    path = hub_world.folder / "manifests" / "native.yaml"
    path.write_text(text.replace("local: ../coders", f"huggingface: {TARGET}"))
    hub_world.server.restart_counters()
    return path


def test_on_the_hub(hub_world: HubWorld, look: Look) -> None:
    server, manifest = hub_world.server, on_the_hub(hub_world)
    result = look(manifest).apply()
    assert result.outcomes == SAES, said(result)
    assert server.stats()["auth_leaks"] == 0
    sources = TinyWorld(hub_world.folder).sources / "coders" / "topk"
    for name in ("layer_1.safetensors", "config.yaml"):
        assert server.file(TARGET, f"native/coders/topk/{name}") == (sources / name).read_bytes()
    about = json.loads(server.file(TARGET, "native/coders/topk/refusal.json"))
    assert about["source"]["repo"] == SOURCES
    assert about["source"]["path"] == "coders/topk"
    assert not [path for path in server.tree_of(TARGET) if path.startswith("coders/topk/")]
    assert 'from_pretrained("alice/tiny-saes", "coders/plain")' in server.file(TARGET, "README.md").decode()

    server.restart_counters()
    again = look(manifest)
    assert again.plan().pending == ()
    assert again.apply().exit_code == 0
    assert (server.commits_landed(), server.uploaded_bytes()) == (0, 0)
    assert server.count("lfs.get") + server.count("resolve.get") == 0

    result = look(manifest, edit=retired).apply()
    assert result.exit_code == 0, said(result)
    assert not [path for path in server.tree_of(TARGET) if path.startswith(("native/", "coders/"))]


@pytest.mark.parametrize("hub_process", ["lfs"], indirect=True)
@pytest.mark.parametrize("partial", [False, True])
def test_it_is_never_registered(hub_world: HubWorld, look: Look, partial: bool) -> None:
    registry = hub_world.folder / "list" / "pretrained_saes.yaml"
    registry.parent.mkdir()
    registry.write_text("other:\n  conversion_func: null\n  model: gpt2\n  repo_id: a/b\n  saes:\n  - id: x\n    path: x\n")
    manifest = on_the_hub(hub_world)
    manifest.write_text(
        f"{manifest.read_text()}register:\n  saelens: ../list/pretrained_saes.yaml\n  partial: {str(partial).lower()}\n"
    )
    first, second = look(manifest).apply(), look(manifest).apply()
    entered = yaml.safe_load(registry.read_text()).get(NAME)
    assert [run.exit_code for run in (first, second)] == ([0, 0] if partial else [1, 1])
    if partial:
        assert [sae["id"] for sae in entered["saes"]] == ["coders/plain"]
        return
    assert entered is None
    assert "original files" in said(first)
    (item,) = (item for item in look(manifest).plan().items if item.basis.get("asked.section") == "register")
    assert (item.status, codes(item)) == (Status.HELD, [ReasonCode.NATIVE_SAES])

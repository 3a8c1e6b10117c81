"""Inspecting sources from headers: on disk, on a loopback Hub by ranged reads, and as a manifest that loads."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from servers.loopback import ALICE, HubServer
from unprivileged import no_override

from saesync import formats
from saesync.cache import Cache
from saesync.errors import ManifestError, Missing, NotVisible, Refused
from saesync.formats._checks import widest
from saesync.formats._saelens_reference import write_example
from saesync.formats.base import TensorInfo
from saesync.hub import Hub
from saesync.inspection import LIMIT, Inspection, inspect_hub, inspect_local, inspect_source, parse_reference
from saesync.inspection.data import to_json
from saesync.inspection.text import ambiguous, describe, left_out, manifest, stanza, yaml
from saesync.manifest import load

MODEL = "openai-community/gpt2"
HOOK = "blocks.0.hook_resid_post"


# -------------------------------------------------------------------------------------------------------- references


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("hf://a/b", ("a/b", "", None)),
        ("hf://a/b/", ("a/b", "", None)),
        ("hf://a/b/c/d.pth", ("a/b", "c/d.pth", None)),
        ("hf://a/b@main", ("a/b", "", "main")),
        ("hf://a/b/c@v1.0", ("a/b", "c", "v1.0")),
        ("hf://a/b@refs%2Fpr%2F1/c", ("a/b", "c", "refs/pr/1")),
        ("./folder@x", (None, "./folder@x", None)),
    ],
)
def test_references(text: str, expected: tuple[str | None, str, str | None]) -> None:
    found = parse_reference(text)
    assert (found.repo, found.path, found.revision) == expected
    assert parse_reference(str(found)) == found


@pytest.mark.parametrize("text", ["hf://", "hf://a", "hf://a/", "hf:///b", "hf://a/b/../c", "hf://a b/c", "hf://-/x"])
def test_malformed_references_are_refused(text: str) -> None:
    with pytest.raises(Refused, match="reference"):
        parse_reference(text)


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("https://huggingface.co/acme/x", "hf://acme/x"),
        ("https://huggingface.co/acme/x/tree/main?not-for-all-audiences=true", "hf://acme/x"),
        ("https://huggingface.co/acme/x/blob/v1.0/layer_0/ae.pt", "hf://acme/x@v1.0/layer_0/ae.pt"),
        ("https://huggingface.co/datasets/acme/x", "hf://owner/repo"),
    ],
)
def test_the_address_of_a_page_is_told_as_a_reference(text: str, meant: str) -> None:
    with pytest.raises(Refused, match=re.escape(f"Write `{meant}`.")):
        parse_reference(text)


# -------------------------------------------------------------------------------------------------------------- disk


def test_a_folder_that_cannot_be_read_is_not_taken_for_empty(tmp_path: Path) -> None:
    for name in ("open", "shut"):
        formats.get("goodfire").example(tmp_path / name, 0)
    (tmp_path / "shut").chmod(0)

    done = subprocess.run(
        [sys.executable, "-m", "saesync", "inspect", str(tmp_path)], capture_output=True, text=True, check=False,
        preexec_fn=no_override,
    )  # fmt: skip
    (tmp_path / "shut").chmod(0o700)
    assert (done.returncode, done.stdout) == (1, "")
    assert f"Permission denied ({tmp_path / 'shut'})" in done.stderr


def goodfire(folder: Path, name: str = "Llama-3.1-8B-Instruct-SAE-l19.pth") -> Path:
    formats.get("goodfire").example(folder, 0)
    (folder / "Tiny-SAE-l1.pth").rename(folder / name)
    return folder


def test_a_root_level_folder(tmp_path: Path) -> None:
    write_example(tmp_path, 0)
    (found,) = inspect_local(tmp_path).saes
    assert found.path == ""
    assert found.best is not None
    assert found.best.format == "saelens"
    assert found.best.facts == {
        "architecture": "batchtopk", "converted_as": "jumprelu", "d_in": 12, "d_sae": 40, "dtype": "float32", "layout": "v6",
        "hook": HOOK, "model": "gpt2",
    }  # fmt: skip
    assert found.headers.tensors["sae_weights.safetensors"]["W_enc"].shape == (12, 40)


def test_a_single_file(tmp_path: Path) -> None:
    name = "Llama-3.1-8B-Instruct-SAE-l19.pth"
    inspection = inspect_local(goodfire(tmp_path) / name)
    (found,) = inspection.saes
    assert found.best is not None
    assert found.best.facts["hook"] == "blocks.19.hook_resid_post"
    assert found.best.facts["model"] == "meta-llama/Llama-3.1-8B-Instruct"
    assert stanza(inspection) == f"source:\n  path: {tmp_path / name}\n  format: goodfire\n"


def test_weights_under_another_name_are_named_themselves(tmp_path: Path) -> None:
    folder = tmp_path / "renamed"
    formats.get("dictionary_learning").example(folder, 0)
    (folder / "ae.pt").rename(folder / "model.pt")
    (found,) = inspect_local(tmp_path).saes
    assert (found.path, [one.format for one in found.candidates]) == ("renamed/model.pt", ["dictionary_learning"])
    assert stanza(inspect_local(folder)).splitlines()[1] == f"  path: {folder / 'model.pt'}"


def test_several_saes_are_listed_in_order(tmp_path: Path) -> None:
    for layer in (10, 2, 0):
        write_example(tmp_path / f"layer_{layer}" / "width_1k", layer)
    goodfire(tmp_path / "mixed", "a.pth")
    goodfire(tmp_path / "mixed", "b.pth")
    save_file({"sparsity": torch.zeros(40)}, tmp_path / "layer_2" / "width_1k" / "sparsity.safetensors")
    paths = [found.path for found in inspect_local(tmp_path).saes]
    assert paths == [
        "layer_0/width_1k", "layer_2/width_1k", "layer_10/width_1k", "mixed/a.pth", "mixed/b.pth",
    ]  # fmt: skip


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    write_example(tmp_path, 0, normalize_activations="expected_average_only_in")
    inspection = inspect_local(tmp_path)
    assert inspection.saes[0].best is not None
    assert inspection.saes[0].best.needs == ("norm_scaling_factor",)
    assert "needs norm_scaling_factor" in describe(inspection)
    assert "# norm_scaling_factor:" in stanza(inspection)
    (tmp_path / "activation_scaler.json").write_text('{"scaling_factor": 0.25}', encoding="utf-8")
    assert "\n  norm_scaling_factor: 0.25\n" in stanza(inspect_local(tmp_path))


def test_what_cannot_be_converted_is_said(tmp_path: Path) -> None:
    write_example(tmp_path, 0, architecture="topk")
    cfg = json.loads((tmp_path / "cfg.json").read_text(encoding="utf-8"))
    (tmp_path / "cfg.json").write_text(json.dumps({k: v for k, v in cfg.items() if k != "k"}), encoding="utf-8")
    inspection = inspect_local(tmp_path)
    assert "SAELens would use ReLU" in describe(inspection)
    for make in (stanza, manifest):
        with pytest.raises(Refused, match="no whole k"):
            make(inspection)


def test_unsafe_unknown_and_damaged_files_are_said(tmp_path: Path) -> None:
    matrices = {"encoder_linear.weight": torch.zeros(2, 2), "decoder_linear.weight": torch.zeros(2, 2)}
    torch.save({**matrices, "x": slice(1)}, tmp_path / "b.pt")
    torch.save({"something": torch.zeros(3)}, tmp_path / "c.pt")
    (tmp_path / "d.pt").write_bytes(b"\x80\x02nonsense")
    np.savez(tmp_path / "params.npz", W_enc=np.zeros((3, 4), np.float32))
    text = describe(inspect_local(tmp_path))
    assert "no known format fits" in text
    assert "builtin" in text
    assert "not a whole torch checkpoint" in text
    assert "W_enc  [3, 4]  float32" in text


@pytest.mark.parametrize("made", ["goodfire", "dictionary_learning"])
def test_what_reading_refuses_beside_tensors_is_said(made: str, tmp_path: Path) -> None:
    """A manifest of such a file would fail at every apply."""
    formats.get(made).example(tmp_path, 0)
    (path,) = [each for each in tmp_path.iterdir() if each.suffix in (".pt", ".pth")]
    torch.save({**torch.load(path), "step": 1000}, path)
    text = describe(inspect_local(tmp_path))
    assert f"! {path.name} holds 'step', which is no tensor" in text
    with pytest.raises(Refused, match="no tensor"):
        stanza(inspect_local(tmp_path))


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(Missing):
        inspect_local(tmp_path / "nowhere")
    (tmp_path / "README.md").write_text("hello", encoding="utf-8")
    with pytest.raises(Refused, match="No file ending in"):
        inspect_local(tmp_path)


def test_terminal_escapes_are_shown_not_sent(tmp_path: Path) -> None:
    write_example(tmp_path, 0, architecture="standard", metadata={"hook_name": "\x1b[31mred\x1b]0;title\x07"})
    text = describe(inspect_local(tmp_path))
    assert "\x1b" not in text
    assert "\\x1b[31mred" in text


def test_no_heavy_package_is_imported(tmp_path: Path) -> None:
    write_example(tmp_path / "one", 0)
    goodfire(tmp_path / "two")
    np.savez(tmp_path / "params.npz", W_enc=np.zeros((3, 4), np.float32))
    code = (
        "import sys; from saesync.inspection import inspect_source; from saesync.inspection.text import describe; "
        f"text = describe(inspect_source({str(tmp_path)!r}, None)); assert 'W_enc' in text; "
        "print([m for m in ('torch', 'numpy', 'safetensors', 'sae_lens', 'huggingface_hub') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# ---------------------------------------------------------------------------------------------------------- manifests


def completed(text: str, hook: bool = False) -> str:
    """What a user fills in: model, commit, hook."""
    text = text.replace("  # name: OWNER/MODEL", f"  name: {MODEL}  #").replace("  name: gpt2 ", f"  name: {MODEL} ")
    text = text.replace("  # revision:", f"  revision: {'a' * 40}  #")
    return text.replace("  # hook: blocks.0.hook_resid_post", "  hook: blocks.0.hook_resid_post  #") if hook else text


def loaded(folder: Path, text: str) -> Any:
    path = folder / "release.yaml"
    path.write_text(text, encoding="utf-8")
    return load([path])[0]


def test_a_manifest_over_one_sae_loads(tmp_path: Path) -> None:
    write_example(tmp_path / "my sae", 0)
    text = manifest(inspect_local(tmp_path / "my sae"), folder=tmp_path)
    release = loaded(tmp_path, completed(text))
    (sae,) = release.saes
    assert (sae.hook, sae.source.format, sae.source.path) == (HOOK, "saelens", str(tmp_path / "my sae"))
    assert release.name == "my-sae"


def test_a_manifest_over_many_saes_loads(tmp_path: Path) -> None:
    for layer in range(3):
        metadata = {"sae_lens_version": "6.0.0", "hook_name": f"blocks.{layer}.hook_resid_post", "model_name": MODEL}
        write_example(tmp_path / "source" / f"layer_{layer}", layer, metadata=metadata)
    goodfire(tmp_path / "source" / "other")
    text = manifest(inspect_local(tmp_path / "source"), release="mine", folder=tmp_path, model=MODEL)
    release = loaded(tmp_path, completed(text))
    assert [(sae.id, sae.hook, sae.source.format) for sae in release.saes] == [
        ("layer_0", "blocks.0.hook_resid_post", "saelens"),
        ("layer_1", "blocks.1.hook_resid_post", "saelens"),
        ("layer_2", "blocks.2.hook_resid_post", "saelens"),
        ("other", "blocks.19.hook_resid_post", "goodfire"),
    ]


def test_what_only_some_saes_have_to_declare_stands_in_their_rows(tmp_path: Path) -> None:
    """A run's checkpoints beside its end: only they want scaled inputs, and the factor of one is not known."""
    write_example(tmp_path / "end", 0)
    write_example(tmp_path / "unknown", 0, normalize_activations="expected_average_only_in")
    assert ['"?"' in line for line in stanza(inspect_local(tmp_path)).splitlines() if "- {id" in line] == [False, True]
    write_example(tmp_path / "known", 0, normalize_activations="expected_average_only_in")
    (tmp_path / "known" / "activation_scaler.json").write_text('{"scaling_factor": 0.25}', encoding="utf-8")
    text = manifest(inspect_local(tmp_path), folder=tmp_path)
    with pytest.raises(ManifestError, match="norm_scaling_factor"):
        loaded(tmp_path, completed(text))
    release = loaded(tmp_path, completed(text).replace('norm_scaling_factor: "?"', "norm_scaling_factor: 0.5"))
    options = {sae.id: dict(sae.source.options) for sae in release.saes}
    assert options == {"end": {}, "known": {"norm_scaling_factor": 0.25}, "unknown": {"norm_scaling_factor": 0.5}}


@pytest.mark.parametrize("names", [["l1"], ["l1", "l2"]])
def test_two_formats_that_fit_equally_well_are_left_open(tmp_path: Path, names: list[str]) -> None:
    for name in names:
        for made in ("saelens", "dictionary_learning"):
            formats.get(made).example(tmp_path / "x" / name, 0)
    inspection = inspect_local(tmp_path / "x")
    assert ambiguous(inspection) == [f"{name} can be dictionary_learning or saelens" for name in names]
    assert "ambiguous: dictionary_learning or saelens fit equally well" in describe(inspection)
    assert [each["ambiguous"] for each in to_json(inspection)["saes"]] == [["dictionary_learning", "saelens"]] * len(names)
    formats.get("goodfire").example(tmp_path / "clear", 0)
    assert [each["ambiguous"] for each in to_json(inspect_local(tmp_path / "clear"))["saes"]] == [[]]
    assert 'format: "?"    # say which: dictionary_learning or saelens fit' in stanza(inspection)
    text = completed(manifest(inspection, folder=tmp_path), hook=True)
    with pytest.raises(ManifestError, match="format"):
        loaded(tmp_path, text)
    saes = loaded(tmp_path, text.replace('format: "?"', "format: saelens")).saes
    assert {(sae.source.format, sae.hook) for sae in saes} == {("saelens", HOOK)}


def test_the_model_is_a_folder_or_a_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_example(tmp_path / "x", 0)
    (tmp_path / "my model").mkdir()
    (tmp_path / "manifests").mkdir()
    monkeypatch.chdir(tmp_path)
    inspection = inspect_local(Path("x"))
    for typed in ("my model", "./my model/", str(tmp_path / "my model")):
        text = manifest(inspection, model=typed, folder=tmp_path / "manifests")
        assert '  path: "../my model"\n' in text
        assert loaded(tmp_path / "manifests", text).saes[0].model.path == str(tmp_path / "my model")
    text = manifest(inspection, model=MODEL, folder=tmp_path / "manifests")
    assert loaded(tmp_path / "manifests", completed(text)).saes[0].model.name == MODEL
    for typed in ("./nowhere", "/no/where"):
        with pytest.raises(Missing, match="There is no folder"):
            manifest(inspection, model=typed)
    with pytest.raises(Refused, match="neither a folder nor a Hub id"):
        manifest(inspection, model="no/where/at all")


@pytest.mark.parametrize("names", [["l1"], ["l1", "l2"]])
def test_braces_in_paths_are_no_placeholders(tmp_path: Path, names: list[str]) -> None:
    for name in names:
        write_example(tmp_path / "{a}" / name, 0, metadata={"hook_name": HOOK, "model_name": MODEL})
    inspection = inspect_local(tmp_path / "{a}")
    saes = loaded(tmp_path, completed(manifest(inspection, folder=tmp_path))).saes
    assert [sae.source.path for sae in saes] == [str(tmp_path / "{a}" / name) for name in names]
    assert ("{{a}}" in stanza(inspection)) == (len(names) == 1), "values of for_each are no templates"


def test_examples_of_local_paths_start_where_the_manifest_lies(tmp_path: Path) -> None:
    write_example(tmp_path / "x", 0)
    found = inspect_local(tmp_path / "x")
    for folder, data in ((tmp_path / "manifests", "../held_out.jsonl"), (tmp_path, "./held_out.jsonl")):
        assert f"# or {{path: {data}}}" in manifest(found, folder=folder)


@pytest.mark.parametrize("names", [["l1"], ["l1", "l2"]])
def test_a_dtype_that_is_not_published_becomes_one_that_is(tmp_path: Path, names: list[str]) -> None:
    for name in names:
        write_example(tmp_path / "x" / name, 0, metadata={"hook_name": HOOK, "model_name": MODEL})
        weights = tmp_path / "x" / name / "sae_weights.safetensors"
        save_file({key: value.double() for key, value in load_file(weights).items()}, weights)
    text = manifest(inspect_local(tmp_path / "x"), folder=tmp_path)
    assert "dtype: float32    # float64 in the files; weights are published as float32, float16 or bfloat16\n" in text
    assert {sae.dtype for sae in loaded(tmp_path, completed(text)).saes} == {"float32"}


def test_a_manifest_names_what_it_leaves_out(tmp_path: Path) -> None:
    for name in ("l1", "l2", "l3"):
        write_example(tmp_path / "three" / name, 0, metadata={"hook_name": HOOK, "model_name": MODEL})
    damaged = tmp_path / "three" / "l2" / "sae_weights.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-9])
    inspection = inspect_local(tmp_path / "three")
    (line,) = left_out(inspection)
    assert line.startswith("l2: sae_weights.safetensors")
    text = manifest(inspection, folder=tmp_path)
    assert f"\n# Left out:\n#   {line}\nsaes:\n" in text
    assert [sae.id for sae in loaded(tmp_path, completed(text)).saes] == ["l1", "l3"]


def test_a_manifest_names_what_was_not_looked_at(tmp_path: Path) -> None:
    write_example(tmp_path / "many" / "s0", 0)
    for number in range(1, LIMIT + 7):
        shutil.copytree(tmp_path / "many" / "s0", tmp_path / "many" / f"s{number}")
    (line,) = left_out(inspect_local(tmp_path / "many"))
    assert line.startswith(f"s64, s65, s66, s67, s68 and 2 more: not looked at, as only the first {LIMIT} are.")


def test_what_lies_beside_saes_takes_no_place_of_theirs(tmp_path: Path) -> None:
    """SAELens writes feature densities beside each SAE."""
    (first := tmp_path / "layer_0").mkdir()
    write_example(first, 1)
    save_file({"sparsity": torch.zeros(40)}, first / "sparsity.safetensors")
    for number in range(1, LIMIT + 2):
        shutil.copytree(first, tmp_path / f"layer_{number}")
    found = inspect_local(tmp_path)
    assert [each.path for each in found.saes] == [f"layer_{number}" for number in range(LIMIT)]
    assert list(found.unread) == [f"layer_{LIMIT}", f"layer_{LIMIT + 1}"]


def test_a_manifest_with_unknowns_loads_when_they_are_filled_in(tmp_path: Path) -> None:
    goodfire(tmp_path / "x", "sae.pth")
    text = manifest(inspect_local(tmp_path / "x"), folder=tmp_path)
    assert "# name: OWNER/MODEL" in text
    (sae,) = loaded(tmp_path, completed(text, hook=True)).saes
    assert sae.hook == HOOK


# ------------------------------------------------------------------------------------------------------------ the Hub


def pushed(server: HubServer, folder: Path, repo: str = "alice/saes") -> str:
    server.create_repo(repo)
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
    return server.push(repo, files, lfs=tuple(name for name in files if not name.endswith(".json")))


def hub_of(tmp_path: Path) -> Hub:
    return Hub(Cache(tmp_path / "cache"), patience=3)


def as_data(inspection: Inspection) -> list[Any]:
    return list(to_json(inspection)["saes"])


def test_the_hub_shows_what_the_disk_shows(hub_server: HubServer, tmp_path: Path) -> None:
    world = tmp_path / "world"
    write_example(world / "layer_0", 0)
    goodfire(world / "big")
    sha = pushed(hub_server, world)
    inspection = inspect_source("hf://alice/saes", lambda: hub_of(tmp_path))
    assert inspection.revision == sha
    assert as_data(inspection) == as_data(inspect_local(world))
    inside = inspect_hub(hub_of(tmp_path), parse_reference(f"hf://alice/saes/big@{sha}"))
    expected = ["source:", "  repo: alice/saes", f"  revision: {yaml(sha)}", "  path: big", "  format: goodfire"]
    assert stanza(inside).splitlines() == expected


def test_the_hub_sends_headers_only(hub_server: HubServer, tmp_path: Path) -> None:
    world = tmp_path / "world"
    world.mkdir()
    d_sae, d_in = 4096, 512
    shapes = {
        "encoder_linear.weight": (d_sae, d_in),
        "encoder_linear.bias": (d_sae,),
        "decoder_linear.weight": (d_in, d_sae),
        "decoder_linear.bias": (d_in,),
    }
    torch.save({name: torch.zeros(shape) for name, shape in shapes.items()}, world / "a.pth")
    size = (world / "a.pth").stat().st_size
    pushed(hub_server, world)
    hub_server.restart_counters()
    inspection = inspect_source("hf://alice/saes", lambda: hub_of(tmp_path))
    assert inspection.convertible
    sent = sum(route["bytes_out"] for route in hub_server.stats()["routes"].values())
    assert sent < 1 << 20 < size


def test_two_gigabytes_on_the_hub_cost_less_than_one_megabyte(hub_server: HubServer, tmp_path: Path) -> None:
    """The file is sparse in the server's store: it is as long as a real one and takes no room."""
    d_sae, d_in = 65_536, 4_096
    shapes = {"encoder_linear.weight": (d_sae, d_in), "encoder_linear.bias": (d_sae,)}
    shapes |= {"decoder_linear.weight": (d_in, d_sae), "decoder_linear.bias": (d_in,)}
    entries, at = {}, 0
    for name, shape in shapes.items():
        length = 4 * int(np.prod(shape))
        entries[name] = {"dtype": "F32", "shape": shape, "data_offsets": [at, at + length]}
        at += length
    header = json.dumps(entries).encode()
    header = len(header).to_bytes(8, "little") + header
    hub_server.create_repo("alice/large")
    stored = hub_server._store("alice/large", header, ALICE)
    oid = stored["oid"]
    with (hub_server.root / "lfs" / oid[:2] / oid[2:4] / oid).open("r+b") as stream:
        stream.truncate(len(header) + at)
    size = len(header) + at
    line = {"key": "lfsFile", "value": {"path": "sae.safetensors", "algo": "sha256", "oid": oid, "size": size}}
    head = {"key": "header", "value": {"summary": "large", "description": ""}}
    body = b"".join(json.dumps(each).encode() + b"\n" for each in (head, line))
    hub_server.call("POST", "/api/models/alice/large/commit/main", body, ALICE, "application/x-ndjson")
    hub_server.restart_counters()
    inspection = inspect_source("hf://alice/large", lambda: hub_of(tmp_path))
    assert size > 2_000_000_000
    assert [(found.best.format, found.best.facts["d_sae"]) for found in inspection.saes if found.best] == [("goodfire", d_sae)]
    sent = sum(route["bytes_out"] for route in hub_server.stats()["routes"].values())
    assert sent < 1_000_000


@pytest.mark.parametrize("kept", ["W_enc", "b_dec"])
def test_a_source_of_mixed_types_has_the_widest(kept: str, tmp_path: Path) -> None:
    """Whichever tensor it is, storing as the others are would round it away."""
    write_example(tmp_path, 0, architecture="topk")
    weights = load_file(tmp_path / "sae_weights.safetensors")
    narrow = {name: value if name == kept else value.to(torch.bfloat16) for name, value in weights.items()}
    save_file(narrow, tmp_path / "sae_weights.safetensors")
    best = inspect_local(tmp_path).saes[0].best
    assert best is not None
    assert best.facts["dtype"] == "float32"


def test_a_type_is_as_wide_as_the_weights_need() -> None:
    def of(**kinds: str) -> str:
        return widest({name: TensorInfo((3,), kind) for name, kind in kinds.items()})

    assert of(W_enc="float16", W_dec="float16") == "float16"
    assert of(W_enc="float16", W_dec="bfloat16") == "float32"  # neither holds the other's numbers
    assert of(W_enc="float64", W_dec="bfloat16") == "float64"
    assert of(W_dec="bfloat16", threshold="float32", counts="int64") == "bfloat16"  # thresholds are float32 in any case
    assert of(W_dec="bfloat16", threshold="float64") == "float64"
    assert widest({"W_dec": TensorInfo((3, 2), "bfloat16"), "running_avg": TensorInfo((), "float32")}) == "bfloat16"


def test_what_the_hub_does_not_have(hub_server: HubServer, tmp_path: Path) -> None:
    with pytest.raises((Missing, NotVisible)):
        inspect_source("hf://alice/none", lambda: hub_of(tmp_path))
    hub_server.create_repo("alice/empty")
    with pytest.raises(Refused, match="No file ending in"):
        inspect_source("hf://alice/empty", lambda: hub_of(tmp_path))

"""miStudio: what its checkpoints do not say must be declared, and its exports are not what they look like."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from convert_support import METADATA, convert, refused, source_files
from safetensors.torch import load_file, save_file

from saesync import formats
from saesync.formats.base import Candidate
from saesync.formats.mistudio import RESCALE, MiStudio, MiStudioOptions
from saesync.formats.mistudio_export import MiStudioExport, MiStudioExportOptions
from saesync.inspection import inspect_local

NATIVE, EXPORT = MiStudio(), MiStudioExport()
NORM = {"normalize_activations": RESCALE}


def written(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "sae_weights.safetensors")


def cfg_of(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "cfg.json").read_text())
    return found


def candidates(folder: Path) -> dict[str, Candidate]:
    (found,) = inspect_local(folder).saes
    return {candidate.format: candidate for candidate in found.candidates}


def test_both_decoder_biases_count_and_adams_state_does_not(tmp_path: Path) -> None:
    NATIVE.example(tmp_path / "source", 0, "standard")
    convert("mistudio", tmp_path / "source", tmp_path / "out", options=NORM | {"k": 0})
    t, found = load_file(tmp_path / "source" / "checkpoint.safetensors"), written(tmp_path / "out")
    assert set(found) == {"W_enc", "W_dec", "b_enc", "b_dec"}
    assert torch.equal(found["b_dec"], t["model.decoder.bias"] + t["model.decoder_bias"])
    assert torch.equal(found["W_enc"], t["model.encoder.weight"].T)


@pytest.mark.parametrize(("k", "architecture"), [(0, "standard"), (14, "topk")])
def test_k_decides_the_architecture(k: int, architecture: str, tmp_path: Path) -> None:
    NATIVE.example(tmp_path / "source", 0, "standard")
    convert("mistudio", tmp_path / "source", tmp_path / "out", options=NORM | {"k": k})
    cfg = cfg_of(tmp_path / "out")
    assert (cfg["architecture"], cfg.get("k", 0)) == (architecture, k)
    assert cfg["normalize_activations"] == RESCALE
    assert cfg["apply_b_dec_to_input"] is False


@pytest.mark.parametrize(
    ("variant", "options", "summary", "words"),
    [
        ("standard", NORM, "Missing k", "top_k_sparsity"),
        ("standard", NORM | {"k": 41}, "Missing k", "from 1 to 40"),
        ("standard", {"k": 0}, "Needs a declared normalisation", "normalize_activations"),
        ("standard", NORM | {"k": 0, "kind": "skip"}, "Kinds contradict", "SparseAutoencoder"),
        ("skip", {"k": 0, "normalize_activations": "none"}, "Needs a declared skip_scale", "does not save skip_scale"),
        ("skip", NORM | {"k": 0, "skip_scale": 1.0}, "Cannot be expressed in SAELens", "SkipAutoencoder"),
        ("skip", {"k": 5, "skip_scale": 1.0, "normalize_activations": "none"}, "Cannot be expressed in SAELens", "TopK skip"),
        ("transcoder", {"k": 5}, "Cannot be expressed in SAELens", "TopK transcoder"),
        ("transcoder", NORM | {"k": 0}, "Option does not fit", "normalize_activations"),
        ("jumprelu", NORM | {"k": 3}, "Option does not fit", "JumpReLUSAE"),
        ("jumprelu", {}, "Needs a declared normalisation", RESCALE),
    ],
)
def test_what_is_not_said_or_not_expressible_is_refused(
    variant: str, options: dict[str, Any], summary: str, words: str, tmp_path: Path
) -> None:
    NATIVE.example(tmp_path, 0, variant)
    refused("mistudio", tmp_path, summary, words, options=options)


def rewritten(folder: Path, notes: dict[str, str] | None, drop: str = "", **more: torch.Tensor) -> Path:
    path = folder / "checkpoint.safetensors"
    tensors = {name: value for name, value in {**load_file(path), **more}.items() if name != drop}
    save_file(tensors, path, metadata=notes)
    return folder


def test_without_its_class_the_kind_must_be_declared(tmp_path: Path) -> None:
    NATIVE.example(tmp_path, 0, "standard")
    rewritten(tmp_path, None)
    assert "kind" in candidates(tmp_path)["mistudio"].needs
    refused("mistudio", tmp_path, "Needs a declared kind", "does not name its class", options=NORM | {"k": 0})
    convert("mistudio", tmp_path, tmp_path / "out", options=NORM | {"k": 0, "kind": "standard"})


def test_other_classes_and_tensors_are_refused(tmp_path: Path) -> None:
    NATIVE.example(tmp_path, 0, "standard")
    rewritten(tmp_path, {"architecture": "GatedAutoencoder"})
    refused("mistudio", tmp_path, "Cannot be expressed in SAELens", "GatedAutoencoder", options=NORM | {"k": 0})
    rewritten(tmp_path, {"architecture": "SparseAutoencoder"}, **{"ema.weight": torch.zeros(3)})
    refused("mistudio", tmp_path, "Unknown tensor", "ema.weight", options=NORM | {"k": 0})
    rewritten(tmp_path, {"architecture": "SparseAutoencoder"}, "ema.weight", **{"model.gate": torch.zeros(3)})
    refused("mistudio", tmp_path, "Unknown tensor", "gate", options=NORM | {"k": 0})


def test_a_missing_second_bias_is_not_taken_for_zero(tmp_path: Path) -> None:
    NATIVE.example(tmp_path, 0, "standard")
    rewritten(tmp_path, {"architecture": "SparseAutoencoder"}, "model.decoder.bias")
    refused("mistudio", tmp_path, "Missing tensor", "decoder.bias", options=NORM | {"k": 0})


@pytest.mark.parametrize(
    ("variant", "needs"),
    [("standard", {"k", "normalize_activations"}), ("jumprelu", {"normalize_activations"}), ("transcoder", {"k"}),
     ("skip", {"k", "normalize_activations", "skip_scale"})],
)  # fmt: skip
def test_inspect_says_what_must_be_declared(variant: str, needs: set[str], tmp_path: Path) -> None:
    NATIVE.example(tmp_path, 0, variant)
    found = candidates(tmp_path)["mistudio"]
    assert (set(found.needs), found.facts["architecture"], found.score) == (needs, variant, 1.0)


def test_a_skip_connection_is_a_scaled_identity(tmp_path: Path) -> None:
    options = NATIVE.example(tmp_path / "source", 0, "skip")
    metadata = {**METADATA, "hook_name_out": METADATA["hook_name"]}
    convert("mistudio", tmp_path / "source", tmp_path / "out", options=dataclasses.asdict(options), metadata=metadata)
    assert torch.equal(written(tmp_path / "out")["W_skip"], 0.75 * torch.eye(12))


def test_the_raw_checkpoint_in_a_neuronpedia_zip_is_found(tmp_path: Path) -> None:
    """Its exporter copies the checkpoint under SAELens's name, optimizer and all."""
    folder = tmp_path / "saelens"
    NATIVE.example(folder, 0, "standard")
    (folder / "checkpoint.safetensors").rename(folder / "sae_weights.safetensors")
    assert candidates(folder)["mistudio"].score == 1.0
    convert("mistudio", folder, tmp_path / "out", options=NORM | {"k": 0})


# -------------------------------------------------------------------------------------------------------- exports


def exported(folder: Path, **changes: Any) -> Path:
    EXPORT.example(folder, 0, "half")
    path = folder / "cfg.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return folder


def test_an_export_is_not_taken_for_saelens(tmp_path: Path) -> None:
    """Read as SAELens's own, it would load as ReLU without k, without normalisation, and with half of its bias."""
    exported(tmp_path)
    refused("saelens", tmp_path, "Not SAELens's own", "miStudio", "mistudio_export")
    found = candidates(tmp_path)
    assert found["saelens"].refusal is not None
    assert set(found["mistudio_export"].needs) == {"k", "normalize_activations", "b_dec"}
    assert found["mistudio_export"].score > found["saelens"].score


def test_exports_without_a_training_id_are_known_by_their_fields(tmp_path: Path) -> None:
    exported(tmp_path, hook_point_layer=3, extra_metadata={}, expansion_factor=8, mistudio_training_id=None)
    path = tmp_path / "cfg.json"
    cfg = json.loads(path.read_text())
    del cfg["mistudio_training_id"]
    path.write_text(json.dumps(cfg))
    refused("saelens", tmp_path, "Not SAELens's own", "miStudio")


@pytest.mark.parametrize("architecture", ["skip", "transcoder", "jumprelu"])
def test_exports_that_hold_no_whole_function_are_refused(architecture: str, tmp_path: Path) -> None:
    exported(tmp_path, architecture=architecture)
    options = NORM | {"k": 6, "b_dec": "half"}
    refused("mistudio_export", tmp_path, "Cannot be repaired", architecture, "checkpoint.safetensors", options=options)
    assert candidates(tmp_path)["mistudio_export"].refusal is not None


def test_an_export_that_subtracts_b_dec_is_refused(tmp_path: Path) -> None:
    exported(tmp_path, apply_b_dec_to_input=True)
    options = NORM | {"k": 6, "b_dec": "half"}
    refused("mistudio_export", tmp_path, "Cannot be repaired", "apply_b_dec_to_input", options=options)


def test_saelens_own_folders_are_no_exports(tmp_path: Path) -> None:
    formats.get("saelens").example(tmp_path, 0)
    refused("mistudio_export", tmp_path, "No miStudio export", "cfg.json", options=NORM | {"k": 6, "b_dec": "half"})


@pytest.mark.parametrize(("tied", "declared"), [(False, "half"), (True, "whole")])
def test_a_repaired_export_is_the_native_function(tied: bool, declared: Literal["half", "whole"], tmp_path: Path) -> None:
    """The exporter writes decoder_bias alone; trained from zero with equal gradients, decoder.bias is the same again."""
    NATIVE.example(tmp_path / "native", 0, "tied" if tied else "standard")
    t = load_file(tmp_path / "native" / "checkpoint.safetensors")
    if not tied:
        rewritten(tmp_path / "native", {"architecture": "SparseAutoencoder"}, **{"model.decoder.bias": t["model.decoder_bias"]})
    exported(tmp_path / "export")
    decoder = t["model.encoder.weight"] if tied else t["model.decoder.weight"].T
    tensors = {
        "W_enc": t["model.encoder.weight"].T,
        "W_dec": decoder,
        "b_enc": t["model.encoder.bias"],
        "b_dec": t["model.decoder_bias"],
    }
    save_file({name: value.contiguous() for name, value in tensors.items()}, tmp_path / "export" / "sae_weights.safetensors")
    convert("mistudio", tmp_path / "native", tmp_path / "one", options=NORM | {"k": 14})
    convert("mistudio_export", tmp_path / "export", tmp_path / "two", options=NORM | {"k": 14, "b_dec": declared})
    for name in ("cfg.json", "sae_weights.safetensors"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    x = torch.randn(20, 12, generator=torch.Generator().manual_seed(1))
    native = NATIVE.reference(source_files("mistudio", tmp_path / "native"), MiStudioOptions(14, RESCALE), x)
    export = EXPORT.reference(
        source_files("mistudio_export", tmp_path / "export"), MiStudioExportOptions(14, RESCALE, declared), x
    )
    assert all(torch.allclose(one, two, atol=1e-12) for one, two in zip(native, export, strict=True))

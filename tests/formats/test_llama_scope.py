"""Llama Scope: in which units its one threshold is, and what hyperparams.json may say that SAELens cannot express."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from convert_support import adopt_job, convert, refused, source_files
from safetensors.torch import load_file, save_file

from saesync import formats
from saesync.errors import ProofFailed, Refused
from saesync.executors.convert import adopt
from saesync.formats.base import Candidate
from saesync.inspection import inspect_local

CHOSEN = formats.get("llama_scope")
FINAL = "checkpoints/final.safetensors"
TRANSCODER = {"hook_name": "blocks.15.ln2.hook_normalized", "hook_name_out": "blocks.15.hook_mlp_out"}


def source(folder: Path, variant: str = "jumprelu", /, **config: Any) -> Path:
    """An example whose hyperparams.json says ``config`` beside or instead; None removes a key."""
    CHOSEN.example(folder, 3, variant)
    path = folder / "hyperparams.json"
    said = json.loads(path.read_text()) | config
    path.write_text(json.dumps({key: value for key, value in said.items() if value is not None}))
    return folder


def edited(folder: Path, drop: tuple[str, ...] = (), **tensors: torch.Tensor) -> Path:
    state = load_file(folder / FINAL) | tensors
    save_file({name: value.contiguous() for name, value in state.items() if name not in drop}, folder / FINAL)
    return folder


def written(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "sae_weights.safetensors")


def cfg_of(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "cfg.json").read_text())
    return found


def sniffed(folder: Path) -> Candidate:
    (found,) = inspect_local(folder).saes
    return next(candidate for candidate in found.candidates if candidate.format == "llama_scope")


def test_the_threshold_is_that_of_raw_inputs_and_unit_decoders(tmp_path: Path) -> None:
    """SAELens's loader scales the threshold by the input's factor and leaves decoder norms alone (SAELens#447)."""
    convert("llama_scope", source(tmp_path / "source"), tmp_path / "out", "float64")
    t, w = {name: value.double() for name, value in load_file(tmp_path / "source" / FINAL).items()}, written(tmp_path / "out")
    s = math.sqrt(12) / 2.5
    norms = t["decoder.weight"].norm(dim=0)
    assert (norms - 1).abs().max() > 0.3
    assert torch.allclose(w["threshold"], torch.full((40,), 0.11, dtype=torch.float64))
    assert torch.allclose(w["W_dec"].norm(dim=1), torch.ones(40, dtype=torch.float64))
    assert torch.allclose(w["W_enc"], t["encoder.weight"].T * norms)
    assert torch.allclose(w["b_enc"], t["encoder.bias"] / s * norms)
    assert torch.allclose(w["b_dec"], t["decoder.bias"] / s)
    assert cfg_of(tmp_path / "out")["normalize_activations"] == "none"


def test_saelens_own_reading_is_another_function_where_norms_are_not_1(tmp_path: Path) -> None:
    """The proof would not let it pass: this is what its loader makes of the file, with its factor folded in."""
    source(tmp_path / "source")
    convert("llama_scope", tmp_path / "source", tmp_path / "out", "float64")
    t, s = {name: value.double() for name, value in load_file(tmp_path / "source" / FINAL).items()}, math.sqrt(12) / 2.5
    theirs = {
        "W_enc": t["encoder.weight"].T * s,
        "W_dec": t["decoder.weight"].T / s,
        "b_enc": t["encoder.bias"],
        "b_dec": t["decoder.bias"] / s,
        "threshold": torch.full((40,), 0.11 * s, dtype=torch.float64),
    }
    save_file({name: value.contiguous() for name, value in theirs.items()}, tmp_path / "out" / "sae_weights.safetensors")
    with pytest.raises(ProofFailed, match="Not the same function"):
        adopt(adopt_job("llama_scope", tmp_path / "source", tmp_path / "out"))


def test_a_transcoder_has_two_scales(tmp_path: Path) -> None:
    proof = convert("llama_scope", source(tmp_path / "source", "transcoder"), tmp_path / "out", "float64", metadata=TRANSCODER)
    cfg = cfg_of(tmp_path / "out")
    assert (cfg["architecture"], cfg["d_out"]) == ("jumprelu_transcoder", 12)
    b_dec = load_file(tmp_path / "source" / FINAL)["decoder.bias"].double()
    assert torch.allclose(written(tmp_path / "out")["b_dec"], b_dec * 5.0 / math.sqrt(12))
    assert proof["max_reconstruction_diff"] < 1e-13


@pytest.mark.parametrize(
    ("variant", "architecture", "norm", "subtracts"),
    [
        ("jumprelu", "jumprelu", "none", False),
        ("topk", "topk", "none", False),
        ("thresholded topk", "jumprelu", "none", False),
        ("relu", "standard", "none", False),
        ("token-wise", "jumprelu", "constant_norm_rescale", False),
        ("subtracting", "jumprelu", "none", True),
    ],
)
def test_what_becomes_of_each(variant: str, architecture: str, norm: str, subtracts: bool, tmp_path: Path) -> None:
    proof = convert("llama_scope", source(tmp_path / "source", variant), tmp_path / "out")
    cfg = cfg_of(tmp_path / "out")
    found = (cfg["architecture"], cfg["normalize_activations"], cfg["apply_b_dec_to_input"])
    assert found == (architecture, norm, subtracts)
    assert proof["feature_scale"] == "raw"
    assert cfg["metadata"]["hook_name"] == "blocks.0.hook_resid_post"  # the manifest's, which goes before the file's
    weights = CHOSEN.read(source_files("llama_scope", tmp_path / "source"), CHOSEN.Options())
    assert weights.metadata["hook_name"] == "blocks.15.hook_resid_post"


@pytest.mark.parametrize(
    "config",
    [
        {"norm_activation": "inference"},
        {"sparsity_include_decoder_norm": False},
        {"sparsity_include_decoder_norm": False, "norm_activation": "inference"},
    ],
)
def test_other_settings_convert_exactly(config: dict[str, Any], tmp_path: Path) -> None:
    proof = convert("llama_scope", source(tmp_path / "source", **config), tmp_path / "out")
    assert proof["max_feature_diff"] < 1e-13


def test_without_a_decoder_bias(tmp_path: Path) -> None:
    folder = edited(source(tmp_path / "source", use_decoder_bias=False), ("decoder.bias",))
    convert("llama_scope", folder, tmp_path / "out")
    assert not written(tmp_path / "out")["b_dec"].any()


@pytest.mark.parametrize(
    ("variant", "config", "summary", "word"),
    [
        ("jumprelu", {"use_glu_encoder": True}, "Cannot be expressed in SAELens", "use_glu_encoder"),
        ("jumprelu", {"norm_activation": "batch-wise"}, "Cannot be expressed in SAELens", "batch-wise"),
        ("jumprelu", {"norm_activation": None}, "Damaged config", "norm_activation"),
        ("jumprelu", {"act_fn": "gelu"}, "Cannot be expressed in SAELens", "gelu"),
        ("jumprelu", {"jump_relu_threshold": -0.1}, "Cannot be expressed in SAELens", "-0.1"),
        (
            "jumprelu",
            {"dataset_average_activation_norm": None},
            "Activation norm is not set",
            "dataset_average_activation_norm.in",
        ),
        ("jumprelu", {"dataset_average_activation_norm": {"in": 3}}, "Activation norm is not set", "norm.out"),
        ("jumprelu", {"dataset_average_activation_norm": {"in": 0, "out": 1}}, "Activation norm is not set", "norm.in is 0"),
        ("jumprelu", {"d_model": 13}, "Config contradicts tensors", "d_model is 13"),
        ("jumprelu", {"d_sae": 41}, "Config contradicts tensors", "d_sae is 41"),
        ("jumprelu", {"hook_point_in": 3}, "Damaged config", "hook_point_in"),
        ("jumprelu", {"use_decoder_bias": False}, "Config contradicts tensors", "decoder.bias"),
        ("jumprelu", {"sparsity_include_decoder_norm": "no"}, "Damaged config", "sparsity_include_decoder_norm"),
        ("topk", {"top_k": 0}, "Missing k", "top_k"),
        ("transcoder", {"act_fn": "topk", "jump_relu_threshold": 0}, "Cannot be expressed in SAELens", "TopK transcoder"),
        ("transcoder", {"norm_activation": "token-wise"}, "Cannot be expressed in SAELens", "token-wise"),
        ("transcoder", {"apply_decoder_bias_to_pre_encoder": True}, "Cannot be expressed in SAELens", "pre_encoder"),
    ],
)
def test_configs_that_are_refused(variant: str, config: dict[str, Any], summary: str, word: str, tmp_path: Path) -> None:
    refused("llama_scope", source(tmp_path, variant, **config), summary, word)


@pytest.mark.parametrize(
    ("drop", "tensors", "summary", "word"),
    [
        ((), {"encoder_glu.weight": torch.zeros(40, 12)}, "Cannot be expressed in SAELens", "encoder_glu.weight"),
        ((), {"threshold": torch.zeros(40)}, "Unknown tensor", "threshold"),
        (("encoder.bias",), {}, "Missing tensor", "encoder.bias"),
        ((), {"decoder.weight": torch.zeros(40, 12)}, "Wrong shape", "transposed"),
        ((), {"decoder.weight": torch.zeros(12, 40)}, "Decoder row is zero", "feature 0"),
    ],
)
def test_files_that_are_refused(
    drop: tuple[str, ...], tensors: dict[str, torch.Tensor], summary: str, word: str, tmp_path: Path
) -> None:
    refused("llama_scope", edited(source(tmp_path), drop, **tensors), summary, word)


def test_files_are_found_from_the_folder_or_the_checkpoint() -> None:
    names = ["x/hyperparams.json", "x/checkpoints/final.safetensors", "x/checkpoints/pruned.safetensors", "x/lm_config.json"]
    expected = {"hyperparams.json": names[0], "checkpoints/final.safetensors": names[1]}
    assert dict(CHOSEN.files(names, "x")) == expected
    assert dict(CHOSEN.files(names, names[1])) == expected
    assert dict(CHOSEN.files(names, names[2])) == {"hyperparams.json": names[0], "checkpoints/pruned.safetensors": names[2]}
    with pytest.raises(Refused, match=r"hyperparams\.json"):
        CHOSEN.files(["x/checkpoints/final.safetensors"], "x")


def test_inspect_says_what_it_is(tmp_path: Path) -> None:
    folder = tmp_path / "Llama3_1-8B-Base-L15TC-8x"
    source(folder, "transcoder")
    candidate = sniffed(folder)
    assert (candidate.score, candidate.needs, candidate.refusal) == (1.0, (), None)
    assert candidate.facts["model"] == "meta-llama/Llama-3.1-8B"
    assert (candidate.facts["hook"], candidate.facts["hook_out"]) == tuple(TRANSCODER.values())
    source(folder, use_glu_encoder=True)
    assert "use_glu_encoder" in str(sniffed(folder).refusal)

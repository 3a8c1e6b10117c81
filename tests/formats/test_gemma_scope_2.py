"""Gemma Scope 2: what config.json says, skip connections and their orientation, and what spans several layers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from convert_support import convert, refused
from safetensors.torch import load_file, save_file

from saesync import formats
from saesync.formats._jumprelu import random_parameters
from saesync.formats.base import Candidate
from saesync.inspection import inspect_local

CHOSEN = formats.get("gemma_scope_2")
READ, WRITE = "model.layers.4.pre_feedforward_layernorm.output", "model.layers.4.post_feedforward_layernorm.output"
SAE = {"architecture": "jump_relu", "model_name": "gemma-v3-4b-it", "hf_hook_point_in": "model.layers.4.output"}
CODER = SAE | {"hf_hook_point_in": READ, "hf_hook_point_out": WRITE, "affine_connection": False}


def parameters(d_out: int = 12, skip: bool = False) -> dict[str, torch.Tensor]:
    t = {name.lower(): value for name, value in random_parameters(0, d_out).items()}
    if skip:
        t["affine_skip_connection"] = torch.randn(12, d_out, generator=torch.Generator().manual_seed(1)) / 4
    return t


def saved(
    folder: Path, tensors: dict[str, torch.Tensor], config: dict[str, Any] | None, name: str = "params.safetensors"
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / name)
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


def sniffed(folder: Path) -> Candidate:
    (found,) = inspect_local(folder).saes
    assert found.best is not None
    assert found.best.format == "gemma_scope_2"
    return found.best


def metadata_of(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "cfg.json").read_text())["metadata"]
    return found


@pytest.mark.parametrize(
    ("module", "hook", "architecture"),
    [
        ("output", "blocks.4.hook_resid_post", "jumprelu"),
        ("self_attn.o_proj.input", "blocks.4.attn.hook_z", "jumprelu"),
        ("post_feedforward_layernorm.output", "blocks.4.hook_mlp_out", "jumprelu"),
        ("some.new_module.output", None, "jumprelu"),
    ],
)
def test_hooks_are_those_of_config_json(module: str, hook: str | None, architecture: str, tmp_path: Path) -> None:
    """Folder names say less, and upstream took wrong hooks from them (SAELens#624)."""
    folder = saved(tmp_path, parameters(), SAE | {"hf_hook_point_in": f"model.layers.4.{module}"})
    candidate = sniffed(folder)
    assert (candidate.score, candidate.needs) == (1.0, ())
    assert candidate.facts["architecture"] == architecture
    assert candidate.facts.get("hook") == hook
    assert candidate.facts["model"] == "google/gemma-3-4b-it"


def test_a_transcoder_says_itself_what_it_predicts(tmp_path: Path) -> None:
    folder = saved(tmp_path / "source", parameters(9), CODER)
    facts = sniffed(folder).facts
    assert (facts["hook"], facts["hook_out"]) == ("blocks.4.mlp.hook_in", "blocks.4.hook_mlp_out")
    convert("gemma_scope_2", folder, tmp_path / "out", metadata={"hook_name": "blocks.4.mlp.hook_in"})
    metadata = metadata_of(tmp_path / "out")
    assert metadata["hook_name_out"] == "blocks.4.hook_mlp_out"
    assert metadata["hf_hook_name"] == READ.removesuffix(".output")
    assert metadata["hf_hook_name_out"] == WRITE.removesuffix(".output")
    refused("gemma_scope_2", folder, "Needs hook_out", "hook_out", metadata={"hook_name": "blocks.4.ln2.hook_normalized"})


def test_the_270m_base_model_has_no_suffix_on_the_hub(tmp_path: Path) -> None:
    assert (
        sniffed(saved(tmp_path / "a", parameters(), SAE | {"model_name": "gemma-v3-270m-pt"})).facts["model"]
        == "google/gemma-3-270m"
    )
    assert (
        sniffed(saved(tmp_path / "b", parameters(), SAE | {"model_name": "gemma-v3-270m-it"})).facts["model"].endswith("270m-it")
    )


@pytest.mark.parametrize("d_out", [9, 12])
def test_the_skip_connection_is_transposed(d_out: int, tmp_path: Path) -> None:
    """Square ones too, where no shape could tell."""
    tensors = parameters(d_out, skip=True)
    folder = saved(tmp_path / "source", tensors, CODER | {"affine_connection": True})
    assert sniffed(folder).facts["architecture"] == "jumprelu_skip_transcoder"
    convert("gemma_scope_2", folder, tmp_path / "out", metadata={"hook_name": "blocks.4.mlp.hook_in"})
    out = load_file(tmp_path / "out" / "sae_weights.safetensors")
    assert torch.equal(out["W_skip"], tensors["affine_skip_connection"].T)


def test_without_config_json_the_kind_must_be_declared(tmp_path: Path) -> None:
    folder = saved(tmp_path / "source", parameters(), None)
    assert sniffed(folder).needs == ("kind",)
    refused("gemma_scope_2", folder, "Needs a declared kind", "transcoder")
    refused("gemma_scope_2", folder, "Unknown kind", "clt", options={"kind": "clt"})
    convert("gemma_scope_2", folder, tmp_path / "out", options={"kind": "sae"})
    affine = saved(tmp_path / "affine", parameters(skip=True), None)
    refused("gemma_scope_2", affine, "Unexpected tensor", "affine_skip_connection", options={"kind": "sae"})


@pytest.mark.parametrize(
    ("config", "options", "summary", "word"),
    [
        (SAE, {"kind": "transcoder"}, "Kinds contradict", "says sae"),
        (SAE | {"architecture": "topk"}, {}, "Cannot be expressed in SAELens", "topk"),
        (SAE | {"hf_hook_point_in": ["a", "b"]}, {}, "Several hooks", "crosscoders"),
        (CODER | {"hf_hook_point_out": ["a", "b"]}, {}, "Several hooks", "crosscoders"),
        (CODER | {"affine_connection": True}, {}, "Config contradicts tensors", "do not hold"),
        ({}, {}, "Damaged config", "None"),
    ],
)
def test_configs_that_are_refused(
    config: dict[str, Any], options: dict[str, Any], summary: str, word: str, tmp_path: Path
) -> None:
    folder = saved(tmp_path, parameters(), config)
    refused("gemma_scope_2", folder, summary, word, options=options)
    if not options:
        assert word in str(sniffed(folder).refusal)


@pytest.mark.parametrize(
    ("change", "summary", "word"),
    [
        (lambda t: t | {"w_dec": torch.zeros(40, 3, 12)}, "Cannot be expressed in SAELens", "cross-layer"),
        (lambda t: t | {"w_enc": torch.zeros(3, 12, 40)}, "Cannot be expressed in SAELens", "crosscoder"),
        (lambda t: t | {"mystery": torch.zeros(3)}, "Unknown tensor", "mystery"),
        (lambda t: {k: v for k, v in t.items() if k != "w_enc"}, "Missing tensor", "W_enc"),
        (lambda t: {k: v for k, v in t.items() if k != "b_dec"}, "Missing tensor", "b_dec"),
        (lambda t: t | {"w_enc": t["w_enc"].T.contiguous()}, "Wrong shape", "transposed"),
        (lambda t: t | {"threshold": t["threshold"].fill_(torch.inf)}, "Not finite", "threshold"),
    ],
)
def test_weights_that_are_refused(change: Any, summary: str, word: str, tmp_path: Path) -> None:
    refused("gemma_scope_2", saved(tmp_path, change(parameters()), SAE), summary, word)


def test_a_cross_layer_transcoders_layer_sums_what_its_features_write_from_that_layer_on(tmp_path: Path) -> None:
    w_dec = torch.randn(40, 5, 12, generator=torch.Generator().manual_seed(5))
    saved(tmp_path / "source", parameters() | {"w_dec": w_dec}, SAE, "params_layer_3.safetensors")
    (found,) = inspect_local(tmp_path / "source" / "params_layer_3.safetensors").saes
    assert found.best is not None
    assert (found.best.format, found.best.refusal, found.best.facts["reconstruction"]) == ("gemma_scope_2_clt", None, "invalid")
    metadata = {"hook_name": "blocks.3.mlp.hook_in", "hook_name_out": "blocks.3.hook_mlp_out"}
    convert("gemma_scope_2_clt", tmp_path / "source", tmp_path / "out", metadata=metadata)
    written = load_file(tmp_path / "out" / "sae_weights.safetensors")["W_dec"]
    assert torch.allclose(written, w_dec[:, 3:].double().sum(dim=1).float(), rtol=0, atol=1e-6)
    assert json.loads((tmp_path / "out" / "cfg.json").read_text())["metadata"]["reconstruction"] == "invalid"


def test_a_layer_that_the_decoder_does_not_reach_is_refused(tmp_path: Path) -> None:
    saved(tmp_path, parameters() | {"w_dec": torch.zeros(40, 3, 12)}, SAE, "params_layer_3.safetensors")
    refused("gemma_scope_2_clt", tmp_path, "Wrong shape", "no layer 3")

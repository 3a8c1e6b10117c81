"""Llamascopium: thresholds and norms in its own units, its first generation, and everything that is no SAE."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from convert_support import convert, refused, source_files
from safetensors.torch import load_file, save_file

from saesync import formats
from saesync.errors import Refused
from saesync.formats._llamascopium_reference import NORM
from saesync.formats.base import Candidate
from saesync.inspection import inspect_local

CHOSEN = formats.get("llamascopium")
WEIGHTS = "sae_weights.safetensors"
HOOK = "blocks.5.hook_resid_post"
TRANSCODER = {"hook_name": "blocks.5.ln2.hook_normalized", "hook_name_out": "blocks.5.hook_mlp_out"}


def source(folder: Path, variant: str = "jumprelu", /, **config: Any) -> Path:
    """An example whose config.json says ``config`` beside or instead; None removes a key."""
    CHOSEN.example(folder, 3, variant)
    path = folder / "config.json"
    said = json.loads(path.read_text()) | config
    path.write_text(json.dumps({key: value for key, value in said.items() if value is not None}))
    return folder


def edited(folder: Path, drop: tuple[str, ...] = (), **tensors: torch.Tensor) -> Path:
    state = load_file(folder / WEIGHTS) | tensors
    save_file({name: value.contiguous() for name, value in state.items() if name not in drop}, folder / WEIGHTS)
    return folder


def stored(folder: Path) -> dict[str, torch.Tensor]:
    return {name: value.double() for name, value in load_file(folder / WEIGHTS).items()}


def cfg_of(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "cfg.json").read_text())
    return found


def sniffed(folder: Path) -> Candidate:
    (found,) = inspect_local(folder).saes
    return next(candidate for candidate in found.candidates if candidate.format == "llamascopium")


@pytest.mark.parametrize(("by_norm", "variant"), [(True, "jumprelu"), (False, "jumprelu"), (True, "r1-distill")])
def test_a_threshold_is_divided_by_the_norm_that_features_are_multiplied_by(by_norm: bool, variant: str, tmp_path: Path) -> None:
    """Their own to_saelens, and SAELens's loader of the R1-Distill release, take exp(log_jumprelu_threshold) as it is."""
    source(tmp_path / "source", variant, sparsity_include_decoder_norm=by_norm)
    proof = convert("llamascopium", tmp_path / "source", tmp_path / "out", "float64")
    t = stored(tmp_path / "source")
    log = next(value for name, value in t.items() if name.endswith("log_jumprelu_threshold"))
    norms = t["W_D"].norm(dim=1) if "W_D" in t else t["decoder.weight"].norm(dim=0)
    assert (norms - 1).abs().max() > 0.3
    expected = log.exp() / norms if by_norm else log.exp()
    assert torch.allclose(load_file(tmp_path / "out" / WEIGHTS)["threshold"], expected)
    assert proof["feature_scale"] == "raw"


def test_topk_by_decoder_norm_has_features_in_other_units(tmp_path: Path) -> None:
    proof = convert("llamascopium", source(tmp_path / "source", "topk"), tmp_path / "out")
    cfg = cfg_of(tmp_path / "out")
    assert (cfg["architecture"], cfg["k"], cfg["rescale_acts_by_decoder_norm"]) == ("topk", 6, True)
    assert proof["feature_scale"] == "decoder_norm"
    weights = CHOSEN.read(source_files("llamascopium", tmp_path / "source"), CHOSEN.Options())
    assert weights.feature_factors is not None
    s = math.sqrt(12) / 2.5
    assert torch.allclose(weights.feature_factors.rows(0, 48), stored(tmp_path / "source")["W_D"].norm(dim=1) / s)
    plain = convert(
        "llamascopium", source(tmp_path / "plain", "topk", sparsity_include_decoder_norm=False), tmp_path / "plain-out"
    )
    assert plain["feature_scale"] == "raw"
    assert cfg_of(tmp_path / "plain-out")["rescale_acts_by_decoder_norm"] is False


def test_scales_of_a_transcoder(tmp_path: Path) -> None:
    source(tmp_path / "source", "transcoder")
    convert("llamascopium", tmp_path / "source", tmp_path / "out", "float64", metadata=TRANSCODER)
    t, w = stored(tmp_path / "source"), load_file(tmp_path / "out" / WEIGHTS)
    assert torch.allclose(w["W_enc"], t["W_E"] * math.sqrt(12) / 2.5)
    assert torch.allclose(w["W_dec"], t["W_D"] * 5.0 / math.sqrt(12))
    assert torch.allclose(w["b_dec"], t["b_D"] * 5.0 / math.sqrt(12))
    assert cfg_of(tmp_path / "out")["architecture"] == "jumprelu_transcoder"


def test_in_inference_mode_stored_norms_count_no_more(tmp_path: Path) -> None:
    convert("llamascopium", source(tmp_path / "source", norm_activation="inference"), tmp_path / "out", "float64")
    assert torch.allclose(load_file(tmp_path / "out" / WEIGHTS)["W_enc"], stored(tmp_path / "source")["W_E"])
    refused("llamascopium", tmp_path / "source", "Norm is not needed", "inference", options={"activation_norm_in": 2.5})


def test_norms_that_no_file_holds_must_be_declared(tmp_path: Path) -> None:
    folder = source(tmp_path / "source", "unset norms")
    assert sniffed(folder).needs == ("activation_norm_in",)
    refused("llamascopium", folder, "Needs a declared norm", f"{NORM}{HOOK}")
    convert("llamascopium", folder, tmp_path / "out", options={"activation_norm_in": 3.0})


@pytest.mark.parametrize("value", [0.0, -1.0, 1e-40, 1e20, float("nan"), float("inf")])
def test_norms_of_uninitialised_memory_are_refused(value: float, tmp_path: Path) -> None:
    folder = edited(source(tmp_path), **{f"{NORM}{HOOK}": torch.tensor(value)})
    refused("llamascopium", folder, "Activation norm is not set", HOOK)


def test_a_declared_norm_must_not_contradict_the_file(tmp_path: Path) -> None:
    refused("llamascopium", source(tmp_path / "a"), "Norms contradict", "2.5", options={"activation_norm_in": 3.0})
    refused("llamascopium", source(tmp_path / "b"), "Norm is not needed", "same", options={"activation_norm_out": 3.0})


def test_a_batchtopk_needs_a_threshold(tmp_path: Path) -> None:
    folder = source(tmp_path / "source", "batchtopk")
    assert sniffed(folder).needs == ("threshold",)
    refused("llamascopium", folder, "Needs a declared threshold", "whole batch")
    for wrong in (0.0, -1.0, float("inf"), True):
        refused("llamascopium", folder, "Untrained threshold", "positive", options={"threshold": wrong})
    convert("llamascopium", folder, tmp_path / "out", "float64", options={"threshold": 0.2})
    norms = stored(folder)["W_D"].norm(dim=1)
    assert torch.allclose(load_file(tmp_path / "out" / WEIGHTS)["threshold"], 0.2 / norms)
    assert cfg_of(tmp_path / "out")["metadata"]["training_architecture"] == "batchtopk"
    refused("llamascopium", source(tmp_path / "other"), "Threshold is not needed", "jumprelu", options={"threshold": 0.2})


def test_the_first_generation_may_subtract_the_decoders_bias(tmp_path: Path) -> None:
    folder = source(tmp_path / "source", "r1-distill", apply_decoder_bias_to_pre_encoder=True)
    proof = convert("llamascopium", folder, tmp_path / "out")
    assert cfg_of(tmp_path / "out")["apply_b_dec_to_input"] is True
    assert proof["max_reconstruction_diff"] < 1e-13


def test_without_a_decoder_bias(tmp_path: Path) -> None:
    folder = edited(source(tmp_path / "source", use_decoder_bias=False), ("b_D",))
    convert("llamascopium", folder, tmp_path / "out")
    assert not load_file(tmp_path / "out" / WEIGHTS)["b_dec"].any()


@pytest.mark.parametrize(
    ("variant", "config", "summary", "word"),
    [
        *[
            ("relu", {"sae_type": kind}, "Cannot be expressed in SAELens", kind)
            for kind in ("crosscoder", "clt", "lorsa", "molt")
        ],
        ("relu", {"use_glu_encoder": True}, "Cannot be expressed in SAELens", "use_glu_encoder"),
        ("relu", {"act_fn": "batchlayertopk"}, "Cannot be expressed in SAELens", "batchlayertopk"),
        ("relu", {"norm_activation": "batch-wise"}, "Cannot be expressed in SAELens", "batch-wise"),
        ("relu", {"norm_activation": "other"}, "Cannot be expressed in SAELens", "other"),
        ("relu", {"act_fn": "jumprelu"}, "Missing tensor", "log_jumprelu_threshold"),
        ("jumprelu", {"act_fn": "relu"}, "Unknown tensor", "log_jumprelu_threshold"),
        ("transcoder", {"norm_activation": "token-wise"}, "Cannot be expressed in SAELens", "token-wise"),
        ("r1-distill", {"act_fn": "topk"}, "Unknown tensor", "log_jumprelu_threshold"),
        ("relu", {"d_model": 13}, "Config contradicts tensors", "d_model gives 13"),
        ("relu", {"expansion_factor": 5}, "Config contradicts tensors", "expansion_factor gives 60"),
        ("topk", {"top_k": 49}, "Missing k", "from 1 to 48"),
        ("relu", {"hook_point_in": None, "hook_point_out": None}, "Damaged config", "hook_point_in"),
    ],
)
def test_configs_that_are_refused(variant: str, config: dict[str, Any], summary: str, word: str, tmp_path: Path) -> None:
    refused("llamascopium", source(tmp_path, variant, **config), summary, word)


def test_topk_of_the_first_generation_and_of_a_transcoder_are_refused(tmp_path: Path) -> None:
    folder = edited(source(tmp_path / "a", "r1-distill", act_fn="topk"), ("log_jumprelu_threshold",))
    refused("llamascopium", folder, "Cannot be expressed in SAELens", "fewer than top_k")
    folder = edited(source(tmp_path / "b", "transcoder", act_fn="topk"), ("activation_function.log_jumprelu_threshold",))
    refused("llamascopium", folder, "Cannot be expressed in SAELens", "TopK transcoder")


@pytest.mark.parametrize(
    ("drop", "tensors", "summary", "word"),
    [
        ((), {"W_E_glu": torch.zeros(12, 48)}, "Cannot be expressed in SAELens", "W_E_glu"),
        ((), {"W_D": torch.zeros(48, 12)}, "Decoder row is zero", "feature 0"),
        ((), {"W_D": torch.zeros(12, 48)}, "Wrong shape", "transposed"),
        ((), {"other": torch.zeros(1)}, "Unknown tensor", "other"),
        (("b_E",), {}, "Missing tensor", "b_E"),
    ],
)
def test_files_that_are_refused(
    drop: tuple[str, ...], tensors: dict[str, torch.Tensor], summary: str, word: str, tmp_path: Path
) -> None:
    refused("llamascopium", edited(source(tmp_path), drop, **tensors), summary, word)


def test_inspect_names_a_crosscoder_by_its_type(tmp_path: Path) -> None:
    assert "crosscoder" in str(sniffed(source(tmp_path, sae_type="crosscoder")).refusal)
    candidate = sniffed(source(tmp_path, "transcoder"))
    assert (candidate.score, candidate.needs, candidate.refusal) == (1.0, (), None)
    assert (candidate.facts["hook"], candidate.facts["hook_out"]) == tuple(TRANSCODER.values())


def test_weights_alone_are_refused(tmp_path: Path) -> None:
    (source(tmp_path) / "config.json").unlink()
    with pytest.raises(Refused, match=r"config\.json beside it"):
        source_files("llamascopium", tmp_path)

"""bartbussmann/BatchTopK: a bias that is stored and never used, thresholds that are logarithms, missing or learned."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from convert_support import convert, refused, source_files
from safetensors.torch import load_file

from saesync import formats
from saesync.errors import Refused
from saesync.formats.base import Candidate
from saesync.inspection import inspect_local

CHOSEN = formats.get("batchtopk")


def source(folder: Path, variant: str = "topk", /, **config: Any) -> Path:
    """An example whose config.json says ``config`` beside or instead; None removes a key."""
    CHOSEN.example(folder, 3, variant)
    path = folder / "config.json"
    said = json.loads(path.read_text()) | config
    path.write_text(json.dumps({key: value for key, value in said.items() if value is not None}))
    return folder


def edited(folder: Path, drop: tuple[str, ...] = (), **changes: Any) -> Path:
    state = torch.load(folder / "sae.pt", weights_only=True) | changes
    torch.save({key: value for key, value in state.items() if key not in drop}, folder / "sae.pt")
    return folder


def written(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "sae_weights.safetensors")


def sniffed(folder: Path) -> Candidate:
    (found,) = inspect_local(folder).saes
    return next(candidate for candidate in found.candidates if candidate.format == "batchtopk")


@pytest.mark.parametrize(
    ("variant", "architecture", "subtracts", "norm"),
    [
        ("vanilla", "standard", True, "layer_norm"),
        ("topk", "topk", True, "layer_norm"),
        ("batchtopk", "jumprelu", True, "layer_norm"),
        ("globaltopk", "jumprelu", True, "layer_norm"),
        ("jumprelu", "jumprelu", False, "layer_norm"),
        ("unnormalised", "standard", True, "none"),
    ],
)
def test_what_becomes_of_each(variant: str, architecture: str, subtracts: bool, norm: str, tmp_path: Path) -> None:
    options = {"threshold": 0.3} if variant == "batchtopk" else {}
    proof = convert("batchtopk", source(tmp_path / "source", variant), tmp_path / "out", options=options)
    cfg = json.loads((tmp_path / "out" / "cfg.json").read_text())
    assert (cfg["architecture"], cfg["apply_b_dec_to_input"], cfg["normalize_activations"]) == (architecture, subtracts, norm)
    assert cfg.get("k") == (6 if variant == "topk" else None)
    assert proof["max_reconstruction_diff"] < 1e-13
    candidate = sniffed(tmp_path / "source")
    assert (candidate.score, candidate.refusal) == (1.0, None)
    assert candidate.needs == (("threshold",) if variant == "batchtopk" else ())
    assert candidate.facts["hook"] == "blocks.8.hook_resid_pre"


def test_the_bias_that_topk_never_uses_is_not_used(tmp_path: Path) -> None:
    convert("batchtopk", source(tmp_path / "a"), tmp_path / "a-out")
    assert torch.load(tmp_path / "a" / "sae.pt", weights_only=True)["b_enc"].any()
    assert not written(tmp_path / "a-out")["b_enc"].any()
    convert("batchtopk", source(tmp_path / "b", "vanilla"), tmp_path / "b-out")
    assert written(tmp_path / "b-out")["b_enc"].any()


def test_thresholds(tmp_path: Path) -> None:
    convert("batchtopk", source(tmp_path / "a", "jumprelu"), tmp_path / "a-out")
    log = torch.load(tmp_path / "a" / "sae.pt", weights_only=True)["jumprelu.log_threshold"]
    assert torch.allclose(written(tmp_path / "a-out")["threshold"], log.exp())
    convert("batchtopk", source(tmp_path / "b", "globaltopk"), tmp_path / "b-out")
    assert written(tmp_path / "b-out")["threshold"].unique().tolist() == pytest.approx([0.3])


def test_a_batchtopk_without_a_threshold_is_not_a_topk(tmp_path: Path) -> None:
    folder = source(tmp_path / "source", "batchtopk")
    refused("batchtopk", folder, "Needs a declared threshold", "whole batch", "Calibrate")
    for wrong in (0.0, -1.0, float("nan"), True):
        refused("batchtopk", folder, "Untrained threshold", "positive", options={"threshold": wrong})
    convert("batchtopk", folder, tmp_path / "out", options={"threshold": 0.7})
    metadata = json.loads((tmp_path / "out" / "cfg.json").read_text())["metadata"]
    assert metadata["training_architecture"] == "batchtopk"
    refused("batchtopk", source(tmp_path / "other"), "Threshold is not needed", "topk", options={"threshold": 0.7})


def test_a_setting_that_is_absent_is_off_as_in_their_code(tmp_path: Path) -> None:
    convert("batchtopk", source(tmp_path / "source", input_unit_norm=None), tmp_path / "out")
    assert json.loads((tmp_path / "out" / "cfg.json").read_text())["normalize_activations"] == "none"


def test_what_the_config_says_is_kept(tmp_path: Path) -> None:
    weights = CHOSEN.read(source_files("batchtopk", source(tmp_path)), CHOSEN.Options())
    assert weights.metadata == {
        "model_name": "gpt2-small",
        "hook_name": "blocks.8.hook_resid_pre",
        "context_size": 128,
        "dataset_path": "Skylion007/openwebtext",
    }


@pytest.mark.parametrize(
    ("variant", "config", "summary", "word"),
    [
        ("topk", {"sae_type": "maxpool"}, "Cannot be expressed in SAELens", "maxpool"),
        ("topk", {"tied_weights": True}, "Unknown version", "tied_weights"),
        ("topk", {"activation": "gelu"}, "Unknown version", "activation"),
        ("topk", {"input_unit_norm": "True"}, "Damaged config", "input_unit_norm"),
        ("topk", {"act_size": 13}, "Config contradicts tensors", "act_size is 13"),
        ("topk", {"dict_size": 41}, "Config contradicts tensors", "dict_size is 41"),
        ("topk", {"top_k": 0}, "Missing k", "top_k"),
        ("topk", {"top_k": None}, "Missing k", "top_k"),
        ("topk", {"sae_type": "jumprelu"}, "Missing tensor", "jumprelu.log_threshold"),
        ("jumprelu", {"sae_type": "topk"}, "Unknown tensor", "jumprelu.log_threshold"),
        ("vanilla", {"sae_type": "globaltopk"}, "Missing tensor", "threshold"),
    ],
)
def test_configs_that_are_refused(variant: str, config: dict[str, Any], summary: str, word: str, tmp_path: Path) -> None:
    folder = source(tmp_path, variant, **config)
    refused("batchtopk", folder, summary, word)


@pytest.mark.parametrize(
    ("variant", "drop", "changes", "summary", "word"),
    [
        ("topk", ("b_enc",), {}, "Missing tensor", "b_enc"),
        ("topk", (), {"other": torch.zeros(2)}, "Unknown tensor", "other"),
        ("topk", (), {"W_enc": torch.zeros(40, 12)}, "Wrong shape", "transposed"),
        ("topk", (), {"step": 3}, "Unknown entry", "step"),
        ("topk", (), {"model": torch.nn.Linear(2, 2)}, "Unsafe pickle", "torch.nn.modules.linear.Linear"),
        ("globaltopk", (), {"threshold": torch.tensor([])}, "Untrained threshold", "empty"),
        ("globaltopk", (), {"threshold": torch.tensor(0.0)}, "Untrained threshold", "0"),
    ],
)
def test_files_that_are_refused(
    variant: str, drop: tuple[str, ...], changes: dict[str, Any], summary: str, word: str, tmp_path: Path
) -> None:
    refused("batchtopk", edited(source(tmp_path, variant), drop, **changes), summary, word)


def test_weights_alone_are_refused(tmp_path: Path) -> None:
    (source(tmp_path) / "config.json").unlink()
    with pytest.raises(Refused, match=r"config\.json beside it"):
        source_files("batchtopk", tmp_path)

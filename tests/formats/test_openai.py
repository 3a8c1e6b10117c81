"""OpenAI's sparse_autoencoder: an activation that the checkpoint names, and a normalisation that follows from it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from convert_support import convert, refused, source_files
from safetensors.torch import load_file

from saesync import formats
from saesync.formats.base import Candidate
from saesync.formats.openai import _place
from saesync.inspection import inspect_local

CHOSEN = formats.get("openai")
TOPK = {"activation": "TopK", "activation_state_dict": {"k": 6, "postact_fn": "ReLU"}}


def source(folder: Path, variant: str = "topk", drop: tuple[str, ...] = (), **changes: Any) -> Path:
    CHOSEN.example(folder, 3, variant)
    state = torch.load(folder / "3.pt", weights_only=True) | changes
    torch.save({key: value for key, value in state.items() if key not in drop}, folder / "3.pt")
    return folder


def sniffed(folder: Path) -> Candidate:
    (found,) = inspect_local(folder).saes
    return next(candidate for candidate in found.candidates if candidate.format == "openai")


@pytest.mark.parametrize(
    ("variant", "architecture", "norm", "k"),
    [
        ("topk", "topk", "layer_norm", 6),
        ("relu", "standard", "none", None),
        ("undeclared", "standard", "none", None),
        ("tied", "standard", "none", None),
    ],
)
def test_only_topk_is_normalised(variant: str, architecture: str, norm: str, k: int | None, tmp_path: Path) -> None:
    proof = convert("openai", source(tmp_path / "source", variant), tmp_path / "out")
    cfg = json.loads((tmp_path / "out" / "cfg.json").read_text())
    assert (cfg["architecture"], cfg["normalize_activations"], cfg.get("k")) == (architecture, norm, k)
    assert cfg["apply_b_dec_to_input"] is True
    assert proof["max_reconstruction_diff"] < 1e-13
    candidate = sniffed(tmp_path / "source")
    assert (candidate.score, candidate.refusal, candidate.facts.get("k")) == (1.0, None, k)


def test_the_authors_class_computes_the_same(tmp_path: Path) -> None:
    """Written out with torch's own LayerNorm-like pieces, in the order of their ``encode`` and ``decode``."""
    folder = source(tmp_path)
    t = torch.load(folder / "3.pt", weights_only=True)
    x = torch.randn(7, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mu = x.mean(-1, keepdim=True)
    std = (x - mu).std(-1, keepdim=True)
    z = (x - mu) / (std + 1e-5) - t["pre_bias"]
    pre = torch.nn.functional.linear(z, t["encoder.weight"].double(), t["latent_bias"].double())
    top = pre.topk(6)
    expected = torch.zeros_like(pre).scatter_(-1, top.indices, top.values.relu())
    output = torch.nn.functional.linear(expected, t["decoder.weight"].double()) + t["pre_bias"]
    features, found = CHOSEN.reference(source_files("openai", folder), CHOSEN.Options(), x)
    assert torch.allclose(features, expected, atol=1e-13)
    assert torch.allclose(found, output * std + mu, atol=1e-13)


def test_the_model_is_loaded_as_the_authors_do(tmp_path: Path) -> None:
    weights = CHOSEN.read(source_files("openai", source(tmp_path)), CHOSEN.Options())
    assert weights.metadata["model_from_pretrained_kwargs"] == {"center_writing_weights": False}


def test_a_tied_decoder_is_the_encoder(tmp_path: Path) -> None:
    for drop in ((), ("decoder.linear.weight",)):
        folder = source(tmp_path / f"{len(drop)}", "tied", drop)
        convert("openai", folder, tmp_path / f"{len(drop)}-out")
        w = load_file(tmp_path / f"{len(drop)}-out" / "sae_weights.safetensors")
        assert torch.equal(w["W_dec"], w["W_enc"].T)
    folder = source(tmp_path / "other", "tied", **{"decoder.linear.weight": torch.zeros(40, 12)})
    refused("openai", folder, "Not tied", "decoder.linear.weight")


@pytest.mark.parametrize(
    ("drop", "changes", "summary", "word"),
    [
        ((), {"activation": "Identity"}, "Cannot be expressed in SAELens", "Identity"),
        ((), {"activation": "GELU"}, "Cannot be expressed in SAELens", "GELU"),
        ((), TOPK | {"activation_state_dict": {"k": 6, "postact_fn": "Identity"}}, "Cannot be expressed in SAELens", "negative"),
        ((), TOPK | {"activation_state_dict": {"postact_fn": "ReLU"}}, "Missing k", "activation_state_dict.k"),
        ((), TOPK | {"activation_state_dict": {"k": 41, "postact_fn": "ReLU"}}, "Missing k", "from 1 to 40"),
        ((), {"step": 3}, "Unknown entry", "step"),
        ((), {"mystery": torch.zeros(40)}, "Unknown tensor", "mystery"),
        ((), {"stats_last_nonzero": torch.zeros(3)}, "Wrong shape", "stats_last_nonzero"),
        ((), {"encoder.weight": torch.zeros(12, 40)}, "Wrong shape", "transposed"),
        (("latent_bias",), {}, "Missing tensor", "latent_bias"),
        ((), {"model": torch.nn.Linear(2, 2)}, "Unsafe pickle", "torch.nn.modules.linear.Linear"),
    ],
)
def test_files_that_are_refused(drop: tuple[str, ...], changes: dict[str, Any], summary: str, word: str, tmp_path: Path) -> None:
    folder = source(tmp_path, "topk", drop, **changes)
    refused("openai", folder, summary, word)


def test_inspect_says_why_from_headers_alone(tmp_path: Path) -> None:
    assert "Identity" in str(sniffed(source(tmp_path, activation="Identity")).refusal)


@pytest.mark.parametrize(
    ("place", "facts"),
    [
        ("gpt2-small/resid_post_mlp_v5_32k/autoencoders/8.pt", {"hook": "blocks.8.hook_resid_post", "model": "gpt2"}),
        ("x/gpt2-small/resid_delta_mlp_v4/autoencoders/0.pt", {"hook": "blocks.0.hook_mlp_out", "model": "gpt2"}),
        ("gpt2-small/mlp_post_act/autoencoders/3.pt", {"hook": "blocks.3.mlp.hook_post", "model": "gpt2"}),
        ("copy/resid_post_attn_v5_128k/autoencoders/11.pt", {"hook": "blocks.11.hook_resid_mid"}),
        ("copy/resid_delta_attn_v5_128k/autoencoders/11.pt", {"hook": "blocks.11.hook_attn_out"}),
        ("copy/something_else/autoencoders/11.pt", {}),
        ("copy/8.pt", {}),
    ],
)
def test_the_authors_folders_are_understood(place: str, facts: dict[str, str]) -> None:
    assert _place(place) == facts

"""Formats of few files: InterpretabilityWorkbench, Goodfire's TopK and tied ones, e2e_sae, Matryoshka, attention SAEs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from convert_support import convert, refused
from safetensors.torch import load_file, save_file

from saesync import formats
from saesync.formats.base import Candidate
from saesync.inspection import inspect_local


def random(seed: int = 0, **shapes: tuple[int, ...]) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name.replace("__", "."): torch.randn(shape, generator=generator) / 4 for name, shape in shapes.items()}


def saved(folder: Path, name: str, tensors: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    if name.endswith(".safetensors"):
        save_file(tensors, folder / name)
    else:
        torch.save(tensors, folder / name)
    return folder


def best_of(folder: Path) -> Candidate:
    best = inspect_local(folder).saes[0].best
    assert best is not None
    return best


def written(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "sae_weights.safetensors")


# -------------------------------------------------------------------------------------- InterpretabilityWorkbench

UNTIED: dict[str, tuple[int, ...]] = {
    "encoder__weight": (40, 12), "encoder__bias": (40,), "decoder__weight": (12, 40), "decoder__bias": (12,),
    "decoder_bias": (12,),
}  # fmt: skip
SAID: dict[str, Any] = {"input_dim": 12, "latent_dim": 40, "tied_weights": False, "activation_fn": "relu"}


def workbench(folder: Path, said: dict[str, Any] | None = SAID, **shapes: tuple[int, ...]) -> Path:
    saved(folder, "sae_layer_3.safetensors", random(**(shapes or UNTIED)))
    if said is not None:
        (folder / "sae_layer_3_metadata.json").write_text(json.dumps(said))
    return folder


def test_the_workbenchs_two_biases_are_added(tmp_path: Path) -> None:
    workbench(tmp_path / "source")
    convert("interpretability_workbench", tmp_path / "source", tmp_path / "out")
    t = load_file(tmp_path / "source" / "sae_layer_3.safetensors")
    assert torch.equal(written(tmp_path / "out")["b_dec"], t["decoder.bias"] + t["decoder_bias"])


@pytest.mark.parametrize(
    ("said", "summary", "words"),
    [
        (SAID | {"tied_weights": True}, "Config contradicts tensors", "tied_weights is True"),
        (SAID | {"activation_fn": "gelu"}, "Cannot be expressed in SAELens", "gelu"),
        (SAID | {"latent_dim": 41}, "Config contradicts tensors", "latent_dim is 41"),
        ({}, "Needs a declared activation", "gelu"),
        (None, "Needs a declared activation", "gelu"),
    ],
)
def test_workbench_files_that_are_refused(said: dict[str, Any] | None, summary: str, words: str, tmp_path: Path) -> None:
    """A well-known converter writes ``tied_weights: true`` over untied weights."""
    workbench(tmp_path, said)
    refused("interpretability_workbench", tmp_path, summary, words)


def test_a_rename_free_conversion_is_known_for_what_it_is(tmp_path: Path) -> None:
    """Goodfire's names in the workbench's file: its own class cannot load that, and it is a Goodfire SAE."""
    shapes = {"encoder_linear__weight": (40, 12), "encoder_linear__bias": (40,), "decoder_linear__weight": (12, 40)}
    workbench(tmp_path, SAID | {"tied_weights": True}, **shapes, decoder_linear__bias=(12,))
    assert best_of(tmp_path).format == "goodfire"


# ------------------------------------------------------------------------------------------------------- Goodfire

TOPK: dict[str, tuple[int, ...]] = {
    "encoder_linear__weight": (40, 12),
    "encoder_linear__bias": (40,),
    "decoder__weight": (12, 40),
}


def test_goodfires_topk_without_a_decoder_bias(tmp_path: Path) -> None:
    saved(tmp_path / "source", "topk_sae_l15_exp16_k14.pt", random(**TOPK))
    found = best_of(tmp_path / "source")
    assert (found.format, found.options, found.facts["hook"]) == ("goodfire", {"k": 14}, "blocks.15.hook_resid_post")
    refused("goodfire", tmp_path / "source", "Missing k", "its name may")
    convert("goodfire", tmp_path / "source", tmp_path / "out", options={"k": 14})
    cfg = json.loads((tmp_path / "out" / "cfg.json").read_text())
    assert (cfg["architecture"], cfg["k"], cfg["apply_b_dec_to_input"]) == ("topk", 14, False)
    assert torch.equal(written(tmp_path / "out")["b_dec"], torch.zeros(12))


def test_goodfires_topk_under_another_name_needs_k(tmp_path: Path) -> None:
    saved(tmp_path, "sae.pt", random(**TOPK))
    assert best_of(tmp_path).needs == ("k",)
    refused("goodfire", tmp_path, "Missing k", "from 1 to 40", options={"k": 41})


def test_k_of_a_relu_sae_is_refused(tmp_path: Path) -> None:
    formats.get("goodfire").example(tmp_path, 0)
    refused("goodfire", tmp_path, "Option does not fit", "ReLU", options={"k": 3})


@pytest.mark.parametrize("threshold", [-0.1, float("nan"), float("inf"), True])
def test_a_tied_sae_needs_a_threshold_that_is_one(threshold: float, tmp_path: Path) -> None:
    saved(tmp_path, "sae.pt", random(_orig_mod__W=(12, 40), _orig_mod__b_enc=(40,), _orig_mod__b_dec=(12,)))
    found = best_of(tmp_path)
    assert (found.format, found.needs) == ("goodfire_tied", ("threshold",))
    refused("goodfire_tied", tmp_path, "Threshold is no threshold", "from 0 on", options={"threshold": threshold})


def test_a_tied_sae_decodes_with_its_encoder(tmp_path: Path) -> None:
    formats.get("goodfire_tied").example(tmp_path / "source", 0)
    convert("goodfire_tied", tmp_path / "source", tmp_path / "out", options={"threshold": 0.3})
    t = written(tmp_path / "out")
    assert torch.equal(t["W_dec"], t["W_enc"].T)
    assert bool((t["threshold"] == 0.3).all()) or bool((t["threshold"] - 0.3).abs().max() < 1e-7)


# -------------------------------------------------------------------------------------------------------- e2e_sae

SITE = "saes__blocks-6-hook_resid_pre__"
E2E: dict[str, tuple[int, ...]] = {
    f"{SITE}encoder__0__weight": (40, 12), f"{SITE}encoder__0__bias": (40,), f"{SITE}decoder__weight": (12, 40),
    f"{SITE}decoder__bias": (12,),
}  # fmt: skip


def test_e2e_decoders_are_normalised_as_at_run_time(tmp_path: Path) -> None:
    saved(tmp_path / "source", "samples_1.pt", random(**E2E))
    convert("e2e_sae", tmp_path / "source", tmp_path / "out")
    norms = written(tmp_path / "out")["W_dec"].norm(dim=1)
    assert torch.allclose(norms, torch.ones(40), atol=1e-6)
    assert best_of(tmp_path / "source").facts["hook"] == "blocks.6.hook_resid_pre"


def test_e2e_sites_are_named_and_nothing_else_is_there(tmp_path: Path) -> None:
    formats.get("e2e_sae").example(tmp_path / "two", 0, "two")  # type: ignore[call-arg]
    refused("e2e_sae", tmp_path / "two", "Needs a declared site", "blocks-2-hook_resid_pre, blocks-6-hook_resid_pre")
    refused("e2e_sae", tmp_path / "two", "Needs a declared site", "blocks-6", options={"site": "blocks-9-hook_resid_pre"})
    saved(tmp_path / "more", "samples_1.pt", random(**E2E, tlmodel__embed=(3, 3)))
    refused("e2e_sae", tmp_path / "more", "Unknown tensor", "tlmodel.embed")


# ------------------------------------------------------------------------------------- Matryoshka, attention SAEs

PLAIN: dict[str, tuple[int, ...]] = {"W_enc": (12, 40), "b_enc": (40,), "W_dec": (40, 12), "b_dec": (12,)}


@pytest.mark.parametrize("average", [0.0, -1.0, float("nan"), float("inf")])
def test_an_untrained_normalizer_is_refused(average: float, tmp_path: Path) -> None:
    saved(tmp_path, "sae.pt", random(**PLAIN) | {"normalizer.running_avg": torch.tensor(average)})
    refused("matryoshka", tmp_path, "Untrained normalizer", "running_avg")


def test_a_dead_decoder_row_stays_dead(tmp_path: Path) -> None:
    t = random(**PLAIN)
    t["W_dec"][7] = 0
    saved(tmp_path / "source", "sae.pt", t | {"normalizer.running_avg": torch.tensor(5.0)})
    convert("matryoshka", tmp_path / "source", tmp_path / "out")
    assert torch.equal(written(tmp_path / "out")["W_dec"][7], torch.zeros(12))


@pytest.mark.parametrize(
    ("cfg", "summary", "words"),
    [
        ({"act_size": 13}, "Config contradicts tensors", "act_size is 13"),
        ({"act_name": ""}, "Damaged config", "act_name"),
    ],
)
def test_attention_saes_whose_cfg_does_not_fit(cfg: dict[str, Any], summary: str, words: str, tmp_path: Path) -> None:
    formats.get("connor_rob_hook_z").example(tmp_path, 0)
    (path,) = tmp_path.glob("*_cfg.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), **cfg}))
    refused("connor_rob_hook_z", tmp_path, summary, words)


def test_attention_saes_join_heads_only_at_hook_z(tmp_path: Path) -> None:
    formats.get("connor_rob_hook_z").example(tmp_path / "source", 0)
    (path,) = (tmp_path / "source").glob("*_cfg.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), "act_name": "blocks.0.mlp.hook_post"}))
    convert("connor_rob_hook_z", tmp_path / "source", tmp_path / "out")
    assert json.loads((tmp_path / "out" / "cfg.json").read_text())["reshape_activations"] == "none"


# ----------------------------------------------------------------------------------------------------- crosscoders


@pytest.mark.parametrize("scales", [(), (1.0,), (1.0, 0.0), (1.0, float("nan")), (1.0, True), (1.0, 1.0, 1.0)])
def test_a_crosscoder_needs_one_scale_for_each_model(scales: tuple[float, ...], tmp_path: Path) -> None:
    formats.get("crosscoder").example(tmp_path, 0)
    found = best_of(tmp_path)
    assert (found.format, found.needs, found.facts["models"]) == ("crosscoder", ("input_scales",), 2)
    refused("crosscoder", tmp_path, "Scales do not fit", "2 positive numbers", options={"input_scales": scales})


def test_a_crosscoder_says_that_no_hook_yields_its_input(tmp_path: Path) -> None:
    formats.get("crosscoder").example(tmp_path / "source", 0)
    convert("crosscoder", tmp_path / "source", tmp_path / "out", options={"input_scales": [1.0, 1.0]})
    assert json.loads((tmp_path / "out" / "cfg.json").read_text())["metadata"]["unhookable"] is True
    t = torch.load(tmp_path / "source" / "cc_weights.pt")
    assert torch.equal(written(tmp_path / "out")["W_enc"], t["W_enc"].reshape(12, 40))
    assert torch.equal(written(tmp_path / "out")["W_dec"], t["W_dec"].reshape(40, 12))


def test_a_strided_crosscoder_is_refused(tmp_path: Path) -> None:
    t = random(W_enc=(2, 6, 40), b_enc=(40,), W_dec=(2, 40, 6), b_dec=(2, 6))
    saved(tmp_path, "cc_weights.pt", t | {"W_dec": t["W_dec"].transpose(0, 1)})
    refused("crosscoder", tmp_path, "Cannot be read in parts", "W_dec", options={"input_scales": [1.0, 1.0]})

"""circuit-tracer's transcoders: the decoder's two orientations, config.yaml, and what SAELens has no transcoder for."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from convert_support import HOOK_OUT, METADATA, convert, refused
from safetensors.torch import load_file, save_file

from saesync.formats.base import Candidate
from saesync.formats.circuit_tracer import THRESHOLD, CircuitTracer
from saesync.inspection import inspect_local
from saesync.inspection.data import to_json
from saesync.inspection.sets import incomplete_sets
from saesync.inspection.text import describe

CHOSEN = CircuitTracer()
CODER = {**METADATA, "hook_name_out": HOOK_OUT}
LINES = "model_name: google/gemma-2-2b\nmodel_kind: transcoder_set\n"


def state(d_out: int = 9, june: bool = False, **more: torch.Tensor) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"W_enc": (40, 12), "b_enc": (40,), "W_dec": (d_out, 40) if june else (40, d_out), "b_dec": (d_out,)}
    return {name: torch.randn(shape, generator=generator) / 4 for name, shape in shapes.items()} | more


def saved(folder: Path, tensors: dict[str, torch.Tensor], config: str | None = LINES) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "layer_3.safetensors")
    if config is not None:
        (folder / "config.yaml").write_text(config)
    return folder


def best_of(folder: Path) -> Candidate:
    best = inspect_local(folder).saes[0].best
    assert best is not None
    return best


def test_both_orientations_of_the_decoder_are_one_transcoder(tmp_path: Path) -> None:
    today = state()
    saved(tmp_path / "today", today)
    saved(tmp_path / "june", today | {"W_dec": today["W_dec"].T.contiguous()})
    for name in ("today", "june"):
        convert("circuit_tracer", tmp_path / name, tmp_path / f"{name}-out", metadata=CODER)
    one, two = (load_file(tmp_path / f"{name}-out" / "sae_weights.safetensors") for name in ("today", "june"))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert torch.equal(one["W_dec"], today["W_dec"])
    assert torch.equal(one["W_enc"], today["W_enc"].T)


def test_a_square_decoder_is_ambiguous(tmp_path: Path) -> None:
    saved(tmp_path, state(40))
    refused("circuit_tracer", tmp_path, "Ambiguous orientation", "d_sae and d_out are both 40", metadata=CODER)


@pytest.mark.parametrize(
    ("more", "config", "summary", "words"),
    [
        ({"k": torch.tensor(64.0)}, LINES, "Cannot be expressed in SAELens", "TopK transcoder"),
        ({}, LINES + "k: 64\n", "Cannot be expressed in SAELens", "TopK transcoder"),
        ({}, LINES + "activation: topk\n", "Cannot be expressed in SAELens", "'topk'"),
        ({}, LINES + "activation: jump_relu\n", "Activations contradict", "relu transcoder"),
        ({}, "model_kind: cross_layer_transcoder\n", "Not a set of transcoders", "cross_layer_transcoder"),
        ({THRESHOLD: torch.linspace(-1, 1, 40)}, LINES, "Cannot be expressed in SAELens", "negative somewhere"),
        ({"W_skip": torch.zeros(12, 9)}, LINES, "Wrong shape", "W_skip"),
        ({"scale": torch.zeros(3)}, LINES, "Unknown tensor", "scale"),
        ({}, "- a\n- b\n", "Damaged file", "not a YAML mapping"),
        ({}, "a: &x [1]\nb: *x\n", "Damaged file", "anchors"),
        ({}, "a: [1\n", "Damaged file", "not YAML"),
    ],
)
def test_what_is_refused(more: dict[str, torch.Tensor], config: str, summary: str, words: str, tmp_path: Path) -> None:
    saved(tmp_path, state(**more), config)
    refused("circuit_tracer", tmp_path, summary, words, metadata=CODER)


def test_a_topk_transcoder_is_recognised_and_refused_by_inspect(tmp_path: Path) -> None:
    saved(tmp_path, state(), LINES + "k: 64\n")
    assert "TopK" in (best_of(tmp_path).refusal or "")


def test_without_a_config_the_activation_is_declared(tmp_path: Path) -> None:
    saved(tmp_path, state(), None)
    refused("circuit_tracer", tmp_path, "Needs a declared activation", "TopK", metadata=CODER)
    assert best_of(tmp_path).needs == ("activation",)
    convert("circuit_tracer", tmp_path, tmp_path / "out", options={"activation": "relu"}, metadata=CODER)
    refused("circuit_tracer", tmp_path, "Activations contradict", "relu", options={"activation": "jumprelu"})


def test_one_threshold_for_all_features(tmp_path: Path) -> None:
    saved(tmp_path / "source", state(**{THRESHOLD: torch.tensor(0.25)}))
    convert("circuit_tracer", tmp_path / "source", tmp_path / "out", metadata=CODER)
    assert torch.equal(load_file(tmp_path / "out" / "sae_weights.safetensors")["threshold"], torch.full((40,), 0.25))


def test_hooks_and_the_models_layer_norm_are_said(tmp_path: Path) -> None:
    options = CHOSEN.example(tmp_path / "source", 0, "skip")
    found = best_of(tmp_path / "source")
    assert found.facts["hook"] == "blocks.3.ln2.hook_normalized"
    assert found.facts["hook_out"] == "blocks.3.hook_mlp_out"
    own: dict[str, Any] = {key: value for key, value in CODER.items() if key != "model_from_pretrained_kwargs"}
    convert("circuit_tracer", tmp_path / "source", tmp_path / "out", options=dataclasses.asdict(options), metadata=own)
    metadata = json.loads((tmp_path / "out" / "cfg.json").read_text())["metadata"]
    assert metadata["model_from_pretrained_kwargs"] == {"fold_ln": False}


def test_of_a_set_one_layer_is_named(tmp_path: Path) -> None:
    names = ["config.yaml", "layer_0.safetensors", "layer_1.safetensors"]
    assert set(CHOSEN.files(names, "layer_1.safetensors")) == {"layer_1.safetensors", "config.yaml"}
    saved(tmp_path, state())
    (tmp_path / "layer_10.safetensors").write_bytes((tmp_path / "layer_3.safetensors").read_bytes())
    found = inspect_local(tmp_path).saes
    assert [one.path for one in found] == ["layer_3.safetensors", "layer_10.safetensors"]
    assert all(one.best is not None and one.best.format == "circuit_tracer" for one in found)


def test_what_a_set_lacks_is_said(tmp_path: Path) -> None:
    """circuit-tracer loads layers 0 to the last, of equal widths, or nothing; each by itself can be converted all the same."""
    first = saved(tmp_path, state()) / "layer_3.safetensors"
    assert incomplete_sets(inspect_local(tmp_path)) == [], "one layer is no set"
    for layer in (0, 1, 5):
        (tmp_path / f"layer_{layer}.safetensors").write_bytes(first.read_bytes())
    found = inspect_local(tmp_path)
    lines = [
        "The folder is an incomplete set of circuit_tracer: layers 2, 4 of 0 to 5 are not there. Each of the others can be "
        "converted; circuit-tracer loads all of a set or none."
    ]
    assert incomplete_sets(found) == lines == to_json(found)["incomplete"]
    assert f"! {lines[0]}" in describe(found)
    assert len(found.convertible) == 4
    assert incomplete_sets(inspect_local(first)) == [], "only one file was asked about"
    (tmp_path / "layer_2.safetensors").write_bytes(first.read_bytes())
    assert "layer 4 is not there" in incomplete_sets(inspect_local(tmp_path))[0]
    wide = state() | {"W_enc": torch.zeros(41, 12), "b_enc": torch.zeros(41), "W_dec": torch.zeros(41, 9)}
    save_file(wide, tmp_path / "layer_4.safetensors")
    assert "its layers have 40, 41 features" in "".join(incomplete_sets(inspect_local(tmp_path)))
    save_file(state(), tmp_path / "layer_4.safetensors")
    assert incomplete_sets(inspect_local(tmp_path)) == []

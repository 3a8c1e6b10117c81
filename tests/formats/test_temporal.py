"""Temporal SAEs: features depend on the tokens before, so that rows are sequences; what conf.yaml must say; wrong ones fail."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from convert_support import adopt_job, convert, files_of, refused, source_files
from safetensors.torch import load_file, save_file

from saesync import formats
from saesync.convert.sequences import coupling
from saesync.convert.stock import Stock
from saesync.errors import ProofFailed, Refused
from saesync.executors import export
from saesync.executors.convert import adopt
from saesync.formats.base import Candidate
from saesync.formats.temporal import CONFIG, WEIGHTS, Temporal, TemporalOptions
from saesync.inspection import inspect_local
from saesync.jobs import ExportJob
from saesync.writers import writers

CHOSEN = Temporal()


@pytest.fixture(params=["tied", "untied"])
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    CHOSEN.example(tmp_path / "source", 1, request.param)
    return tmp_path / "source"


def edit(folder: Path, **changes: Any) -> Path:
    """Other values in conf.yaml: ``section__field``, or a whole section. None leaves a field out."""
    config = yaml.safe_load((folder / CONFIG).read_text())
    for name, value in changes.items():
        section, _, field = name.partition("__")
        held = config[section] if field else config
        held[field or section] = value
        if value is None:
            del held[field or section]
    (folder / CONFIG).write_text(yaml.safe_dump(config))
    return folder


def edit_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], Mapping[str, torch.Tensor]]) -> Path:
    save_file({name: value.contiguous() for name, value in change(load_file(folder / WEIGHTS)).items()}, folder / WEIGHTS)
    return folder


def best_of(folder: Path) -> Candidate:
    best = inspect_local(folder).saes[0].best
    assert best is not None
    return best


def without(name: str) -> Callable[[dict[str, torch.Tensor]], Mapping[str, torch.Tensor]]:
    return lambda t: {key: value for key, value in t.items() if key != name}


# ------------------------------------------------------------------------------------------------------ what it is


def test_what_is_written(source: Path, tmp_path: Path) -> None:
    convert("temporal", source, tmp_path / "out", metadata={})
    ours, theirs = load_file(tmp_path / "out" / "sae_weights.safetensors"), load_file(source / WEIGHTS)
    assert torch.equal(ours.pop("b_dec"), theirs.pop("b")[0])
    assert torch.equal(ours.pop("W_dec"), theirs.pop("D"))
    if "E" in theirs:
        assert torch.equal(ours.pop("W_enc"), theirs.pop("E"))
    assert set(ours) == set(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    cfg = json.loads((tmp_path / "out" / "cfg.json").read_text())
    assert (cfg["architecture"], cfg["kval_topk"], cfg["activation_normalization_factor"]) == ("temporal", 5, 0.5)
    assert cfg["metadata"]["model_name"] == "google/gemma-2-2b"
    assert cfg["metadata"]["context_size"] == 500
    assert "hook_name" not in cfg["metadata"]  # only a folder's name says it


def test_a_bias_of_one_axis_is_the_same_bias(source: Path, tmp_path: Path) -> None:
    convert("temporal", source, tmp_path / "one")
    edit_tensors(source, lambda t: t | {"b": t["b"][0]})
    convert("temporal", source, tmp_path / "two")
    assert (tmp_path / "one" / "sae_weights.safetensors").read_bytes() == (
        tmp_path / "two" / "sae_weights.safetensors"
    ).read_bytes()


def test_the_layer_is_proposed_from_the_folder_alone(tmp_path: Path) -> None:
    CHOSEN.example(tmp_path / "gemma-2-2B" / "layer_12" / "temporal", 0)
    found = best_of(tmp_path / "gemma-2-2B" / "layer_12" / "temporal")
    assert (found.format, found.score, found.refusal, found.needs) == ("temporal", 1.0, None, ())
    assert found.facts["hook"] == "blocks.12.hook_resid_post"
    assert (found.facts["d_in"], found.facts["d_sae"], found.facts["model"]) == (8, 16, "google/gemma-2-2b")
    CHOSEN.example(tmp_path / "player_12", 0)
    assert "hook" not in best_of(tmp_path / "player_12").facts


def test_the_reference_is_the_authors_class_token_by_token(source: Path) -> None:
    """Written out once more, for each token with what came before it and nothing else."""
    t = {name: value.double() for name, value in load_file(source / WEIGHTS).items()}
    x = torch.randn(9, 8, generator=torch.Generator().manual_seed(5), dtype=torch.float64) * 3
    encoder = t.get("E", t["D"].T)
    z, h = x * 0.5 - t["b"], "attn_layers.0."
    codes = (z / 32 @ encoder).relu()
    features, output = CHOSEN.reference(source_files("temporal", source), TemporalOptions(), x)
    for token in range(9):
        before = torch.cat([torch.zeros(1, 16, dtype=torch.float64), codes[:token]])
        q = t[h + "q_target.weight"] @ codes[token] + t[h + "q_target.bias"].double()
        k = before @ t[h + "k_ctx.weight"].T + t[h + "k_ctx.bias"]
        v = before @ t[h + "v_ctx.weight"].T + t[h + "v_ctx.bias"]
        heads = [(k[:, a : a + 4] @ q[a : a + 4] / 2).softmax(0) @ v[:, 2 * a : 2 * a + 8] for a in (0, 4)]
        p = (t[h + "c_proj.weight"] @ torch.cat(heads) + t[h + "c_proj.bias"]).relu()
        along = p @ t["D"]
        share = along @ z[token] / (along.norm() + 1e-6) ** 2
        novel = ((z[token] - share * along) / 32 @ encoder).relu()
        novel[novel.argsort()[:-5]] = 0
        assert torch.allclose(features[token], novel, rtol=0, atol=1e-14)
        assert torch.allclose(output[token], ((novel + share * p) @ t["D"] + t["b"][0]) * 2, rtol=0, atol=1e-13)


# -------------------------------------------------------------------------------------------------------- sequences


def test_features_depend_on_what_came_before_and_on_nothing_else(source: Path, tmp_path: Path) -> None:
    convert("temporal", source, tmp_path / "out")
    stock = Stock(tmp_path / "out", "float64")
    x = torch.randn(40, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    features, output = stock.forward(x)
    changed, other = stock.forward(torch.cat([x[:20], x[20:].flip(0)]))
    assert torch.equal(changed[:20], features[:20])
    assert torch.equal(other[:20], output[:20])
    assert not torch.equal(stock.encode(x[10:])[0], features[10])
    assert coupling(stock, x) < 1e-12
    assert not torch.allclose(stock.sae.decode(stock.encode(x)), output)  # decode knows nothing of the prediction


@pytest.mark.parametrize("leak", ["later", "beside"])
def test_a_leak_between_tokens_or_sequences_is_found(leak: str, source: Path, tmp_path: Path) -> None:
    convert("temporal", source, tmp_path / "out")
    stock = Stock(tmp_path / "out", "float64")
    axis = 1 if leak == "later" else 0
    stock.sae.hook_sae_acts_post.register_forward_hook(lambda _module, _inputs, out: out + 1e-6 * out.sum(axis, keepdim=True))
    assert coupling(stock, torch.randn(40, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float64)) > 1e-8


def test_the_proof_needs_rows_that_attention_works_on(source: Path, tmp_path: Path) -> None:
    """What it never saw at work, it did not prove."""
    edit_tensors(source, lambda t: t | {"attn_layers.0.c_proj.bias": torch.full((16,), -1e6)})
    with pytest.raises(ProofFailed, match="attention is not proved"):
        convert("temporal", source, tmp_path / "out")
    convert("temporal", edit_tensors(source, lambda t: t | {"attn_layers.0.c_proj.bias": torch.zeros(16)}), tmp_path / "again")


def test_real_activations_are_taken_as_sequences(source: Path, tmp_path: Path) -> None:
    save_file({"x": torch.randn(200, 8, generator=torch.Generator().manual_seed(3)) * 9}, tmp_path / "x.safetensors")
    proof = convert("temporal", source, tmp_path / "out", activations=str(tmp_path / "x.safetensors"))
    assert proof["real_rows"] == 200
    assert proof["batch_diff"] < 1e-12


# ------------------------------------------------------------------------------------------------------- wrong ones

KEYS, QUERIES = "attn_layers.0.k_ctx.weight", "attn_layers.0.q_target.weight"
# In the published folder: cfg fields, and what becomes of the tensors.
WRONG: dict[str, tuple[dict[str, Any], Callable[[dict[str, torch.Tensor]], Mapping[str, torch.Tensor]]]] = {
    "scaling factor dropped": ({"activation_normalization_factor": 1.0}, dict),
    "scaling factor of nothing": ({"activation_normalization_factor": 0.0}, dict),
    "b not subtracted": ({"apply_b_dec_to_input": False}, dict),
    "b lost": ({}, lambda t: t | {"b_dec": torch.zeros(8)}),
    "untied read as tied": ({"tied_weights": True}, without("W_enc")),
    "tied read as untied, transposed": ({"tied_weights": False}, lambda t: t | {"W_enc": t["W_dec"].clone().reshape(8, 16)}),
    "relu": ({"sae_diff_type": "relu"}, dict),
    "another k": ({"kval_topk": 6}, dict),
    "other heads": ({"n_heads": 4}, dict),
    "keys and queries swapped": ({}, lambda t: t | {KEYS: t[QUERIES], QUERIES: t[KEYS]}),
    "values lost": ({}, lambda t: t | {"attn_layers.0.v_ctx.weight": torch.zeros(16, 16)}),
    "output projection transposed": ({}, lambda t: t | {"attn_layers.0.c_proj.weight": t["attn_layers.0.c_proj.weight"].T}),
}  # fmt: skip


@pytest.mark.parametrize("what", sorted(WRONG))
@pytest.mark.parametrize("seed", [1, 2])
def test_a_wrong_one_is_no_proof(what: str, seed: int, tmp_path: Path) -> None:
    CHOSEN.example(tmp_path / "source", seed, "untied" if what.startswith("untied") else "tied")
    out = tmp_path / "out"
    convert("temporal", tmp_path / "source", out)
    cfg, change = WRONG[what]
    known = json.loads((out / "cfg.json").read_text())
    (out / "cfg.json").write_text(json.dumps(known | cfg))
    weights = out / "sae_weights.safetensors"
    save_file({name: value.contiguous() for name, value in change(load_file(weights)).items()}, weights)
    with pytest.raises(ProofFailed) as caught:
        adopt(adopt_job("temporal", tmp_path / "source", out))
    assert caught.value.diagnostics[0].summary == "Not the same function"


def test_overflow_in_float16_is_no_rounding(tmp_path: Path) -> None:
    """The square of a long prediction: float16 ends at 65,504."""
    CHOSEN.example(tmp_path / "source", 0)
    edit_tensors(tmp_path / "source", lambda t: t | {"attn_layers.0.c_proj.bias": torch.full((16,), 2000.0)})
    convert("temporal", tmp_path / "source", tmp_path / "out", "bfloat16")
    with pytest.raises(ProofFailed, match="In float16"):
        convert("temporal", tmp_path / "source", tmp_path / "again", "float16")


# ---------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("changes", "summary", "words"),
    [
        ({"sae__sae_type": "relu"}, "Not a temporal SAE", "'relu'"),
        ({"sae__sae_diff_type": "batchtopk"}, "Cannot be expressed in SAELens", "batchtopk"),
        ({"sae__sae_diff_type": "nullify"}, "Cannot be expressed in SAELens", "nullify"),
        ({"sae__sae_diff_type": ["topk"]}, "Cannot be expressed in SAELens", "topk"),
        ({"sae__sae_diff_type": None}, "Missing setting", "sae.sae_diff_type"),
        ({"sae__kval_topk": None}, "Missing setting", "sae.kval_topk"),
        ({"sae__kval_topk": 17}, "Damaged config", "kval_topk is 17"),
        ({"sae__kval_topk": 0}, "Damaged config", "positive whole number"),
        ({"sae__scaling_factor": None}, "Missing setting", "sae.scaling_factor"),
        ({"sae__scaling_factor": "1e-3"}, "Damaged config", "'1e-3'"),
        ({"sae__scaling_factor": 0.0}, "Damaged config", "scaling_factor"),
        ({"sae__scaling_factor": float("nan")}, "Damaged config", "scaling_factor"),
        ({"sae__exp_factor": None}, "Missing setting", "sae.exp_factor"),
        ({"sae__exp_factor": 4}, "Config contradicts tensors", "[32, 8]"),
        ({"sae__exp_factor": 0.01}, "Damaged config", "0 features"),
        ({"sae__n_heads": None}, "Missing setting", "sae.n_heads"),
        ({"sae__n_heads": 3}, "Damaged config", "n_heads 3"),
        ({"sae__bottleneck_factor": 16}, "Damaged config", "bottleneck_factor 16"),
        ({"sae__bottleneck_factor": 2.0}, "Damaged config", "positive whole number"),
        ({"sae__bottleneck_factor": 1}, "Wrong shape", "expected [16]"),
        ({"sae__n_attn_layers": 2}, "Config contradicts tensors", "holds 1"),
        ({"sae__tied_weights": None}, "Damaged config", "tied_weights"),
        ({"sae__tied_weights": "yes"}, "Damaged config", "tied_weights"),
        ({"sae__tied_weights": False}, "Config contradicts tensors", "no encoder E"),
        ({"llm__dimin": None}, "Missing setting", "llm.dimin"),
        ({"llm__dimin": 16}, "Config contradicts tensors", "[16, 8]"),
        ({"llm": None}, "Missing setting", "llm"),
        ({"sae": None}, "Missing setting", "sae"),
    ],
)  # fmt: skip
def test_configs_that_are_refused(changes: dict[str, Any], summary: str, words: str, tmp_path: Path) -> None:
    CHOSEN.example(tmp_path, 0)
    edit(tmp_path, **changes)
    refused("temporal", tmp_path, summary, words)
    assert best_of(tmp_path).refusal is not None


@pytest.mark.parametrize(
    ("change", "summary", "words"),
    [
        (lambda t: t | {"E": t["D"].T}, "Config contradicts tensors", "an encoder E of its own"),
        (lambda t: t | {"expected_min_act": torch.zeros(1)}, "Unknown tensor", "expected_min_act"),
        (lambda t: t | {"attn_layers.0.k_ctx.scale": torch.zeros(1)}, "Unknown tensor", "k_ctx.scale"),
        (lambda t: t | {"attn_layers.1.k_ctx.weight": torch.zeros(1)}, "Config contradicts tensors", "holds 2"),
        (without("b"), "Missing tensor", "'b'"),
        (without("D"), "Missing tensor", "'D'"),
        (without("attn_layers.0.v_ctx.bias"), "Missing tensor", "v_ctx.bias"),
        (lambda t: t | {"b": torch.zeros(2, 8)}, "Wrong shape", "b has shape [2, 8]"),
        (lambda t: t | {"D": t["D"].T}, "Config contradicts tensors", "it is [8, 16]"),
        (lambda t: t | {"attn_layers.0.c_proj.weight": torch.zeros(16, 8)}, "Wrong shape", "c_proj.weight"),
        (lambda t: t | {"D": t["D"].int()}, "Wrong dtype", "D is int32"),
        (lambda t: t | {"D": t["D"].index_fill(0, torch.tensor([3]), float("nan"))}, "Not finite", "W_dec[3, 0]"),
    ],
)  # fmt: skip
def test_tensors_that_are_refused(change: Any, summary: str, words: str, tmp_path: Path) -> None:
    CHOSEN.example(tmp_path, 0)
    refused("temporal", edit_tensors(tmp_path, change), summary, words)


def test_without_its_config_it_is_recognised_and_refused(tmp_path: Path) -> None:
    CHOSEN.example(tmp_path, 0)
    (tmp_path / CONFIG).unlink()
    found = best_of(tmp_path)
    assert found.format == "temporal"
    assert CONFIG in str(found.refusal)
    with pytest.raises(Refused, match=CONFIG):
        files_of("temporal", tmp_path)


@pytest.mark.parametrize("to", sorted(writers()))
def test_no_other_layout_can_say_it(to: str, source: Path, tmp_path: Path) -> None:
    job = ExportJob(to, "temporal", {}, files_of("temporal", source), "float32", {}, str(tmp_path / "out"))
    with pytest.raises(Refused, match="depend on the tokens before") as caught:
        export.run(job)
    assert caught.value.diagnostics[0].summary == f"Cannot be expressed in {to}"
    assert not (tmp_path / "out").exists()


def test_saelens_loads_these_files_itself_and_they_say_everything() -> None:
    assert formats.get("temporal").conversion_func == "temporal"  # type: ignore[attr-defined]
    assert dataclasses.fields(TemporalOptions) == ()

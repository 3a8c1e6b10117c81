"""dictionary_learning checkpoints: which class a file has, and each way in which others read it wrongly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from convert_support import METADATA, convert, refused, source_files
from safetensors.torch import load_file

from saesync import formats
from saesync.errors import Refused
from saesync.formats._dictionary_learning_reference import write_example
from saesync.formats.base import Candidate
from saesync.formats.dictionary_learning import CLASSES
from saesync.inspection import inspect_local

CHOSEN = formats.get("dictionary_learning")


def source(folder: Path, made: str = "BatchTopKSAE", /, **trainer: Any) -> Path:
    """An example whose config.json says ``trainer`` beside or instead; None removes a key."""
    write_example(folder, 3, made)
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["trainer"] = {key: value for key, value in (config["trainer"] | trainer).items() if value is not None}
    path.write_text(json.dumps(config))
    return folder


def bare(folder: Path, dict_class: str) -> Path:
    """Without config.json."""
    write_example(folder, 3, dict_class)
    (folder / "config.json").unlink()
    return folder


def edited(folder: Path, drop: tuple[str, ...] = (), **tensors: Any) -> Path:
    state = torch.load(folder / "ae.pt", weights_only=True) | tensors
    torch.save({name: value for name, value in state.items() if name not in drop}, folder / "ae.pt")
    return folder


def cfg_of(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "cfg.json").read_text())
    return found


def sniffed(folder: Path) -> Candidate:
    (found,) = inspect_local(folder).saes
    return next(candidate for candidate in found.candidates if candidate.format == "dictionary_learning")


EXPECTED = {
    "AutoEncoder": ("standard", True),
    "AutoEncoderNew": ("standard", False),
    "GatedAutoEncoder": ("gated", True),
    "AutoEncoderTopK": ("topk", True),
    "BatchTopKSAE": ("jumprelu", True),
    "MatryoshkaBatchTopKSAE": ("jumprelu", True),
    "JumpReluAutoEncoder": ("jumprelu", False),
}


@pytest.mark.parametrize("dict_class", CLASSES)
def test_classes_become_architectures(dict_class: str, tmp_path: Path) -> None:
    proof = convert("dictionary_learning", source(tmp_path / "source", dict_class), tmp_path / "out")
    cfg = cfg_of(tmp_path / "out")
    assert (cfg["architecture"], cfg["apply_b_dec_to_input"]) == EXPECTED[dict_class]
    assert cfg.get("k") == (6 if dict_class == "AutoEncoderTopK" else None)
    assert proof["max_reconstruction_diff"] < 1e-13
    assert proof["feature_scale"] == "raw"
    candidate = sniffed(tmp_path / "source")
    assert (candidate.score, candidate.needs, candidate.refusal) == (1.0, (), None)
    assert candidate.facts["dict_class"] == dict_class
    assert candidate.facts["hook"] == "blocks.3.hook_resid_post"


def test_an_auto_encoder_new_under_the_other_name_subtracts_nothing(tmp_path: Path) -> None:
    """SAELens's loader crashes on this file, and would have subtracted the decoder's bias."""
    from sae_lens import SAE

    folder = source(tmp_path / "source", "AutoEncoderNew")
    assert json.loads((folder / "config.json").read_text())["trainer"]["dict_class"] == "AutoEncoder"
    convert("dictionary_learning", folder, tmp_path / "out", metadata={"hook_name": METADATA["hook_name"]})
    t = torch.load(folder / "ae.pt", weights_only=True)
    x = torch.randn(7, 12, generator=torch.Generator().manual_seed(0))
    expected = (x @ t["encoder.weight"].T + t["encoder.bias"]).relu()
    assert torch.allclose(SAE.load_from_disk(tmp_path / "out").encode(x), expected, atol=1e-6)


def test_norm_factor_is_not_used_again(tmp_path: Path) -> None:
    """It was folded when the run saved."""
    for factor in (None, 30.0):
        convert("dictionary_learning", source(tmp_path / str(factor), norm_factor=factor), tmp_path / f"{factor}-out")
    one, other = (load_file(tmp_path / f"{factor}-out" / "sae_weights.safetensors") for factor in (None, 30.0))
    assert all(torch.equal(one[name], other[name]) for name in one | other)


def test_the_threshold_of_a_batchtopk_is_kept_and_that_of_a_topk_is_not_used(tmp_path: Path) -> None:
    """SAELens once lost the former (#608) and once loaded TopK as ReLU (#308)."""
    convert("dictionary_learning", source(tmp_path / "a"), tmp_path / "a-out")
    assert load_file(tmp_path / "a-out" / "sae_weights.safetensors")["threshold"].unique().tolist() == pytest.approx([0.3])
    convert("dictionary_learning", source(tmp_path / "b", "AutoEncoderTopK"), tmp_path / "b-out")
    assert "threshold" not in load_file(tmp_path / "b-out" / "sae_weights.safetensors")


@pytest.mark.parametrize(
    ("submodule", "hook"),
    [
        ("resid_post_layer_11", "blocks.11.hook_resid_post"),
        ("mlp_out_layer_4", "blocks.4.hook_mlp_out"),
        ("attention_out_layer_0", "blocks.0.hook_attn_out"),
        ("something_else", None),
        (None, None),
    ],
)
def test_the_hook_is_the_submodules(submodule: str | None, hook: str | None, tmp_path: Path) -> None:
    """SAELens calls all of them the residual stream."""
    folder = source(tmp_path / "source", submodule_name=submodule)
    assert sniffed(folder).facts.get("hook") == hook
    weights = CHOSEN.read(source_files("dictionary_learning", folder), CHOSEN.Options())
    assert weights.metadata.get("hook_name") == hook
    assert weights.metadata["model_name"] == "EleutherAI/pythia-70m-deduped"
    assert weights.metadata["context_size"] == 128


def test_matryoshka_groups_are_told(tmp_path: Path) -> None:
    convert("dictionary_learning", source(tmp_path / "source", "MatryoshkaBatchTopKSAE"), tmp_path / "out")
    metadata = cfg_of(tmp_path / "out")["metadata"]
    assert metadata["group_sizes"] == [10, 30]
    assert metadata["training_architecture"] == "matryoshka_batchtopk"


def test_a_checkpoint_in_the_middle_of_a_run(tmp_path: Path) -> None:
    """``checkpoints/ae_100.pt`` has no config.json beside it."""
    names = ["run/trainer_0/ae.pt", "run/trainer_0/config.json", "run/trainer_0/checkpoints/ae_100.pt"]
    assert dict(CHOSEN.files(names, "run/trainer_0/checkpoints/ae_100.pt")) == {"ae_100.pt": names[2]}
    assert dict(CHOSEN.files(names, "run/trainer_0")) == {"ae.pt": names[0], "config.json": names[1]}
    folder = bare(tmp_path / "source", "BatchTopKSAE")
    refused("dictionary_learning", folder, "Needs a declared class", "AutoEncoderTopK or BatchTopKSAE")
    convert("dictionary_learning", folder, tmp_path / "out", options={"dict_class": "BatchTopKSAE"})


@pytest.mark.parametrize(
    ("dict_class", "score", "needs"),
    [
        ("AutoEncoder", 0.8, ()),
        ("GatedAutoEncoder", 0.8, ()),
        ("MatryoshkaBatchTopKSAE", 0.8, ()),
        ("AutoEncoderTopK", 0.8, ("dict_class",)),
        ("BatchTopKSAE", 0.8, ("dict_class",)),
        ("AutoEncoderNew", 0.3, ("dict_class",)),  # the names that five formats share
        ("JumpReluAutoEncoder", 0.3, ("dict_class",)),  # SAELens's own names
    ],
)
def test_tensors_alone_decide_only_where_they_can(dict_class: str, score: float, needs: tuple[str, ...], tmp_path: Path) -> None:
    folder = bare(tmp_path / "source", dict_class)
    candidate = sniffed(folder)
    assert (candidate.score, candidate.needs) == (score, needs)
    if needs:
        refused("dictionary_learning", folder, "Needs a declared class", "dict_class")
    convert("dictionary_learning", folder, tmp_path / "out", options={"dict_class": dict_class})


@pytest.mark.parametrize(
    ("other", "config"), [("batchtopk", "config.json"), ("connor_rob_hook_z", "gpt2-small_L5_Hcat_z_cfg.json")]
)
def test_a_file_whose_config_was_left_behind_is_not_claimed(other: str, config: str, tmp_path: Path) -> None:
    """These have the tensors of a MatryoshkaBatchTopKSAE, and only their config says what they are."""
    formats.get(other).example(tmp_path, 0)
    (tmp_path / config).unlink()
    (weights,) = tmp_path.iterdir()
    (found,) = inspect_local(weights).saes
    assert not found.able
    candidate = sniffed(weights)
    assert candidate.score < 0.3
    assert "NAME_cfg.json" in str(candidate.refusal)
    weights.rename(tmp_path / "ae.pt")
    refused("dictionary_learning", tmp_path, "Untrained threshold", "another config file")


def test_an_old_topk_without_its_k(tmp_path: Path) -> None:
    folder = edited(source(tmp_path / "source", "AutoEncoderTopK", k=None), ("k", "threshold"))
    assert sniffed(folder).needs == ("k",)
    refused("dictionary_learning", folder, "Missing k", "Declare `k`")
    convert("dictionary_learning", folder, tmp_path / "out", options={"k": 5})
    assert cfg_of(tmp_path / "out")["k"] == 5


@pytest.mark.parametrize(
    ("dict_class", "trainer", "options", "summary", "word"),
    [
        ("BatchTopKSAE", {"dict_class": "CrossCoder"}, {}, "Cannot be expressed in SAELens", "CrossCoder"),
        ("BatchTopKSAE", {}, {"dict_class": "AutoEncoderTopK"}, "Classes contradict", "BatchTopKSAE"),
        ("BatchTopKSAE", {}, {"dict_class": "Nothing"}, "Cannot be expressed in SAELens", "Nothing"),
        ("BatchTopKSAE", {"dict_class": None}, {}, "Damaged config", "trainer.dict_class"),
        ("BatchTopKSAE", {"activation_dim": 13}, {}, "Config contradicts tensors", "activation_dim is 13"),
        ("BatchTopKSAE", {"dict_size": 41}, {}, "Config contradicts tensors", "the tensors say 40"),
        ("AutoEncoder", {"dict_class": "GatedAutoEncoder"}, {}, "Missing tensor", "decoder_bias"),
        ("JumpReluAutoEncoder", {"dict_class": "MatryoshkaBatchTopKSAE"}, {}, "Wrong shape", "threshold"),
        ("AutoEncoderTopK", {"k": 7}, {}, "Different k", "k in the checkpoint is 6"),
        ("AutoEncoderTopK", {}, {"k": 5}, "Different k", "k in the manifest is 5"),
    ],
)
def test_configs_that_are_refused(
    dict_class: str, trainer: dict[str, Any], options: dict[str, Any], summary: str, word: str, tmp_path: Path
) -> None:
    folder = source(tmp_path, dict_class, **trainer)
    refused("dictionary_learning", folder, summary, word, options=options)


@pytest.mark.parametrize(
    ("drop", "tensors", "summary", "word"),
    [
        ((), {"threshold": torch.tensor(-1.0)}, "Untrained threshold", "-1"),
        ((), {"threshold": torch.tensor(float("nan"))}, "Untrained threshold", "nan"),
        (("threshold",), {}, "Untrained threshold", "missing"),
        ((), {"mystery": torch.zeros(2)}, "Unknown tensor", "mystery"),
        ((), {"decoder.bias": torch.zeros(12)}, "Unknown tensor", "decoder.bias"),
        (("b_dec",), {}, "Missing tensor", "b_dec"),
        ((), {"encoder.weight": torch.zeros(12, 40)}, "Wrong shape", "transposed"),
        ((), {"b_dec": torch.zeros(12, dtype=torch.int32)}, "Wrong dtype", "int32"),
        ((), {"b_dec": torch.full((12,), float("inf"))}, "Not finite", "b_dec[0]"),
        ((), {"step": 3}, "Unknown entry", "step"),
        ((), {"model": torch.nn.Linear(2, 2)}, "Unsafe pickle", "torch.nn.modules.linear.Linear"),
    ],
)
def test_checkpoints_that_are_refused(
    drop: tuple[str, ...], tensors: dict[str, Any], summary: str, word: str, tmp_path: Path
) -> None:
    refused("dictionary_learning", edited(source(tmp_path), drop, **tensors), summary, word)


def test_a_threshold_that_is_missing_is_known_from_headers(tmp_path: Path) -> None:
    candidate = sniffed(edited(source(tmp_path), ("threshold",)))
    assert (candidate.score, "Use a later checkpoint" in str(candidate.refusal)) == (1.0, True)


@pytest.mark.parametrize("k", [0, 41])
def test_a_k_that_is_none_is_refused(k: int, tmp_path: Path) -> None:
    folder = edited(source(tmp_path, "AutoEncoderTopK", k=k), k=torch.tensor(k, dtype=torch.int32))
    refused("dictionary_learning", folder, "Missing k", "from 1 to 40")


@pytest.mark.parametrize("text", ["[]", "{}", '{"trainer": 3}', "{"])
def test_a_config_of_something_else_is_refused(text: str, tmp_path: Path) -> None:
    folder = source(tmp_path)
    (folder / "config.json").write_text(text)
    with pytest.raises(Refused, match=r"config\.json"):
        convert("dictionary_learning", folder, tmp_path / "out")

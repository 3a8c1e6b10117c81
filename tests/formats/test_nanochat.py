"""nanochat: its TopK keeps negative features, its gated SAE is another one, and a folder means its best checkpoint."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from convert_support import METADATA, activations, adopt_job, convert, refused, source_files
from safetensors.torch import load_file

from saesync.errors import ProofFailed
from saesync.executors.convert import adopt
from saesync.formats.nanochat import BEST, Nanochat
from saesync.inspection import inspect_local

CHOSEN = Nanochat()
CONFIG: dict[str, Any] = {"d_in": 12, "d_sae": 40, "activation": "topk", "k": 6, "hook_point": "blocks.10.hook_resid_post"}


def state(seed: int = 0, gated: bool = False) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"W_enc": (12, 40), "b_enc": (40,), "W_dec": (40, 12), "b_dec": (12,)}
    shapes |= {"W_gate": (12, 40), "b_gate": (40,)} if gated else {}
    t = {name: torch.randn(shape, generator=generator) / 4 for name, shape in shapes.items()}
    return t | {"W_enc": t["W_enc"] + 1}  # all encoder directions lean one way


def saved(folder: Path, tensors: dict[str, torch.Tensor], name: str = BEST, **config: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    torch.save({"step": 1, "sae_state_dict": tensors, "optimizer_state_dict": {"param_groups": [{"lr": 0.1}]}}, folder / name)
    (folder / "config.json").write_text(json.dumps(CONFIG | config))
    return folder


def rows(seed: int = 5) -> torch.Tensor:
    return 2 + torch.randn(200, 12, generator=torch.Generator().manual_seed(seed))


def test_a_topk_sae_needs_real_activations(tmp_path: Path) -> None:
    saved(tmp_path / "source", state())
    with pytest.raises(ProofFailed, match="Only `saesync apply` of a manifest with `validate:`") as caught:
        convert("nanochat", tmp_path / "source", tmp_path / "out")
    assert caught.value.diagnostics[0].summary == "Needs real activations"


def test_a_topk_sae_whose_activations_have_k_positives_converts(tmp_path: Path) -> None:
    saved(tmp_path / "source", state())
    t = state()
    positive = (rows() @ t["W_enc"] + t["b_enc"] > 0).sum(dim=1)
    assert positive.min() >= 6
    proof = convert("nanochat", tmp_path / "source", tmp_path / "out", activations=activations(tmp_path, rows()))
    assert proof["real_rows"] == 200
    assert proof["rows"] > 200
    assert json.loads((tmp_path / "out" / "cfg.json").read_text())["k"] == 6


def test_one_activation_with_fewer_positives_refuses(tmp_path: Path) -> None:
    """There the authors keep a negative feature, and SAELens a zero: the functions differ."""
    t = state()
    saved(tmp_path / "source", t)
    bad = -0.1 * t["W_enc"].sum(dim=1, keepdim=True).T
    assert int((bad @ t["W_enc"] + t["b_enc"] > 0).sum()) < 6
    features, _ = CHOSEN.reference(source_files("nanochat", tmp_path / "source"), CHOSEN.Options(), bad)
    assert bool((features < 0).any())
    with pytest.raises(ProofFailed, match="In 1 of 201 real activations fewer than k = 6"):
        convert("nanochat", tmp_path / "source", tmp_path / "out", activations=activations(tmp_path, torch.cat([rows(), bad])))


def test_what_was_converted_elsewhere_is_taken_over_by_real_activations_alone(tmp_path: Path) -> None:
    saved(tmp_path / "source", state())
    real = activations(tmp_path, rows())
    convert("nanochat", tmp_path / "source", tmp_path / "out", activations=real)
    asked = adopt_job("nanochat", tmp_path / "source", tmp_path / "out")
    assert adopt(dataclasses.replace(asked, activations=real)).proof["real_rows"] == 200
    with pytest.raises(ProofFailed, match="Only `saesync apply` of a manifest with `validate:`"):
        adopt(asked)


@pytest.mark.parametrize(("gated", "config"), [(True, {"activation": "gated"}), (True, {"activation": "relu"})])
def test_gated_is_refused_by_its_tensor(gated: bool, config: dict[str, Any], tmp_path: Path) -> None:
    saved(tmp_path, state(gated=gated), **config)
    refused("nanochat", tmp_path, "Cannot be expressed in SAELens", "W_gate" if gated else "gated", "keeps negative")
    best = inspect_local(tmp_path).saes[0].best
    assert best is not None
    assert best.refusal is not None


def test_gated_without_its_tensors_is_refused_too(tmp_path: Path) -> None:
    """nanochat's own upload bundle drops W_gate and b_gate of gated SAEs."""
    saved(tmp_path, state(), activation="gated")
    refused("nanochat", tmp_path, "Cannot be expressed in SAELens", "activation is gated")


@pytest.mark.parametrize(
    ("config", "summary", "words"),
    [
        ({"d_sae": 41}, "Config contradicts tensors", "d_sae is 41"),
        ({"activation": "gelu"}, "Cannot be expressed in SAELens", "gelu"),
        ({"activation": None}, "Needs a declared activation", "activation"),
        ({"k": None}, "Missing k", "from 1 to 40"),
        ({"k": 6.0}, "Missing k", "whole number"),
    ],
)
def test_configs_that_do_not_fit(config: dict[str, Any], summary: str, words: str, tmp_path: Path) -> None:
    saved(tmp_path, state(), **config)
    refused("nanochat", tmp_path, summary, words)


def test_options_beside_a_config_are_refused_and_needed_without_one(tmp_path: Path) -> None:
    saved(tmp_path, state())
    refused("nanochat", tmp_path, "Option does not fit", "Remove", options={"k": 6})
    (tmp_path / "config.json").unlink()
    refused("nanochat", tmp_path, "Needs a declared activation", "activation")
    best = inspect_local(tmp_path).saes[0].best
    assert best is not None
    assert best.needs == ("activation", "k")


def test_a_folder_means_its_best_checkpoint_and_others_are_named(tmp_path: Path) -> None:
    """nanochat's loader takes whichever checkpoint it finds last."""
    saved(tmp_path, state(1), activation="relu")
    saved(tmp_path, state(2), "checkpoint_step900.pt", activation="relu")
    names = sorted(path.name for path in tmp_path.iterdir())
    assert CHOSEN.files(names, "")[BEST] == BEST
    assert set(CHOSEN.files(names, "checkpoint_step900.pt")) == {"checkpoint_step900.pt", "config.json"}
    convert("nanochat", tmp_path, tmp_path / "out")
    assert torch.equal(load_file(tmp_path / "out" / "sae_weights.safetensors")["W_enc"], state(1)["W_enc"])


@pytest.mark.parametrize(
    ("hook_point", "hook"),
    [("blocks.3.hook_resid_pre", "blocks.3.hook_resid_post"), ("blocks.3.hook_attn", "blocks.3.hook_attn_out"),
     ("blocks.3.hook_mlp", "blocks.3.hook_mlp_out"), ("elsewhere", None)],
)  # fmt: skip
def test_its_words_for_hooks(hook_point: str, hook: str | None, tmp_path: Path) -> None:
    saved(tmp_path, state(), hook_point=hook_point)
    best = inspect_local(tmp_path).saes[0].best
    assert best is not None
    assert best.facts.get("hook") == hook


def test_relu_needs_nothing(tmp_path: Path) -> None:
    options = CHOSEN.example(tmp_path / "source", 0, "relu")
    convert("nanochat", tmp_path / "source", tmp_path / "out", options=dataclasses.asdict(options), metadata=METADATA)
    assert json.loads((tmp_path / "out" / "cfg.json").read_text())["architecture"] == "standard"

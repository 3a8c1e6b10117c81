"""Qwen-Scope: orientation by file, k and model by the repo's name alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from convert_support import activations, convert, refused
from safetensors.torch import load_file

from saesync import formats
from saesync.errors import ProofFailed, Refused
from saesync.formats.base import Candidate
from saesync.inspection import inspect_local
from saesync.inspection.text import stanza

CHOSEN = formats.get("qwen_scope")


def source(folder: Path, name: str = "layer3.sae.pt", drop: tuple[str, ...] = (), **changes: Any) -> Path:
    CHOSEN.example(folder, 3)
    state = torch.load(folder / "layer3.sae.pt", weights_only=True) | changes
    (folder / "layer3.sae.pt").unlink()
    torch.save({key: value for key, value in state.items() if key not in drop}, folder / name)
    return folder


def candidates(folder: Path) -> list[Candidate]:
    (found,) = inspect_local(folder).saes
    return [candidate for candidate in found.candidates if candidate.format == "qwen_scope"]


def test_both_matrices_are_turned(tmp_path: Path) -> None:
    convert("qwen_scope", source(tmp_path / "source"), tmp_path / "out", options={"k": 5})
    t = torch.load(tmp_path / "source" / "layer3.sae.pt", weights_only=True)
    w = load_file(tmp_path / "out" / "sae_weights.safetensors")
    assert torch.equal(w["W_enc"], t["W_enc"].T)
    assert torch.equal(w["W_dec"], t["W_dec"].T)
    cfg = json.loads((tmp_path / "out" / "cfg.json").read_text())
    assert (cfg["architecture"], cfg["k"], cfg["apply_b_dec_to_input"]) == ("topk", 5, False)


@pytest.mark.parametrize("lean", [1.0, -1.0])
def test_real_activations_show_whether_negative_features_count(lean: float, tmp_path: Path) -> None:
    """The cards do not say whether a negative feature is kept; where at least k are positive it makes no difference."""
    place = source(tmp_path / "source")
    W_enc = torch.load(place / "layer3.sae.pt", weights_only=True)["W_enc"]
    rows = lean * W_enc.sum(dim=0) + torch.randn(200, 12, generator=torch.Generator().manual_seed(2)) / 100
    real = activations(tmp_path, rows)
    if lean > 0:
        assert convert("qwen_scope", place, tmp_path / "out", options={"k": 15}, activations=real)["real_rows"] == 200
        return
    with pytest.raises(ProofFailed, match=r"In 200 of 200 real activations fewer than k = 15 .* is not said"):
        convert("qwen_scope", place, tmp_path / "out", options={"k": 15}, activations=real)


def wide(folder: Path) -> Path:
    """1,024 features, so that a repo's name may call it W1K."""
    generator = torch.Generator().manual_seed(1)
    shapes = {"W_enc": (1024, 12), "W_dec": (12, 1024), "b_enc": (1024,), "b_dec": (12,)}
    return source(folder, **{name: torch.randn(shape, generator=generator) for name, shape in shapes.items()})


def test_inspect_proposes_what_the_repos_name_says(tmp_path: Path) -> None:
    folder = wide(tmp_path / "SAE-Res-Qwen3.5-2B-Base-W1K-L0_50")
    (candidate,) = candidates(folder)
    assert (candidate.score, candidate.options, candidate.needs) == (1.0, {"k": 50}, ())
    assert (candidate.facts["model"], candidate.facts["hook"]) == ("Qwen/Qwen3.5-2B-Base", "blocks.3.hook_resid_post")
    assert "  k: 50" in stanza(inspect_local(folder))


@pytest.mark.parametrize("name", ["SAE-Res-Qwen3.5-2B-Base-W32K-L0_50", "my-saes"])
def test_a_name_of_another_width_or_another_kind_proposes_nothing(name: str, tmp_path: Path) -> None:
    (candidate,) = candidates(wide(tmp_path / name))
    assert (candidate.options, candidate.needs) == ({}, ("k",))
    assert "model" not in candidate.facts


def test_without_the_authors_file_name_it_is_a_hint(tmp_path: Path) -> None:
    (candidate,) = candidates(source(tmp_path / "a", "sae.pt"))
    assert candidate.score < 0.5
    turned = {"W_enc": torch.zeros(12, 40), "W_dec": torch.zeros(40, 12)}
    assert candidates(source(tmp_path / "b", "sae.pt", **turned)) == []
    (candidate,) = candidates(source(tmp_path / "c", **turned))
    assert "transposed" in str(candidate.refusal)


def test_a_repo_with_many_layers_needs_a_file() -> None:
    names = ["layer0.sae.pt", "layer1.sae.pt", "README.md", "sub/layer2.sae.pt"]
    assert dict(CHOSEN.files(names, "layer1.sae.pt")) == {"layer1.sae.pt": "layer1.sae.pt"}
    assert dict(CHOSEN.files(names, "sub")) == {"layer2.sae.pt": "sub/layer2.sae.pt"}
    with pytest.raises(Refused, match="2 of them"):
        CHOSEN.files(names, "")


@pytest.mark.parametrize(
    ("changes", "k", "summary", "word"),
    [
        ({"W_dec": torch.zeros(40, 12)}, 5, "Wrong shape", "transposed"),
        ({"threshold": torch.zeros(40)}, 5, "Unknown tensor", "threshold"),
        ({"k": 5}, 5, "Unknown entry", "k"),
        ({}, 0, "Missing k", "from 1 to 40"),
        ({}, 41, "Missing k", "from 1 to 40"),
        ({"b_enc": torch.full((40,), float("nan"))}, 5, "Not finite", "b_enc[0]"),
        ({"model": torch.nn.Linear(2, 2)}, 5, "Unsafe pickle", "torch.nn.modules.linear.Linear"),
    ],
)
def test_files_that_are_refused(changes: dict[str, Any], k: int, summary: str, word: str, tmp_path: Path) -> None:
    refused("qwen_scope", source(tmp_path, **changes), summary, word, options={"k": k})


def test_k_must_be_declared() -> None:
    with pytest.raises(Refused, match="k"):
        formats.make_options(CHOSEN, {})

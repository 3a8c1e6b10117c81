"""DeepSeek-R1-Distill SAEs: four tensor names that five formats share, so that only the file's name speaks for this one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from convert_support import convert, refused

from saesync import formats
from saesync.inspection import Found, inspect_local

CHOSEN = formats.get("deepseek_r1")
NAME = "DeepSeek-R1-Distill-Tiny-1B-SAE-l1.pt"


def source(folder: Path, name: str = NAME, drop: tuple[str, ...] = (), **changes: Any) -> Path:
    CHOSEN.example(folder, 3)
    state = torch.load(folder / NAME, weights_only=True) | changes
    (folder / NAME).unlink()
    torch.save({key: value for key, value in state.items() if key not in drop}, folder / name)
    return folder


def found(folder: Path) -> Found:
    (one,) = inspect_local(folder).saes
    return one


def test_nothing_is_subtracted(tmp_path: Path) -> None:
    convert("deepseek_r1", source(tmp_path / "source"), tmp_path / "out")
    cfg = json.loads((tmp_path / "out" / "cfg.json").read_text())
    assert (cfg["architecture"], cfg["apply_b_dec_to_input"]) == ("standard", False)


def test_model_and_hook_are_in_the_files_name(tmp_path: Path) -> None:
    best = found(source(tmp_path, "DeepSeek-R1-Distill-Llama-8B-SAE-l19.pt")).best
    assert best is not None
    assert best.format == "deepseek_r1"
    assert best.facts["model"] == "deepseek-ai/DeepSeek-R1-Distill-Llama-8B"
    assert best.facts["hook"] == "blocks.19.hook_resid_post"


def test_under_another_name_the_format_must_be_declared(tmp_path: Path) -> None:
    folder = source(tmp_path / "source", "ae.pt")
    assert "deepseek_r1" not in {candidate.format for candidate in found(folder).candidates}
    assert all(candidate.needs for candidate in found(folder).candidates)
    assert dict(CHOSEN.files(["ae.pt"], "ae.pt")) == {"ae.pt": "ae.pt"}


@pytest.mark.parametrize(
    ("drop", "changes", "summary", "word"),
    [
        (("decoder.bias",), {}, "Missing tensor", "decoder.bias"),
        ((), {"log_jumprelu_threshold": torch.zeros(40)}, "Unknown tensor", "log_jumprelu_threshold"),
        ((), {"encoder.weight": torch.zeros(12, 40)}, "Wrong shape", "transposed"),
        ((), {"k": 3}, "Unknown entry", "k"),
        ((), {"model": torch.nn.Linear(2, 2)}, "Unsafe pickle", "torch.nn.modules.linear.Linear"),
    ],
)
def test_files_that_are_refused(drop: tuple[str, ...], changes: dict[str, Any], summary: str, word: str, tmp_path: Path) -> None:
    refused("deepseek_r1", source(tmp_path, NAME, drop, **changes), summary, word)

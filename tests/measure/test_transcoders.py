"""Transcoders are compared with the hook they predict, not with the one they read: numbers worked out by hand on the model."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from measure_world import D_MODEL, THIRD_PARTY, loss_of, make_sae, only

from saesync.errors import Diagnostic
from saesync.executors import validate
from saesync.jobs import MeasureSae

pytestmark = [pytest.mark.filterwarnings(note) for note in THIRD_PARTY]
READ, WRITE, WIDE = "blocks.1.ln2.hook_normalized", "blocks.1.hook_mlp_out", "blocks.1.mlp.hook_post"
KINDS = ("transcoder", "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder")


def made(world: SimpleNamespace, architecture: str, hook: str = READ, hook_out: str | None = WRITE, **fields: Any) -> MeasureSae:
    name = f"{architecture}-{hook_out}-{'-'.join(map(str, fields.values()))}"
    fields = {"d_out": D_MODEL, "apply_b_dec_to_input": False, **fields}
    folder = world.root / name
    if not folder.exists():
        make_sae(folder, architecture, hook, 3, **fields)
    return MeasureSae(f"rel/{name}", name, str(folder), hook, hook_out)


def run(world: SimpleNamespace, *saes: MeasureSae) -> Any:
    return validate.run(replace(world.job, saes=saes, cache=str(world.root / "transcoders")))


def by_hand(world: SimpleNamespace, asked: MeasureSae, hook_out: str) -> dict[str, float]:
    """Every metric from its definition, the whole model run each time."""
    from sae_lens import SAE

    (path,) = (world.root / "transcoders" / "tokens").rglob("tokens.npy")
    tokens = torch.from_numpy(np.load(path)).long()
    keep = tokens > 3
    sae: Any = SAE.load_from_disk(asked.folder)

    losses = partial(loss_of, world, tokens, keep, hook_out)

    with torch.no_grad():
        _, cache = world.loaded.module.run_with_cache(tokens)
        x, y = cache[asked.hook], cache[hook_out]
        output = sae(x)
        error = (y - output)[keep].double().square().sum(-1).mean()
        target = y[keep].double()
        variance = target.square().sum(-1).mean() - target.mean(0).square().sum()
        clean, ablated = losses(), losses(torch.zeros_like)
        spliced = losses(lambda value: torch.where(keep[..., None], output, value))
        found = {
            "explained_variance": 1 - error / variance,
            "mse": error,
            "l0": (sae.encode(x) != 0)[keep].double().sum(-1).mean(),
            "ce_loss_without_sae": clean,
            "ce_loss_with_sae": spliced,
            "ce_loss_with_ablation": ablated,
            "ce_loss_score": (ablated - spliced) / (ablated - clean),
        }
    return {name: float(value) for name, value in found.items()}


@pytest.mark.parametrize("architecture", KINDS)
def test_numbers_are_those_of_the_predicted_hook(world: SimpleNamespace, architecture: str) -> None:
    asked = made(world, architecture)
    found = run(world, asked, *only(world.job, "topk").saes).metrics
    for name, value in by_hand(world, asked, WRITE).items():
        assert found[asked.address][name]["value"] == pytest.approx(value, rel=2e-4, abs=2e-4), name
    alone = run(world, *only(world.job, "topk").saes).metrics["rel/topk"]
    assert found["rel/topk"] == alone  # company of another target changes nothing


def test_another_output_width_is_fine(world: SimpleNamespace) -> None:
    asked = made(world, "jumprelu_skip_transcoder", hook_out=WIDE, d_out=4 * D_MODEL)
    found = run(world, asked).metrics[asked.address]
    assert found["mse"]["value"] == pytest.approx(by_hand(world, asked, WIDE)["mse"], rel=1e-4)


def test_cfg_json_may_name_the_hook(world: SimpleNamespace) -> None:
    """What a manifest leaves out, a SAELens transcoder says itself."""
    said = made(world, "transcoder")
    asked = made(world, "transcoder", hook_out=None)
    path = Path(asked.folder, "cfg.json")
    cfg = json.loads(path.read_text())
    cfg["metadata"]["hook_name_out"] = WRITE
    path.write_text(json.dumps(cfg))
    assert run(world, asked).metrics[asked.address] == run(world, said).metrics[said.address]


@pytest.mark.parametrize(
    ("hook_out", "summary", "word"),
    [
        (None, "Needs hook_out", "`--hook-out`"),
        ("blocks.1.hook_mlp_oot", "Hook does not exist", "Did you mean 'blocks.1.hook_mlp_out'"),
        ("blocks.1.hook_mlp_in", "Hook never fires", "hook_out"),
        ("blocks.0.hook_mlp_out", "Hooks are in the wrong order", "comes before"),
        (WIDE, "SAE cannot be applied", f"{D_MODEL} numbers for an activation of {4 * D_MODEL}"),
    ],
)
def test_an_output_hook_that_does_not_fit_is_named(world: SimpleNamespace, hook_out: str | None, summary: str, word: str) -> None:
    asked = made(world, "skip_transcoder", hook_out=hook_out)
    result = run(world, asked, *only(world.job, "topk").saes)
    assert set(result.metrics) == {"rel/topk"}
    (found,) = (Diagnostic.from_json(entry) for entry in result.failures[asked.address])
    assert found.summary == summary
    assert word in found.detail
    assert asked.address not in found.detail or summary == "Needs hook_out", "who reports it names the SAE"
    assert found.key in (None, "hook_out")


def told(world: SimpleNamespace, name: str, **metadata: Any) -> MeasureSae:
    """A transcoder whose cfg.json says more of itself."""
    asked = made(world, "transcoder", neuronpedia_id=name)
    path = Path(asked.folder, "cfg.json")
    cfg = json.loads(path.read_text())
    cfg["metadata"] |= metadata
    path.write_text(json.dumps(cfg))
    return asked


def test_of_an_encoder_only_what_needs_no_reconstruction_is_measured(world: SimpleNamespace) -> None:
    asked, whole = told(world, "clt", reconstruction="invalid"), made(world, "transcoder")
    found = run(world, asked, whole).metrics
    assert found[asked.address] == {name: found[whole.address][name] for name in ("l0", "dead_features")}
    bound = replace(asked, require=("l0", "mse"))
    (wrong,) = (Diagnostic.from_json(entry) for entry in run(world, bound).failures[asked.address])
    assert (wrong.summary, "no mse" in wrong.detail) == ("Metric does not exist", True)
    assert run(world, replace(asked, require=("l0",))).metrics[asked.address].keys() == {"l0", "dead_features"}


def test_what_no_hook_yields_is_not_measured(world: SimpleNamespace) -> None:
    asked = told(world, "crosscoder", unhookable=True)
    (wrong,) = (Diagnostic.from_json(entry) for entry in run(world, asked).failures[asked.address])
    assert wrong.summary == "SAE cannot be hooked"
    assert "Remove `validate`" in wrong.detail

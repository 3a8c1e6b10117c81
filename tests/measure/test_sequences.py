"""A temporal SAE is measured on whole sequences and by its whole reconstruction: numbers worked out from stock SAELens."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from measure_world import CONTEXT, D_MODEL, D_SAE, THIRD_PARTY, loss_of, make_sae, only

from saesync.errors import Diagnostic, Refused
from saesync.executors import diagnose, validate
from saesync.jobs import DiagnoseJob, MeasureSae
from saesync.measure.saes import load_sae
from saesync.measure.statistics import Firing

pytestmark = [pytest.mark.filterwarnings(note) for note in THIRD_PARTY]
HOOK = "blocks.1.hook_resid_post"
FIELDS: dict[str, Any] = {
    "n_heads": 4, "n_attn_layers": 1, "bottleneck_factor": 2, "sae_diff_type": "topk", "kval_topk": 8,
    "activation_normalization_factor": 0.5, "normalize_activations": "constant_scalar_rescale", "apply_b_dec_to_input": True,
}  # fmt: skip


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def asked(world: SimpleNamespace, request: pytest.FixtureRequest) -> MeasureSae:
    name = f"temporal-{request.param}"
    make_sae(world.root / name, "temporal", HOOK, 5, tied_weights=request.param, **FIELDS)
    return MeasureSae(f"rel/{name}", name, str(world.root / name), HOOK)


def by_hand(world: SimpleNamespace, cache: Path, asked: MeasureSae) -> dict[str, float]:
    """Metrics from their definitions, one sequence at a time, the whole model run each time."""
    from sae_lens import SAE

    (path,) = (cache / "tokens").rglob("tokens.npy")
    tokens = torch.from_numpy(np.load(path)).long()
    keep = tokens > 3
    sae: Any = SAE.load_from_disk(asked.folder)

    losses = partial(loss_of, world, tokens, keep, HOOK)

    with torch.no_grad():
        _, cached = world.loaded.module.run_with_cache(tokens)
        x = cached[HOOK]
        output = torch.cat([sae(row[None]) for row in x])
        features = torch.cat([sae.encode(row[None]) for row in x])
        alone = sae.encode(x.reshape(-1, 1, D_MODEL)).reshape(features.shape)
        assert not torch.equal(alone != 0, features != 0)  # context matters here
        assert not keep[:, 1:].all()  # special tokens inside of sequences are context, too
        target, error = x[keep].double(), (x - output)[keep].double().square().sum(-1).mean()
        variance = target.square().sum(-1).mean() - target.mean(0).square().sum()
        clean, ablated = losses(), losses(torch.zeros_like)
        spliced = losses(lambda value: torch.where(keep[..., None], output, value))
    found = {
        "explained_variance": 1 - error / variance,
        "mse": error,
        "l0": (features != 0)[keep].double().sum(-1).mean(),
        "dead_features": 1 - (features != 0)[keep].any(0).double().mean(),
        "ce_loss_with_sae": spliced,
        "ce_loss_score": (ablated - spliced) / (ablated - clean),
    }
    return {name: float(value) for name, value in found.items()}


def test_numbers_are_those_of_whole_sequences(world: SimpleNamespace, asked: MeasureSae, tmp_path: Path) -> None:
    found = validate.run(replace(world.job, saes=(asked,), cache=str(tmp_path))).metrics[asked.address]
    for name, value in by_hand(world, tmp_path, asked).items():
        assert found[name]["value"] == pytest.approx(value, rel=2e-4, abs=2e-4), name


def test_company_and_the_size_of_batches_change_nothing(world: SimpleNamespace, asked: MeasureSae, tmp_path: Path) -> None:
    sae = load_sae(asked, torch.device("cpu"))
    x = torch.randn(6, CONTEXT, D_MODEL, generator=torch.Generator().manual_seed(1)) * 3
    keep = torch.rand(6, CONTEXT, generator=torch.Generator().manual_seed(2)) < 0.7
    cluster = torch.where(keep, torch.arange(6, dtype=torch.int32)[:, None], -1)
    at_once, in_turn = (Firing.never(D_SAE, x.device) for _ in range(2))
    with torch.no_grad():
        once, one_by_one = sae.coded(x, cluster, 1 << 24, at_once), sae.coded(x, cluster, 1, in_turn)
        expected = sae.sae(x)
        fired = ((sae.sae.encode(x) != 0) & keep[..., None]).any(1)
    assert torch.allclose(once.output, expected, atol=1e-5)
    assert torch.allclose(one_by_one.output, expected, atol=1e-5)
    assert torch.equal(once.active, one_by_one.active)
    assert torch.equal(at_once.first, in_turn.first)
    assert torch.equal(at_once.last, in_turn.last)
    assert torch.equal(at_once.first <= at_once.last, fired.any(0))
    assert torch.equal(at_once.first[fired.any(0)], fired.int().argmax(0)[fired.any(0)].int())
    job = replace(world.job, cache=str(tmp_path))
    together = validate.run(replace(job, saes=(asked, *only(world.job, "topk").saes))).metrics
    assert together[asked.address] == validate.run(replace(job, saes=(asked,))).metrics[asked.address]


def test_a_hook_of_another_width_is_named(world: SimpleNamespace, asked: MeasureSae) -> None:
    result = validate.run(replace(world.job, saes=(replace(asked, hook="blocks.1.mlp.hook_post"),)))
    (found,) = (Diagnostic.from_json(entry) for entry in result.failures[asked.address])
    assert found.summary == "Width does not fit the hook"


def test_its_flags_are_not_tried_one_by_one(world: SimpleNamespace, asked: MeasureSae) -> None:
    shared = {field: getattr(world.job, field) for field in DiagnoseJob.__dataclass_fields__ if hasattr(world.job, field)}
    job = DiagnoseJob(**shared, address=asked.address, folder=asked.folder, hook=HOOK)
    with pytest.raises(Refused, match="is temporal") as caught:
        diagnose.run(job)
    assert caught.value.diagnostics[0].summary == "Cannot be diagnosed"

"""Our numbers are SAELens's numbers: the same model object, the same tokens, every metric that both have."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from measure_world import CONTEXT, SAES, THIRD_PARTY

from saesync.executors import validate
from saesync.measure.metrics import METRICS

pytestmark = [pytest.mark.filterwarnings(note) for note in THIRD_PARTY]
SAME_NAME = {
    "l0": ("sparsity", "l0"),
    "explained_variance": ("reconstruction_quality", "explained_variance"),
    "mse": ("reconstruction_quality", "mse"),
    "cossim": ("reconstruction_quality", "cossim"),
    "l2_ratio": ("shrinkage", "l2_ratio"),
    "ce_loss_without_sae": ("model_performance_preservation", "ce_loss_without_sae"),
    "ce_loss_with_sae": ("model_performance_preservation", "ce_loss_with_sae"),
    "ce_loss_with_ablation": ("model_performance_preservation", "ce_loss_with_ablation"),
    "ce_loss_score": ("model_performance_preservation", "ce_loss_score"),
}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of this module alone: its tokens are the only ones there."""
    return tmp_path_factory.mktemp("agreement")


@pytest.fixture(scope="module")
def ours(world: SimpleNamespace, cache: Path) -> Any:
    return validate.run(replace(world.job, cache=str(cache)))


def theirs(world: SimpleNamespace, name: str, rows: np.ndarray[Any, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """``sae_lens.evals`` on the very rows, all metrics over all rows."""
    import datasets
    from sae_lens import SAE, ActivationsStore
    from sae_lens.evals import get_eval_everything_config, run_evals
    from sae_lens.training.activation_scaler import ActivationScaler

    sae = SAE.load_from_disk(world.root / name)
    dataset = datasets.Dataset.from_dict({"tokens": rows.tolist()})
    store = ActivationsStore.from_sae(
        world.loaded.module, sae, dataset, streaming=False, total_tokens=len(rows), context_size=CONTEXT
    )
    config = get_eval_everything_config(len(rows) // 2, n_eval_reconstruction_batches=2, n_eval_sparsity_variance_batches=2)
    return run_evals(sae, store, world.loaded.module, ActivationScaler(), config)


@pytest.fixture(scope="module")
def rows(cache: Path, ours: Any) -> np.ndarray[Any, Any]:
    found = list((cache / "tokens").rglob("tokens.npy"))
    assert len(found) == 1
    return np.load(found[0])


@pytest.mark.parametrize("name", SAES)
def test_every_shared_metric_agrees_with_sae_lens(world: SimpleNamespace, ours: Any, rows: Any, name: str) -> None:
    scalars, features = theirs(world, name, rows)
    found = ours.metrics[f"rel/{name}"]
    assert set(found) == set(METRICS)
    for metric, (group, theirs_name) in SAME_NAME.items():
        if metric != "ce_loss_score":
            assert found[metric]["value"] == pytest.approx(scalars[group][theirs_name], rel=2e-6, abs=2e-6), metric
    # SAELens takes the score of float32 losses: their rounding, over the difference they are divided by.
    losses = scalars["model_performance_preservation"]
    gap = abs(losses["ce_loss_with_ablation"] - losses["ce_loss_without_sae"])
    assert found["ce_loss_score"]["value"] == pytest.approx(losses["ce_loss_score"], abs=2e-6 * losses["ce_loss_with_sae"] / gap)
    density = np.array(features["feature_density"])
    assert found["dead_features"]["value"] == pytest.approx(float((density == 0).mean()), abs=1e-12)


def test_rows_are_those_of_sae_lens_activations_store(world: SimpleNamespace, rows: Any) -> None:
    import datasets
    from sae_lens import SAE, ActivationsStore

    texts = [json.loads(line)["text"] for line in Path(world.job.dataset).read_text().splitlines()]
    sae = SAE.load_from_disk(world.root / "topk")
    dataset = datasets.Dataset.from_dict({"text": texts})
    store = ActivationsStore.from_sae(world.loaded.module, sae, dataset, streaming=False, total_tokens=10, context_size=CONTEXT)
    assert np.array_equal(store.get_batch_tokens(len(rows)).numpy(), rows)
    assert (rows[:, 0] == 1).all()
    assert (rows[:, 1:] == 1).any()


def test_the_numbers_say_something(ours: Any) -> None:
    """The agreement above would be empty on SAEs and models that do nothing."""
    values = {name: {metric: entry["value"] for metric, entry in found.items()} for name, found in ours.metrics.items()}
    assert values["rel/topk"]["l0"] == pytest.approx(8, abs=0.5)
    assert 0.1 < values["rel/topk"]["dead_features"] < 0.9 or 0 < values["rel/topk-first"]["dead_features"] < 0.9
    losses = [
        (found["ce_loss_with_ablation"], found["ce_loss_with_sae"], found["ce_loss_without_sae"]) for found in values.values()
    ]
    assert all(len({round(loss, 3) for loss in three}) == 3 for three in losses)
    assert len({round(found["explained_variance"], 6) for found in values.values()}) == len(values)
    assert all(entry["stderr"] > 0 for entry in ours.metrics["rel/standard"].values())

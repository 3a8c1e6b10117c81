"""Standard errors are what other documents would change, also where a document fills many rows."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from measure_world import THIRD_PARTY, only

from saesync.executors import validate
from saesync.measure.clusters import FEWEST, MOST, clusters_of

pytestmark = [pytest.mark.filterwarnings(note) for note in THIRD_PARTY]
BOS, CONTEXT, ROWS = 1, 16, 240
METRICS = ("l0", "explained_variance", "mse", "cossim", "ce_loss_without_sae", "ce_loss_with_sae")


def corpus(path: Path, seed: int, length: int) -> Path:
    """Documents of about ``length`` words, each with few words of its own."""
    rng = random.Random(seed)
    lines = []
    for _ in range(ROWS * CONTEXT // length + 10):
        own = rng.sample(range(116), 6)
        lines.append(" ".join(f"w{rng.choice(own)}" for _ in range(rng.randint(length // 2, length * 3 // 2))))
    path.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    return path


@pytest.fixture(scope="module")
def drawn(world: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, float]]]:
    """The numbers of one SAE on many texts of the same kind: documents of six rows."""
    folder = tmp_path_factory.mktemp("texts")
    job = replace(only(world.job, "standard"), tokens=ROWS * CONTEXT, cache=str(folder / "cache"))
    texts = [corpus(folder / f"{seed}.jsonl", seed, 6 * CONTEXT) for seed in range(40)]
    return [validate.run(replace(job, dataset=str(text))).metrics["rel/standard"] for text in texts]


@pytest.mark.parametrize("name", METRICS)
def test_stderr_is_the_spread_over_other_documents(drawn: list[dict[str, dict[str, float]]], name: str) -> None:
    """Rows taken one by one would tell less than half of it."""
    spread = float(np.std([found[name]["value"] for found in drawn], ddof=1))
    told = float(np.mean([found[name]["stderr"] for found in drawn]))
    assert 0.7 * spread < told < 1.5 * spread


def rows_of(*lengths: int) -> np.ndarray[tuple[int, int], np.dtype[np.int32]]:
    """Rows of 4 tokens of documents of that many words, BOS between them."""
    flat = [token for length in lengths for token in (BOS, *[9] * length)]
    return np.array(flat[: len(flat) // 4 * 4], dtype=np.int32).reshape(-1, 4)


def test_rows_that_begin_in_one_document_are_one_cluster() -> None:
    found = clusters_of(rows_of(*[10] * 20), BOS)  # 11 tokens with BOS: 2.75 rows
    assert found[:10].tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3]
    assert found.dtype == np.int32


def test_many_documents_share_clusters_with_their_neighbours() -> None:
    found = clusters_of(rows_of(*[5] * 1000), BOS)
    assert found.max() == MOST - 1
    assert (np.diff(found) >= 0).all()
    sizes = np.bincount(found)
    assert sizes.max() <= sizes.min() + 6


@pytest.mark.parametrize("separator", [BOS, None])
def test_text_of_few_documents_is_cut_into_stretches(separator: int | None) -> None:
    found = clusters_of(rows_of(500, 300), separator)
    sizes = np.bincount(found)
    assert len(sizes) == FEWEST
    assert np.ptp(sizes) <= 1
    assert (np.diff(found) >= 0).all()


@pytest.mark.parametrize("rows", [0, 1, 3])
def test_few_rows_are_clusters_of_their_own(rows: int) -> None:
    assert clusters_of(rows_of(*[3] * rows)[:rows] if rows else np.empty((0, 4), np.int32), BOS).tolist() == list(range(rows))

"""Sums merge in any order; standard errors are those a bootstrap over sequences finds."""

from __future__ import annotations

import itertools

import pytest
import torch

from saesync.measure.statistics import CLUSTERS, Estimate, Tally, ce_loss_score, clusters_for, explained_variance, ratio


def sums(sequences: int, seed: int = 0, width: int = 5) -> dict[str, torch.Tensor]:
    """Per-sequence sums as measuring makes them: sequences differ in length, scale and mean."""
    generator = torch.Generator().manual_seed(seed)
    counts = torch.randint(5, 40, (sequences,), generator=generator)
    found: dict[str, list[torch.Tensor]] = {
        name: [] for name in ("count", "square", "total", "error", "clean", "spliced", "ablated")
    }
    for count in counts:
        x = torch.randn(int(count), width, generator=generator, dtype=torch.float64) + 2 + torch.randn(1, generator=generator)
        error = 0.4 * torch.randn(x.shape, generator=generator, dtype=torch.float64) * (1 + torch.rand(1, generator=generator))
        clean = 2 + torch.rand(1, generator=generator) + torch.rand(int(count), generator=generator)
        values = {
            "count": torch.ones(len(x)),
            "square": x.pow(2).sum(-1),
            "total": x,
            "error": error.pow(2).sum(-1),
            "clean": clean,
        }
        values |= {"spliced": clean + 0.3 * torch.rand(len(x), generator=generator), "ablated": clean + 2 + clean * 0.5}
        for name, value in values.items():
            found[name].append(value.to(torch.float64).sum(0))
    return {name: torch.stack(parts) for name, parts in found.items()}


def metrics(s: dict[str, torch.Tensor]) -> dict[str, Estimate]:
    return {
        "mse": ratio(s["error"], s["count"]),
        "explained_variance": explained_variance(s["error"], s["square"], s["total"], s["count"]),
        "ce_loss_score": ce_loss_score(s["ablated"], s["spliced"], s["clean"]),
    }


@pytest.mark.parametrize("name", ["mse", "explained_variance", "ce_loss_score"])
def test_stderr_is_that_of_a_bootstrap_over_sequences(name: str) -> None:
    s = sums(150)
    generator = torch.Generator().manual_seed(1)
    values = []
    for _ in range(1500):
        drawn = torch.randint(0, 150, (150,), generator=generator)
        values.append(metrics({key: value[drawn] for key, value in s.items()})[name].value)
    spread = float(torch.tensor(values, dtype=torch.float64).std())
    assert metrics(s)[name].stderr == pytest.approx(spread, rel=0.1)


@pytest.mark.parametrize("name", ["mse", "explained_variance", "ce_loss_score"])
def test_stderr_is_that_of_the_jackknife(name: str) -> None:
    """Leave-one-out differs from its linearisation by terms of order 1/m only."""
    s = sums(200, seed=3)
    left = torch.tensor([metrics({k: torch.cat([v[:i], v[i + 1 :]]) for k, v in s.items()})[name].value for i in range(200)])
    jackknife = float(((left - left.mean()).pow(2).sum() * 199 / 200).sqrt())
    assert metrics(s)[name].stderr == pytest.approx(jackknife, rel=0.03)


def test_shards_merge_to_the_same_numbers_in_any_order() -> None:
    s = sums(60)
    whole = Tally(60)
    whole.add(0, s)
    shards = []
    for first, last in ((0, 7), (7, 30), (30, 31), (31, 60)):
        shard = Tally(60)
        shard.add(first, {name: value[first:last] for name, value in s.items()})
        shards.append(shard)
    for order in itertools.permutations(shards):
        merged = order[0]
        for shard in order[1:]:
            merged = merged.merged(shard)
        assert merged.sums.keys() == whole.sums.keys()
        assert metrics(merged.sums) == metrics(whole.sums)
        assert all(torch.equal(merged[name], whole[name]) for name in s)


def test_more_sequences_than_clusters_are_dealt_out() -> None:
    s = sums(3 * CLUSTERS + 5)
    assert clusters_for(3 * CLUSTERS + 5) == CLUSTERS
    tally = Tally(CLUSTERS)
    for first in range(0, 3 * CLUSTERS + 5, 50):
        tally.add(first, {name: value[first : first + 50] for name, value in s.items()})
    one_by_one, dealt = metrics(s), metrics(tally.sums)
    for name, exact in one_by_one.items():
        assert dealt[name].value == pytest.approx(exact.value, rel=1e-12)
        assert dealt[name].stderr == pytest.approx(exact.stderr, rel=0.15)


def test_tallies_of_different_clusters_do_not_merge() -> None:
    with pytest.raises(ValueError, match="do not merge"):
        Tally(2).merged(Tally(3))


def test_one_sequence_has_no_stderr() -> None:
    assert ratio(torch.tensor([3.0]), torch.tensor([2.0])) == Estimate(1.5, None)


def test_constant_activations_are_explained_when_reconstructed() -> None:
    """SAELens's guard: without variance, a perfect reconstruction explains all, any other nothing."""
    count, total = torch.tensor([4.0, 4.0]), torch.full((2, 3), 4.0)
    square = torch.tensor([12.0, 12.0])
    assert explained_variance(torch.zeros(2), square, total, count).value == 1.0
    assert explained_variance(torch.ones(2), square, total, count).value == 0.0

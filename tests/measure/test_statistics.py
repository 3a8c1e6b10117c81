"""Sums merge in any order; standard errors are those a bootstrap over independent sequences finds."""

from __future__ import annotations

import itertools

import pytest
import torch

from saesync.measure.statistics import Estimate, Firing, Tally, ce_loss_score, explained_variance, ratio


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
    whole.add(torch.arange(60), s)
    shards = []
    for first, last in ((0, 7), (7, 30), (30, 31), (31, 60)):
        shard = Tally(60)
        shard.add(torch.arange(first, last), {name: value[first:last] for name, value in s.items()})
        shards.append(shard)
    for order in itertools.permutations(shards):
        merged = order[0]
        for shard in order[1:]:
            merged = merged.merged(shard)
        assert merged.sums.keys() == whole.sums.keys()
        assert metrics(merged.sums) == metrics(whole.sums)
        assert all(torch.equal(merged[name], whole[name]) for name in s)


def test_clusters_of_sequences_that_are_not_alike_tell_as_much() -> None:
    s = sums(600)
    tally, cluster = Tally(50), torch.arange(600) // 12
    for first in range(0, 600, 50):
        tally.add(cluster[first : first + 50], {name: value[first : first + 50] for name, value in s.items()})
    one_by_one, together = metrics(s), metrics(tally.sums)
    for name, exact in one_by_one.items():
        assert together[name].value == pytest.approx(exact.value, rel=1e-12)
        assert together[name].stderr == pytest.approx(exact.stderr, rel=0.2)


def fired(sequences: int, seed: int) -> torch.Tensor:
    """Which of 400 features fire in which sequences ``[sequences, 400]``: at all rates, and together where a topic is theirs."""
    generator = torch.Generator().manual_seed(seed)
    rates = torch.exp(torch.linspace(-9, 0, 400))
    topics = torch.randint(0, 8, (400,), generator=torch.Generator().manual_seed(0))
    of = torch.randint(0, 8, (sequences, 1), generator=generator)
    return torch.rand(sequences, 400, generator=generator) < rates * torch.where(topics == of, 4.0, 0.5)


def noted(hits: torch.Tensor, clusters: int) -> Firing:
    found = Firing.never(hits.shape[1], hits.device)
    for part in hits.nonzero().flip(0).split(97):  # in any order and any parts
        found.add(part[:, 1], (part[:, 0] % clusters).int())
    return found


def test_stderr_of_dead_features_is_what_other_texts_would_change() -> None:
    """Against the spread over fresh texts: never much too small, and at most half too large."""
    drawn = [noted(fired(100, seed), 100).dead(torch.ones(100)) for seed in range(1, 300)]
    spread = float(torch.tensor([one.value for one in drawn], dtype=torch.float64).std())
    told = float(torch.tensor([one.stderr for one in drawn], dtype=torch.float64).mean())
    assert 0.3 < drawn[0].value < 0.7
    assert 0.95 * spread < told < 1.5 * spread


def test_dead_features_leave_each_sequence_out_in_turn() -> None:
    hits = fired(60, 1)
    found = noted(hits, 60).dead(torch.full((60,), 7))
    left = torch.tensor([float((~torch.cat([hits[:i], hits[i + 1 :]]).any(0)).double().mean()) for i in range(60)])
    assert found.value == pytest.approx(float((~hits.any(0)).double().mean()), abs=1e-12)
    assert found.stderr == pytest.approx(float(((left - left.mean()).pow(2).sum() * 59 / 60).sqrt()), rel=1e-4)
    dealt = noted(hits, 20).dead(torch.full((20,), 21))
    assert dealt.value == found.value
    assert dealt.stderr == pytest.approx(found.stderr, rel=0.5)
    assert noted(hits[:1], 1).dead(torch.ones(1)).stderr is None
    assert Firing.never(5, hits.device).dead(torch.ones(3)) == Estimate(1.0, 0.0)


def test_dead_features_of_clusters_that_differ_in_size() -> None:
    """That a large cluster has more features of its own is no spread; one without tokens that count is none at all."""
    sizes = torch.tensor([1, 1, 2, 2, 4, 4, 8, 8, 16, 16, 30, 30, 0])
    cluster = torch.repeat_interleave(torch.arange(len(sizes)), sizes)
    drawn = []
    for seed in range(200):
        found = Firing.never(400, torch.device("cpu"))
        hit = fired(int(sizes.sum()), seed).nonzero()
        found.add(hit[:, 1], cluster[hit[:, 0]].int())
        drawn.append(found.dead(sizes))
    spread = float(torch.tensor([one.value for one in drawn], dtype=torch.float64).std())
    told = float(torch.tensor([one.stderr for one in drawn], dtype=torch.float64).mean())
    assert 0.8 * spread < told < 1.6 * spread


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

"""Measure many SAEs of one model on one set of token rows.

One clean pass of a batch serves every SAE: it gives the activations at all hooks and the clean loss. The zero ablation runs
once per hook. Then each SAE costs one encoding, one decoding and the blocks after its hook.

Definitions are those of ``sae_lens.evals`` 6.54:

- Positions whose input token is BOS, EOS, PAD, SEP or decoder start do not count. The loss at a position is that of the
  next token; it counts when the position does, so the last position never does.
- With the SAE, positions that do not count keep their activation; the ablation zeroes all positions.

A transcoder reads one hook and is compared with, put in place of, and ablated at another (``hook_out``), where sae_lens.evals
uses the hook it reads for all of them; a skip connection is part of its output. All it reads comes from the clean pass.

A temporal SAE reads whole sequences, special tokens included, and its reconstruction is all of it (``SAE.forward``), where
sae_lens.evals decodes its features alone; l0 and dead features are of these features.

Differences: the loss is taken in float32 whatever the model's dtype, sums in float64; and the cosine of a zero vector is 0
where SAELens has NaN for the whole metric.

An SAE's numbers do not depend on which others are measured with it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import torch
from torch.nn.functional import cross_entropy

from saesync.errors import Diagnostic, Missing, SaesyncError
from saesync.jobs import MeasureSae
from saesync.measure.checks import misfit, unknown_hook
from saesync.measure.clusters import Clusters
from saesync.measure.dataset import Tokens
from saesync.measure.devices import Limits, give_back, limits_for, out_of_memory, wide
from saesync.measure.metrics import OF_FEATURES
from saesync.measure.passes import LanguageModel, Route, Seen, layer_of
from saesync.measure.products import right_products
from saesync.measure.saes import LoadedSae, load_sae, weights_size
from saesync.measure.sites import Site
from saesync.measure.statistics import Estimate, Firing, Tally, ce_loss_score, explained_variance, ratio

Progress = Callable[[int, int], None]
T = TypeVar("T")
_SMALLER = 6  # times that batches are halved when memory runs out
_TINY_NORM = 1e-4  # SAELens divides by 1 where |x| is below it


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows ``first ...`` as ``tokens [batch, ctx]`` on the device; ``keep [batch, ctx]`` is True where a position counts, and
    ``kept`` is the same on the CPU; ``clusters [batch]``, on the CPU, are those of the rows, and ``cluster [batch, ctx]`` that of
    each position, -1 where it does not count."""

    first: int
    tokens: torch.Tensor
    keep: torch.Tensor
    kept: torch.Tensor
    clusters: torch.Tensor
    cluster: torch.Tensor


@dataclass(frozen=True)
class Measured:
    """Sums of one SAE, and where each of its features was non-zero."""

    tally: Tally
    firing: Firing


@dataclass(frozen=True)
class Outcome:
    """Estimates by address and metric; addresses that could not be measured are in ``failures`` alone."""

    metrics: dict[str, dict[str, Estimate]] = field(default_factory=dict)
    failures: dict[str, tuple[Diagnostic, ...]] = field(default_factory=dict)


class Engine:
    """Measures SAEs of ``model`` on ``rows [sequences, context]``. ``special`` are the token ids that do not count, ``clusters``
    (``clusters_of``) the rows that standard errors take for one; without them all are."""

    def __init__(
        self,
        model: LanguageModel,
        rows: Tokens,
        special: Iterable[int],
        progress: Progress | None = None,
        clusters: Clusters | None = None,
    ) -> None:
        self.model = model
        self.rows = rows
        self.special = torch.tensor(sorted(special), dtype=torch.int32)
        self._progress = progress or (lambda done, total: None)
        self._cluster = torch.zeros(len(rows), dtype=torch.int32) if clusters is None else torch.from_numpy(clusters)
        self.clusters = int(self._cluster.max()) + 1 if len(rows) else 1
        self._limit(limits_for(model.device))

    def _limit(self, limits: Limits) -> None:
        """Begin (again) with batches of a size."""
        self.limits = limits
        context = self.rows.shape[1]
        self._batch = max(1, min(limits.tokens // context, limits.logits // (context * self.model.vocab * 4)))
        self._clean = Tally(self.clusters)
        self._sites: dict[Site, Tally] = {}

    def fitting(self, work: Callable[[], T]) -> T:
        """``work()``, with products that are right; again, with smaller batches, while the device's memory does not suffice.

        Raises:
            Missing: it does not suffice for small batches either.
        """
        for _ in range(_SMALLER):
            try:
                with right_products(self.model.device):
                    return work()
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
            give_back(self.model.device)  # not before the error is gone, whose frames hold tensors
            half = max(1, min(self._batch, len(self.rows)) // 2) * self.rows.shape[1]
            self._limit(replace(self.limits.smaller(), tokens=half))
        raise Missing(
            "Not enough memory",
            f"Measuring does not fit on {self.model.device}, not even {self._batch} sequences of {self.rows.shape[1]} tokens at a"
            " time. Use a device with more memory, or a smaller context.",
        )

    @torch.no_grad()
    def run(self, wanted: Sequence[MeasureSae]) -> Outcome:
        """All metrics of all SAEs.

        Raises:
            Missing: no position counts, or the device's memory does not suffice.
        """
        outcome = Outcome()
        if not any(bool(kept[:, :-1].any()) for _, _, kept in self._read()):
            raise Missing("No tokens to measure on", "Every token of the dataset is a special one. Use another dataset.")
        ordered = sorted(wanted, key=lambda sae: (layer_of(sae.hook) or 0, sae.hook, sae.address))
        self.fitting(lambda: self._all(ordered, outcome))
        self._progress(self.rows.size, self.rows.size)
        return outcome

    def _all(self, ordered: Sequence[MeasureSae], outcome: Outcome) -> None:
        """Measure those that have neither numbers nor a failure yet."""
        left = [sae for sae in ordered if sae.address not in outcome.metrics and sae.address not in outcome.failures]
        finished = len(ordered) - len(left)
        for group in self._groups(left, outcome):
            size = len(group)
            self._group(group, outcome, finished / len(ordered), size / len(ordered))
            finished += size
            group.clear()  # or its weights would be held while the next group is loaded;
            give_back(self.model.device)  # a SAELens module refers to itself

    def batches(self) -> Iterator[Batch]:
        """All rows in order, in batches of a size that depends on model, context and device alone."""
        on = self.model.device
        for first, tokens, kept in self._read():
            ids = self._cluster[first : first + len(tokens)]
            each = torch.where(kept, ids[:, None], -1).to(on)
            yield Batch(first, tokens.to(on, torch.long), kept.to(on), kept, ids.long(), each)

    def _read(self) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
        """The same on the CPU: the first row's number, the tokens, and which of them count."""
        for first in range(0, len(self.rows), self._batch):
            tokens = torch.from_numpy(self.rows[first : first + self._batch])
            yield first, tokens, ~torch.isin(tokens, self.special)

    def _groups(self, wanted: Sequence[MeasureSae], outcome: Outcome) -> Iterator[list[LoadedSae]]:
        """As many SAEs at a time as the device may hold, with the activations they need."""
        group: list[LoadedSae] = []
        hooks: set[str] = set()
        held = 0
        for request in wanted:
            if request.hook not in self.model.points:
                outcome.failures[request.address] = (unknown_hook(self.model, request.hook),)
                continue
            # Weights are float32, and each site keeps its activations and a changed copy of them.
            size, width = weights_size(request)
            new = {request.hook, request.hook_out or request.hook} - hooks
            needed = size + len(new) * 2 * 4 * width * self._batch * self.rows.shape[1]
            if group and held + needed > self.limits.resident:
                yield group
                group, hooks, held = [], set(), 0
            try:
                group.append(load_sae(request, self.model.device))
            except SaesyncError as error:
                outcome.failures[request.address] = error.diagnostics
                continue
            if (wrong := self._unknown_target(group[-1])) is not None:
                outcome.failures[group.pop().address] = (wrong,)
                continue
            hooks |= {request.hook, group[-1].target.hook}
            held += needed
        if group:
            yield group

    def _unknown_target(self, sae: LoadedSae) -> Diagnostic | None:
        hook = sae.target.hook
        return None if hook in self.model.points else unknown_hook(self.model, hook, "hook_out")

    def _group(self, group: list[LoadedSae], outcome: Outcome, before: float, share: float) -> None:
        sound = self._sound(group, outcome)
        if not sound:
            return
        first = torch.from_numpy(self.rows[:1]).to(self.model.device, torch.long)
        routes = self.model.routes(first, frozenset(sae.target.hook for sae in sound))
        new = {sae.target for sae in sound} - self._sites.keys()
        self._sites.update({site: Tally(self.clusters) for site in new})
        measured = {sae.address: Measured(Tally(self.clusters), Firing.never(sae.d_sae, self.model.device)) for sae in sound}
        count_clean = not self._clean.sums
        for batch in self.batches():
            self._batch_of(batch, sound, routes, measured, new, count_clean)
            done = (batch.first + len(batch.tokens)) * self.rows.shape[1]
            self._progress(int(self.rows.size * before + done * share), self.rows.size)
        for sae in sound:
            estimates = self._estimates(sae.target, measured[sae.address])
            if not sae.reconstructs:
                estimates = {name: estimates[name] for name in OF_FEATURES}
            wrong = _not_numbers(sae, estimates)
            if wrong:
                outcome.failures[sae.address] = wrong
            else:
                outcome.metrics[sae.address] = estimates

    def _sound(self, group: Sequence[LoadedSae], outcome: Outcome) -> list[LoadedSae]:
        tokens = torch.from_numpy(self.rows[:1]).to(self.model.device, torch.long)
        _, seen = self.model.clean(tokens, _hooks(group))
        sound = []
        for sae in group:
            wrong = misfit(self.model, sae, tokens, seen, self.limits.dense)
            if wrong is None:
                sound.append(sae)
            else:
                outcome.failures[sae.address] = (wrong,)
        return sound

    def _batch_of(
        self,
        batch: Batch,
        group: Sequence[LoadedSae],
        routes: Mapping[str, Route],
        measured: Mapping[str, Measured],
        new: Iterable[Site],
        count_clean: bool,
    ) -> None:
        blocks = frozenset(route.start - 1 for route in routes.values() if route.start and not route.direct)
        logits, seen = self.model.clean(batch.tokens, _hooks(group), blocks)
        if count_clean:
            counted = {"ce": _losses(logits, batch), "ce_count": batch.kept[:, :-1].sum(1), "count": batch.kept.sum(1)}
            self._clean.add(batch.clusters, counted)
        del logits
        for site in new:
            self._site(batch, site, routes[site.hook], seen)
        for sae in group:
            self._sae(batch, sae, routes[sae.target.hook], seen, measured[sae.address])

    def _site(self, batch: Batch, site: Site, route: Route, seen: Seen) -> None:
        """What all SAEs with one target share: moments of it and the loss with it set to zero."""
        x = site.read(seen.hooks[site.hook])
        logits = self.model.changed(
            batch.tokens, site.hook, route, lambda raw: site.write(raw, torch.zeros_like(site.read(raw))), seen
        )
        sums = {**_moments(x, batch), "ce": _losses(logits, batch)}
        self._sites[site].add(batch.clusters, sums)

    def _sae(self, batch: Batch, sae: LoadedSae, route: Route, seen: Seen, into: Measured) -> None:
        site, keep = sae.target, batch.keep
        coded = sae.coded(sae.site.read(seen.hooks[sae.site.hook]), batch.cluster, self.limits.dense, into.firing)
        x = site.read(seen.hooks[site.hook])
        x, output = x.to(torch.promote_types(x.dtype, torch.float32)), coded.output
        precise = wide(x.device)
        norm_in = torch.linalg.vector_norm(x, dim=-1, dtype=precise)
        norm_out = torch.linalg.vector_norm(output, dim=-1, dtype=precise)
        product = norm_in * norm_out
        per_token = {
            "error": torch.linalg.vector_norm(x - output, dim=-1, dtype=precise).pow(2),
            "cossim": torch.where(product == 0, 0, (x * output).sum(-1, dtype=precise) / product),
            "l2_ratio": norm_out / torch.where(norm_in < _TINY_NORM, 1, norm_in),
            "l0": coded.active,
        }
        together = _summed(torch.stack([values.to(precise) for values in per_token.values()]), batch.kept)
        sums = dict(zip(per_token, together, strict=True))

        def spliced(raw: torch.Tensor) -> torch.Tensor:
            old = site.read(raw)
            return site.write(raw, torch.where(keep[..., None], output.to(raw.dtype), old))

        sums["ce"] = _losses(self.model.changed(batch.tokens, site.hook, route, spliced, seen), batch)
        into.tally.add(batch.clusters, sums)

    def _estimates(self, site: Site, measured: Measured) -> dict[str, Estimate]:
        clean, at, own = self._clean, self._sites[site], measured.tally
        n, n_ce = clean["count"], clean["ce_count"]
        return {
            "l0": ratio(own["l0"], n),
            "explained_variance": explained_variance(own["error"], at["square"], at["total"], n),
            "mse": ratio(own["error"], n),
            "cossim": ratio(own["cossim"], n),
            "l2_ratio": ratio(own["l2_ratio"], n),
            "ce_loss_without_sae": ratio(clean["ce"], n_ce),
            "ce_loss_with_sae": ratio(own["ce"], n_ce),
            "ce_loss_with_ablation": ratio(at["ce"], n_ce),
            "ce_loss_score": ce_loss_score(at["ce"], own["ce"], clean["ce"]),
            "dead_features": measured.firing.dead(n),
        }


def _hooks(group: Iterable[LoadedSae]) -> frozenset[str]:
    """All hooks these read and predict."""
    return frozenset(hook for sae in group for hook in (sae.site.hook, sae.target.hook))


def _moments(x: torch.Tensor, batch: Batch) -> dict[str, torch.Tensor]:
    """Per-sequence sums of |x|² ``[batch]`` and of x ``[batch, d_in]`` over the positions that count, both in float64: the
    variance is a small difference of large sums."""
    keep = batch.keep
    if wide(x.device) is not torch.float64:
        x, keep = x.to("cpu"), batch.kept
    squares = torch.linalg.vector_norm(x, dim=-1, dtype=torch.float64).pow(2)
    total = x.to(torch.promote_types(x.dtype, torch.float32)).masked_fill(~keep[..., None], 0).sum(1, dtype=torch.float64)
    return {"square": _summed(squares, batch.kept), "total": total}


def _summed(values: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """Per-sequence sums ``[..., batch]`` of ``values [..., batch, ctx]`` over the positions that count, in float64 on the CPU."""
    return values.to("cpu").to(torch.float64).masked_fill(~kept, 0).sum(-1)


def _losses(logits: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Per-sequence sums ``[batch]`` of the next token's cross-entropy, in nats, over the positions that count."""
    rows = [
        cross_entropy(row[:-1].to(torch.promote_types(row.dtype, torch.float32)), target[1:], reduction="none")
        for row, target in zip(logits, batch.tokens, strict=True)
    ]
    return _summed(torch.stack(rows), batch.kept[:, :-1])


def _not_numbers(sae: LoadedSae, estimates: Mapping[str, Estimate]) -> tuple[Diagnostic, ...]:
    """A diagnostic per metric that is not a finite number: JSON has no word for it, and no gate could judge it."""
    found = []
    for name, estimate in estimates.items():
        if math.isfinite(estimate.value) and math.isfinite(estimate.stderr or 0):
            continue
        why = (
            f"Setting {sae.target.hook!r} to zero does not change the model's loss, so there is nothing to compare with: "
            "does the model use this hook's value?"
            if name == "ce_loss_score" and math.isfinite(estimates["ce_loss_with_sae"].value)
            else "Look for NaN or infinite weights, and for activations too large for the model's dtype."
        )
        found.append(Diagnostic("Metric is not a number", f"{name} came out as {estimate.value}. {why}"))
    return tuple(found)

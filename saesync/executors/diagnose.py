"""Try an SAE at the hooks beside its own and with other flags, on real activations. Runs in a worker: no network, no tokens.

Rows with and without BOS hold the same text tokens, so that the two differ in nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING

from saesync.errors import Missing, Refused
from saesync.executors.validate import model_for, rows_for, separator_of, setting_of, versions
from saesync.jobs import DiagnoseJob, DiagnoseResult, MeasureSae

if TYPE_CHECKING:
    import torch

    from saesync.measure.engine import Batch, Engine
    from saesync.measure.passes import LanguageModel, Seen
    from saesync.measure.saes import LoadedSae
    from saesync.measure.semantics import Condition, Flags, Reading, Sums

Progress = Callable[[int, int], None]
_MOST_HOOKS = 12


def run(job: DiagnoseJob, progress: Progress | None = None) -> DiagnoseResult:
    """All trials, ranked, and what they say of the declared meaning. ``progress`` is told sequences.

    Raises:
        Missing: model, dataset, text or device is not here.
        Refused: the model or the SAE cannot be loaded, or the SAE does not fit its hook.
    """
    import torch

    from saesync.measure.findings import findings, ranked
    from saesync.measure.products import right_products
    from saesync.measure.semantics import Condition, Reading, trials

    model = model_for(job)
    sae = _loaded(job, model)
    engines = _engines(job, model)
    declared = Condition(job.hook, job.prepend_bos)
    with torch.no_grad(), right_products(model.device):
        first = torch.from_numpy(engines[job.prepend_bos].rows[:1]).to(model.device, torch.long)
        _require_fit(model, sae, first)
        reading = Reading(sae)
        hooks = _hooks(model, sae, first)
        sums: dict[Condition, Sums] = {}
        total, before = sum(len(engine.rows) for engine in engines.values()), 0
        for bos, engine in engines.items():
            told = None if progress is None else _shifted(progress, before, total)
            sums |= engine.fitting(partial(_measured, engine, bos, sae, reading, hooks, declared, told))
            before += len(engine.rows)
    found = trials(sums, (declared, reading.declared))
    counted = int(sums[declared].moments["count"].sum())
    if not counted:
        raise Missing("No tokens to look at", "Every token of the dataset is a special one. Use another dataset.")
    about = {**versions(), **setting_of(job, model), "hooks": hooks}
    said = [each.to_json() for each in findings(found)]
    return DiagnoseResult([trial.to_json() for trial in ranked(found)], said, counted, about)


def _loaded(job: DiagnoseJob, model: LanguageModel) -> LoadedSae:
    """The SAE, at hooks that the model has.

    Raises:
        Refused: it has not, or there is no reconstruction to compare.
    """
    from saesync.measure.checks import unknown_hook
    from saesync.measure.saes import load_sae

    for hook in (job.hook, *([job.hook_out] if job.hook_out else [])):
        if hook not in model.points:
            raise Refused.of([unknown_hook(model, hook)])
    sae = load_sae(MeasureSae(job.address, "", job.folder, job.hook, job.hook_out), model.device)
    if not sae.reconstructs:
        detail = f"{job.address} is the encoder of one layer of a cross-layer transcoder: there is no reconstruction to rank by."
        raise Refused("Nothing to compare", detail)
    return sae


def _require_fit(model: LanguageModel, sae: LoadedSae, first: torch.Tensor) -> None:
    """
    Raises:
        Refused: what is at the hooks is of another shape than the SAE.
    """
    from saesync.measure.checks import misfit

    _, seen = model.clean(first, frozenset({sae.site.hook, sae.target.hook}))
    wrong = misfit(model, sae, first, seen, 1 << 20)
    if wrong is not None:
        raise Refused.of([wrong])


def _shifted(progress: Progress, before: int, total: int) -> Callable[[int], None]:
    return lambda done: progress(before + done, total)


def _engines(job: DiagnoseJob, model: LanguageModel) -> dict[bool, Engine]:
    """Rows as declared and, where the tokenizer has a BOS, the same text the other way."""
    import numpy as np
    from sae_lens.util import get_special_token_ids

    from saesync.measure.clusters import clusters_of
    from saesync.measure.engine import Engine

    special = get_special_token_ids(model.tokenizer)
    rows = rows_for(job, model, -(-job.tokens // job.context), 1)
    both, clusters = {job.prepend_bos: rows}, clusters_of(rows, separator_of(model))
    bos = model.tokenizer.bos_token_id
    if job.prepend_bos:
        both[False] = np.ascontiguousarray(rows[:, 1:])
    elif bos is not None:
        room = model.longest is not None and rows.shape[1] >= model.longest
        both[False] = rows[:, :-1] if room else rows
        both[True] = np.concatenate([np.full((len(rows), 1), bos, rows.dtype), both[False]], axis=1)
    return {kind: Engine(model, np.ascontiguousarray(each), special, clusters=clusters) for kind, each in both.items()}


def _hooks(model: LanguageModel, sae: LoadedSae, first: torch.Tensor) -> list[str]:
    """The declared hook and its neighbours of the same width, each activation under one name."""
    import torch

    from saesync.measure.passes import layer_of
    from saesync.measure.semantics import neighbours

    near = neighbours(model.points, sae.site.hook, layer_of(sae.site.hook))
    _, seen = model.clean(first, frozenset({sae.site.hook, *near}))
    kept: dict[str, torch.Tensor] = {}
    for hook in (sae.site.hook, *near):
        x = _read(sae, seen, hook)
        if x is not None and not any(torch.equal(x, other) for other in kept.values()):
            kept[hook] = x
    return list(kept)[:_MOST_HOOKS]


def _read(sae: LoadedSae, seen: Seen, hook: str) -> torch.Tensor | None:
    """What the SAE would read at ``hook``, or None where that is of another shape."""
    raw = seen.hooks.get(hook)
    if raw is None or not raw.is_floating_point() or raw.ndim not in (3, 4) or (sae.site.head is not None and raw.ndim != 4):
        return None
    try:
        x = sae.site.read(raw)
    except IndexError:
        return None
    return x if x.ndim == 3 and x.shape[-1] == sae.d_in else None


def _measured(
    engine: Engine,
    bos: bool,
    sae: LoadedSae,
    reading: Reading,
    hooks: Iterable[str],
    declared: Condition,
    told: Callable[[int], None] | None,
) -> Mapping[Condition, Sums]:
    """Sums over all rows. The other choice of BOS is tried with the declared flags only: it is a matter of its own."""
    from saesync.measure.semantics import Condition

    variants = reading.variants if bos == declared.bos else (reading.declared,)
    sums: dict[Condition, Sums] = {}
    for batch in engine.batches():
        _, seen = engine.model.clean(batch.tokens, frozenset({*hooks, sae.target.hook}))
        for hook in hooks:
            _take(batch, engine.clusters, Condition(hook, bos), sae, reading, seen, variants, sums)
        if told is not None:
            told(batch.first + len(batch.tokens))
    return sums


def _take(
    batch: Batch,
    clusters: int,
    condition: Condition,
    sae: LoadedSae,
    reading: Reading,
    seen: Seen,
    variants: tuple[Flags, ...],
    sums: dict[Condition, Sums],
) -> None:
    from saesync.measure.semantics import Sums, add, scale_of
    from saesync.measure.statistics import Tally

    x = _read(sae, seen, condition.hook)
    if x is None:
        return
    y = sae.target.read(seen.hooks[sae.target.hook]) if reading.transcoder else x
    if condition not in sums:
        sums[condition] = Sums(scale_of(x, batch.keep), Tally(clusters))
    add(reading, sums[condition], batch, x, y, variants)

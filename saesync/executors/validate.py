"""Measure SAEs on their real model, and capture real activations for proofs. Runs in a worker: no network, no tokens.

Nothing heavy is imported until a job runs.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saesync.cache import Cache
from saesync.digest import digest_file, key_of
from saesync.errors import Diagnostic, Missing, Refused
from saesync.jobs import CaptureJob, CaptureResult, DiagnoseJob, MeasureJob, MeasureResult, TextJob
from saesync.measure.folder import check_context
from saesync.model import WEIGHTS_FILE

if TYPE_CHECKING:
    import torch

    from saesync.measure.dataset import Tokens
    from saesync.measure.engine import Engine
    from saesync.measure.passes import LanguageModel
    from saesync.measure.statistics import Estimate

Progress = Callable[[int, int], None]


def run(job: MeasureJob, progress: Progress | None = None) -> MeasureResult:
    """All metrics (``saesync.measure.metrics``) of the job's SAEs. ``progress`` is told tokens done and tokens in all.

    ``tokens`` is rounded up to whole sequences. SAEs that cannot be measured are in the result's ``failures``.

    Raises:
        Missing: model, dataset, text or device is not here.
        Refused: the model cannot be loaded, or a file cannot be read safely.
    """
    from sae_lens.util import get_special_token_ids

    from saesync.measure.clusters import clusters_of
    from saesync.measure.engine import Engine

    model = model_for(job)
    sequences = -(-job.tokens // job.context)
    rows = rows_for(job, model, sequences, None)
    clusters = clusters_of(rows, separator_of(model))
    outcome = Engine(model, rows, get_special_token_ids(model.tokenizer), progress, clusters).run(job.saes)
    about = {**versions(), **setting_of(job, model), "tokens": int(rows.size), "sequences": len(rows)}
    weights = {sae.address: sae.folder for sae in job.saes if sae.address in outcome.metrics}
    return MeasureResult(
        {address: {name: _plain(found) for name, found in named.items()} for address, named in outcome.metrics.items()},
        dict.fromkeys(outcome.metrics, about),
        {address: str(digest_file(Path(folder, WEIGHTS_FILE)).sha256) for address, folder in weights.items()},
        {address: [found.to_json() for found in diagnostics] for address, diagnostics in outcome.failures.items()},
    )


def capture(job: CaptureJob, progress: Progress | None = None) -> CaptureResult:
    """Write real activations at each hook: key "x", float32 ``[rows, d_in]``, at positions that count in measuring.

    Where the dataset is short, there are fewer rows, never none. Heads are joined. Hooks that the model does not have, or that
    never fire or give no activation per token, are in the result's ``failures``.

    Raises:
        Missing: model, dataset, text or device is not here.
        Refused: the model cannot be loaded, or a file cannot be read safely.
    """
    import torch
    from sae_lens.util import get_special_token_ids
    from safetensors.torch import save_file

    from saesync.measure.checks import unknown_hook
    from saesync.measure.engine import Engine

    model = model_for(job)
    failures = {hook: unknown_hook(model, hook) for hook in job.out if hook not in model.points}
    sequences = -(-job.rows // max(1, job.context - 2)) + 1
    rows = rows_for(job, model, sequences, 1)
    engine = Engine(model, rows, get_special_token_ids(model.tokenizer))
    hooks = frozenset(hook for hook in job.out if hook not in failures)
    found = engine.fitting(lambda: _activations(engine, hooks, job.rows, progress))
    failures.update({hook: _silent(hook) for hook in hooks - found.keys()})
    for hook, parts in found.items():
        x = torch.cat(parts)[: job.rows].contiguous()
        if not len(x):
            raise Missing("No tokens to measure on", "Every token of the dataset is a special one. Use another dataset.")
        Path(job.out[hook]).parent.mkdir(parents=True, exist_ok=True)
        save_file({"x": x}, job.out[hook])
    return CaptureResult({hook: [diagnostic.to_json()] for hook, diagnostic in failures.items()})


def _activations(
    engine: Engine, hooks: frozenset[str], wanted: int, progress: Progress | None
) -> Mapping[str, list[torch.Tensor]]:
    """Blocks ``[n, d_in]`` on the CPU, together at least ``wanted`` rows if there are as many, by hook. Hooks that do not fire,
    or give something else than an activation per token, are not in it."""
    import torch

    found: dict[str, list[torch.Tensor]] = {hook: [] for hook in hooks}
    done = 0
    with torch.no_grad():
        for batch in engine.batches():
            _, seen = engine.model.clean(batch.tokens, frozenset(found))
            whole = {hook for hook, raw in seen.hooks.items() if getattr(raw, "shape", ())[:2] == batch.tokens.shape}
            found = {hook: parts for hook, parts in found.items() if hook in whole}
            for hook, parts in found.items():
                raw = seen.hooks[hook]
                parts.append(raw.reshape(*raw.shape[:2], -1)[batch.keep].to("cpu", torch.float32))
            done += int(batch.kept.sum())
            if progress is not None:
                progress(min(done, wanted), wanted)
            if done >= wanted or not found:
                break
    return found


def _silent(hook: str) -> Diagnostic:
    detail = f"The hook {hook!r} exists, but the model as it is loaded gives no activation per token there. Use another hook."
    return Diagnostic("Hook never fires", detail)


_kept: dict[str, LanguageModel] = {}  # the model of the job before, by everything that decides what is loaded


def forget() -> None:
    """Let go of the model that is kept."""
    _kept.clear()
    gc.collect()


def _loaded(job: TextJob) -> LanguageModel:
    """The job's model. Loading one takes longer than measuring an SAE on it, so the last one is kept for the next job."""
    from saesync.measure.devices import device_for
    from saesync.measure.models import load_model

    device, folder = device_for(job.device), Path(job.model)
    stats = {path.name: path.stat() for path in folder.iterdir()} if folder.is_dir() else {}
    files = sorted((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats.items())
    key = key_of([job.model, files, job.loader, job.dtype, dict(job.kwargs), str(device), job.model_name])
    if key not in _kept:
        forget()  # its memory is needed now
        _kept[key] = load_model(folder, job.loader, job.dtype, job.kwargs, device, job.model_name)
    return _kept[key]


def model_for(job: TextJob) -> LanguageModel:
    """The job's model, computing without TF32.

    Raises:
        Missing: it is not here, or does not fit on the device.
        Refused: it cannot be loaded, or cannot read that much context.
    """
    import torch

    torch.set_float32_matmul_precision("highest")  # no TF32: it would blur what is measured
    torch.backends.cudnn.allow_tf32 = False  # nor in convolutions
    model = _loaded(job)
    check_context(job.context, model.longest)
    return model


def rows_for(job: TextJob, model: LanguageModel, sequences: int, least: int | None) -> Tokens:
    """The job's token rows, checked against the model's vocabulary."""
    from saesync.measure.dataset import Cutting, TextSpec, tokenised

    bos = model.tokenizer.bos_token_id
    if job.prepend_bos and bos is None:
        raise Refused(
            "Tokenizer has no BOS", "prepend_bos is set, but the model's tokenizer has no BOS token. Set `prepend_bos: false`."
        )
    spec = TextSpec(job.dataset, job.dataset_files, job.column, job.split)
    cutting = Cutting(job.context, bos if job.prepend_bos else None, separator_of(model))
    rows = tokenised(spec, cutting, sequences, model.token_ids, _tokenizer(job), Cache(Path(job.cache)), least)
    if rows.size and int(rows.max()) >= model.vocab:
        raise Refused(
            "Tokenizer does not fit the model",
            f"The tokenizer gives token id {int(rows.max()):,}, but the model has {model.vocab:,} embeddings. "
            "Use the tokenizer the model was trained with (and `prepend_bos: false` if it has no BOS).",
        )
    return rows


def separator_of(model: LanguageModel) -> int | None:
    """What stands between documents, as SAELens has it: BOS, or EOS where there is none."""
    bos: int | None = model.tokenizer.bos_token_id
    eos: int | None = model.tokenizer.eos_token_id
    return eos if bos is None else bos


def _tokenizer(job: TextJob) -> dict[str, Any]:
    """What decides how text becomes tokens: the files, and config.json, whose model_type chooses the tokenizer's class."""
    import transformers

    from saesync.measure.folder import TOKENIZER_FILES

    files = [Path(job.model, name) for name in (*TOKENIZER_FILES, "config.json")]
    digests = {path.name: digest_file(path).sha256 for path in files if path.is_file()}
    return {"files": key_of(digests), "loader": job.loader, "transformers": transformers.__version__}


def versions() -> dict[str, str]:
    """What is recorded of the libraries numbers were made with."""
    from importlib.metadata import version

    return {name.replace("-", "_"): version(name) for name in ("torch", "sae-lens", "transformer-lens", "transformers")}


def setting_of(job: MeasureJob | DiagnoseJob, model: LanguageModel) -> dict[str, Any]:
    """What is recorded of how the model was run."""
    from saesync.measure.devices import device_label

    bos = int(model.tokenizer.bos_token_id) if job.prepend_bos else None
    return {
        "device": device_label(model.device),
        "loader": job.loader,
        "dtype": job.dtype,
        "context": job.context,
        "bos_token_id": bos,
    }


def _plain(found: Estimate) -> dict[str, float]:
    return {"value": found.value} if found.stderr is None else {"value": found.value, "stderr": found.stderr}

"""What SAEs share: models, datasets, captured activations. Pure: keys and jobs from specs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saesync.apply.work import Work
from saesync.digest import key_of
from saesync.jobs import CaptureJob, MeasureJob, MeasureSae
from saesync.measure.metrics import ROWS_VERSION
from saesync.model import DatasetSpec, ModelSpec, ValidateSpec

_NOT_CAPTURED = ("validate.tokens", "metrics", "hook_out")  # parts of a measure_key that activations do not depend on


@dataclass(frozen=True, slots=True)
class Text:
    """A dataset on this disk; ``files`` are in order, empty for all that is there."""

    path: Path
    files: tuple[str, ...] = ()


def model_key(spec: ModelSpec) -> str:
    """Tells models apart: where they are, not how they are loaded."""
    return key_of([spec.name, spec.revision, spec.path])


def dataset_key(spec: ValidateSpec) -> str:
    """Tells datasets apart, with how much of them is needed."""
    return key_of([*_place(spec.dataset), spec.tokens])


def measure_group(work: Work) -> str:
    """SAEs of one group are measured with the same forward passes: all but hook and weights is equal."""
    spec = _validated(work)
    return key_of(
        [model_key(work.sae.model), _loading(work.sae.model), _place(spec.dataset), spec.tokens, spec.context, spec.prepend_bos]
    )


def capture_key(work: Work, rows: int) -> str:
    """Identity of the activations a proof uses."""
    measure = work.inputs.measure or {}
    kept = {name: value for name, value in measure.items() if name not in _NOT_CAPTURED}
    return key_of({"activations": kept, "rows": rows, "rows version": ROWS_VERSION})


def capture_group(work: Work) -> str:
    """Activations of one group are captured in one pass."""
    spec = _validated(work)
    return key_of([model_key(work.sae.model), _loading(work.sae.model), dataset_key(spec), spec.context, spec.prepend_bos])


def capture_job(work: Work, model: Path, text: Text, device: str, rows: int, out: Mapping[str, Path], cache: Path) -> CaptureJob:
    """Real activations at the hooks of ``out``; ``work`` is any SAE of the group."""
    return CaptureJob(**_common(work, model, text, device, cache), rows=rows, out={hook: str(path) for hook, path in out.items()})


def measure_job(works: Sequence[Work], model: Path, text: Text, device: str, cache: Path) -> MeasureJob:
    """All metrics of several SAEs of one group.

    Raises:
        ValueError: one of them has no weights on this disk yet.
    """
    saes = []
    for work in works:
        if work.folder is None or work.inputs.measure_key is None:
            raise ValueError(f"{work.address} cannot be measured yet")
        require = tuple(bound.metric for bound in _validated(work).require)
        saes.append(
            MeasureSae(work.address, work.inputs.measure_key, str(work.folder), work.sae.hook, work.sae.hook_out, require)
        )
    spec = _validated(works[0])
    return MeasureJob(**_common(works[0], model, text, device, cache), tokens=spec.tokens, saes=tuple(saes))


def _common(work: Work, model: Path, text: Text, device: str, cache: Path) -> dict[str, Any]:
    spec, loaded = _validated(work), work.sae.model
    return {
        "model": str(model),
        "model_name": loaded.name,
        "loader": loaded.loader,
        "dtype": loaded.dtype,
        "kwargs": dict(loaded.kwargs),
        "dataset": str(text.path),
        "dataset_files": text.files,
        "column": spec.dataset.column,
        "split": spec.dataset.split,
        "context": spec.context,
        "prepend_bos": spec.prepend_bos,
        "device": device,
        "cache": str(cache),
    }


def _validated(work: Work) -> ValidateSpec:
    if work.sae.validate is None:
        raise ValueError(f"{work.address} is not to be measured")
    return work.sae.validate


def _loading(spec: ModelSpec) -> list[Any]:
    return [spec.loader, spec.dtype, dict(spec.kwargs)]


def _place(spec: DatasetSpec) -> list[Any]:
    return [spec.repo, spec.path, spec.revision, spec.config, spec.split, spec.column]

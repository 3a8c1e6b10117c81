"""Making tiny sources, spoiling them, and converting them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from saesync import formats
from saesync.errors import Refused
from saesync.executors.convert import run
from saesync.formats._saelens_reference import write_example
from saesync.formats.base import SourceFiles
from saesync.jobs import AdoptJob, ConvertJob

HOOK = "blocks.0.hook_resid_post"
METADATA: Mapping[str, Any] = {
    "hook_name": HOOK,
    "hf_hook_name": "transformer.h.0",
    "model_name": "gpt2",
    "model_from_pretrained_kwargs": {"fold_ln": False},
    "neuronpedia_id": "gpt2-small/0-res-test",
    "prepend_bos": True,
}


def files_of(format_name: str, folder: Path, path: str = "") -> dict[str, str]:
    names = [found.relative_to(folder).as_posix() for found in sorted(folder.rglob("*")) if found.is_file()]
    return {name: str(folder / listed) for name, listed in formats.get(format_name).files(names, path).items()}


def source_files(format_name: str, folder: Path) -> SourceFiles:
    return SourceFiles({name: Path(path) for name, path in files_of(format_name, folder).items()})


def convert(
    format_name: str, folder: Path, out: Path, dtype: str = "float32", options: Mapping[str, Any] | None = None, **more: Any
) -> Mapping[str, Any]:
    """Convert and prove; returns the proof."""
    job = ConvertJob(
        "release/sae", format_name, dict(options or {}), files_of(format_name, folder), dtype, more.pop("cfg", {}),
        more.pop("metadata", METADATA), str(out), **more,
    )  # fmt: skip
    return run(job).proof


def adopt_job(format_name: str, folder: Path, published: Path) -> AdoptJob:
    return AdoptJob("release/sae", format_name, {}, files_of(format_name, folder), str(published))


def saelens(folder: Path, seed: int = 0, **changes: Any) -> Path:
    """A SAELens source; ``changes`` replace cfg fields."""
    write_example(folder, seed, **changes)
    return folder


def edit_cfg(folder: Path, drop: tuple[str, ...] = (), **changes: Any) -> Path:
    path = folder / "cfg.json"
    cfg = {**json.loads(path.read_text(encoding="utf-8")), **changes}
    path.write_text(json.dumps({key: value for key, value in cfg.items() if key not in drop}), encoding="utf-8")
    return folder


def edit_tensors(folder: Path, drop: tuple[str, ...] = (), **changes: Any) -> Path:
    path = folder / "sae_weights.safetensors"
    tensors = {**load_file(path), **changes}
    save_file({key: value.contiguous() for key, value in tensors.items() if key not in drop}, path)
    return folder


def refused(format_name: str, folder: Path, summary: str, *words: str, **more: Any) -> None:
    """Converting must be refused with this summary, and the detail must say these words."""
    with pytest.raises(Refused) as caught:
        convert(format_name, folder, folder / "out", **more)
    diagnostic = caught.value.diagnostics[0]
    assert diagnostic.summary == summary, str(caught.value)
    for word in words:
        assert word in diagnostic.detail

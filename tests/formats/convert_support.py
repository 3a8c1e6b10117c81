"""Making tiny sources, spoiling them, and converting them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from saesync import formats
from saesync.errors import Inexpressible, Refused
from saesync.executors.convert import run
from saesync.formats._saelens_reference import write_example
from saesync.formats.base import Format, SourceFiles
from saesync.jobs import AdoptJob, ConvertJob

HOOK = "blocks.0.hook_resid_post"
HOOK_OUT = "blocks.0.hook_mlp_out"
INEXPRESSIBLE = ("Cannot be expressed in SAELens", "Not a set of transcoders", "Several hooks")
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


@dataclass(frozen=True)
class Case:
    """A format, and one of the variants it has examples of ("" for a format that has one kind only)."""

    format: Format
    variant: str

    @property
    def name(self) -> str:
        return self.format.name

    def example(self, folder: Path, seed: int) -> Any:
        """Writes the example; returns its options."""
        example: Callable[..., Any] = self.format.example
        return example(folder, seed, self.variant) if self.variant else example(folder, seed)


def cases() -> list[Case]:
    found = formats.formats().values()
    return [Case(format_, variant) for format_ in found for variant in getattr(format_, "variants", ("",))]


def metadata_of(format_name: str, folder: Path, options: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a manifest would say: a transcoder's names the hook it predicts, and attention heads are at hook_z."""
    chosen = formats.get(format_name)
    weights = chosen.read(source_files(format_name, folder), formats.make_options(chosen, options))
    metadata = dict(METADATA)
    if "d_out" in weights.cfg:
        metadata["hook_name_out"] = HOOK_OUT
    if weights.cfg["reshape_activations"] == "hook_z":
        metadata["hook_name"] = "blocks.0.attn.hook_z"
    return metadata


def convert(
    format_name: str, folder: Path, out: Path, dtype: str = "float32", options: Mapping[str, Any] | None = None, **more: Any
) -> Mapping[str, Any]:
    """Convert and prove; returns the proof."""
    job = ConvertJob(
        "release/sae", format_name, dict(options or {}), files_of(format_name, folder), dtype, more.pop("cfg", {}),
        more.pop("metadata", METADATA), str(out), **more,
    )  # fmt: skip
    return run(job).proof


def activations(folder: Path, x: torch.Tensor) -> str:
    """Real activations ``x [n, d_in]``, as a file for ``convert``."""
    save_file({"x": x}, folder / "x.safetensors")
    return str(folder / "x.safetensors")


def adopt_job(format_name: str, folder: Path, published: Path, options: Mapping[str, Any] | None = None) -> AdoptJob:
    files = files_of(format_name, folder)
    return AdoptJob(
        "release/sae", format_name, dict(options or {}), files, str(published), "sae in acme/saes", "publish.huggingface"
    )


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
    assert isinstance(caught.value, Inexpressible) == (summary in INEXPRESSIBLE)
    assert not isinstance(caught.value, Inexpressible) or caught.value.said_by
    for word in words:
        assert word in diagnostic.detail

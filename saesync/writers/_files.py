"""From a ``Layout`` to files, in bounded memory and reproducibly."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from saesync.convert.writer import write_tensors
from saesync.digest import FileDigest, digest_bytes, digest_file
from saesync.errors import Refused
from saesync.formats._lazy import WIDTHS
from saesync.formats._open import open_tensors
from saesync.writers.base import Layout

Progress = Callable[[int, int], None]
_STAGE = ".tensors.safetensors"


def write_layout(layout: Layout, out: Path, dtype: str, progress: Progress | None = None) -> dict[str, FileDigest]:
    """Write the files of ``layout`` into folder ``out``; returns their digests by name.

    Raises:
        Refused: NaN or infinity in the source, a value that ``dtype`` cannot hold, or an unknown dtype.
        OSError: no space, no permission.
    """
    if dtype not in WIDTHS:
        raise Refused("Unknown dtype", f"dtype must be one of {', '.join(WIDTHS)}, not {dtype[:50]!r}.")
    out.mkdir(parents=True, exist_ok=True)
    kinds = stored_kinds(layout, dtype)
    path = out / layout.file
    if layout.file.endswith(".safetensors"):
        digests = {layout.file: write_tensors(layout.tensors, path, kinds, progress, layout.header)}
    else:
        digests = {layout.file: _write_torch(layout, path, kinds, progress)}
    for name, value in layout.sides.items():
        text = (json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n").encode()
        (out / name).write_bytes(text)
        digests[name] = digest_bytes(text)
    return digests


def stored_kinds(layout: Layout, dtype: str) -> dict[str, str]:
    """The type each tensor is stored in when the SAE's is ``dtype``."""
    wide = "float32" if WIDTHS[dtype] < WIDTHS["float32"] else dtype
    return {name: wide if name in layout.precise else dtype for name in layout.tensors}


def _write_torch(layout: Layout, path: Path, kinds: Mapping[str, str], progress: Progress | None) -> FileDigest:
    """A torch checkpoint of plain tensors. They are staged in a file and mapped, so that torch copies from file to file."""
    import torch

    stage = path.with_name(path.name + _STAGE)
    try:
        write_tensors(layout.tensors, stage, kinds, progress)
        staged = open_tensors(stage, stage.name).tensors
        state: dict[str, Any] = {name: staged[name].rows(0, staged[name].shape[0]) for name in layout.tensors}
        torch.save(state | {name: torch.tensor(value) for name, value in layout.numbers.items()}, path)
    finally:
        stage.unlink(missing_ok=True)
    path.chmod(0o644)
    return digest_file(path)

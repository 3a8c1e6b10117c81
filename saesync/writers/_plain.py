"""Pieces that the plain forward passes have in common. Files come through torch's and safetensors' own loaders."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saesync.formats._lazy import BLOCK_BYTES

if TYPE_CHECKING:
    import torch

State = Mapping[str, "torch.Tensor"]


def load(path: Path) -> State:
    """All tensors of a safetensors file, mapped."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as stored:
        return {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118  not a dict


def side(path: Path) -> dict[str, Any]:
    """A JSON side file."""
    found: dict[str, Any] = json.loads(path.read_bytes())
    return found


def linear(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """``x weightᵀ`` in float64, block by block of the rows of ``weight [out, in]``."""
    import torch

    out = torch.empty((len(x), weight.shape[0]), dtype=torch.float64)
    for part in _parts(weight.shape[0], weight.shape[1]):
        out[:, part] = x @ weight[part].double().T
    return out


def columns(features: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """``features weightᵀ`` in float64, block by block of the columns of ``weight [out, in]``."""
    return rows(features, weight.T)


def rows(features: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """``features weight`` in float64, block by block of the rows of ``weight [in, out]``."""
    out = features.new_zeros((len(features), weight.shape[1]))
    for part in _parts(weight.shape[0], weight.shape[1]):
        out += features[:, part] @ weight[part].double()
    return out


def largest(features: torch.Tensor, k: int) -> torch.Tensor:
    """The k largest of each row, the others 0."""
    top = features.topk(k, dim=-1)
    return features.new_zeros(features.shape).scatter_(-1, top.indices, top.values)


def _parts(length: int, width: int) -> Iterator[slice]:
    step = max(1, BLOCK_BYTES // (8 * width))
    return (slice(start, start + step) for start in range(0, length, step))

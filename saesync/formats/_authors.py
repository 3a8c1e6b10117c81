"""For references: stored tensors through torch's and safetensors' own loaders, and products in blocks of features, so that a
large file costs one block of memory. Nothing here is shared with what ``read`` uses to convert."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saesync.formats import _torchzip
from saesync.formats._bytes import LocalBytes
from saesync.formats._lazy import BLOCK_BYTES

if TYPE_CHECKING:
    import torch

State = Mapping[str, "torch.Tensor"]


def load(path: Path) -> Mapping[str, Any]:
    """What the file holds, mapped where its layout allows that.

    Raises:
        Refused: its pickle names more than tensors.
    """
    import torch
    from safetensors import safe_open

    if path.suffix == ".safetensors":
        with safe_open(path, framework="pt") as stored:
            return {tensor: stored.get_tensor(tensor) for tensor in stored.keys()}  # noqa: SIM118  not a dict
    _torchzip.require_safe(_torchzip.parse(LocalBytes(path), path.name), path.name)
    with path.open("rb") as stream:
        zipped = stream.read(2) == b"PK"  # only the zip layout can be mapped
    state: Mapping[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    return state


def up(x: torch.Tensor, weight: torch.Tensor, *, linear: bool) -> torch.Tensor:
    """``x [n, d_in]`` times the encoder: ``[d_sae, d_in]`` as torch's Linear stores it, or ``[d_in, d_sae]``. float64."""
    import torch

    out = torch.empty((len(x), weight.shape[0 if linear else 1]), dtype=torch.float64)
    for part in _parts(out.shape[1], x.shape[1]):
        out[:, part] = x @ (weight[part].double().T if linear else weight[:, part].double())
    return out


def down(features: torch.Tensor, weight: torch.Tensor, *, linear: bool) -> torch.Tensor:
    """``features [n, d_sae]`` times the decoder: ``[d_out, d_sae]`` as Linear stores it, or ``[d_sae, d_out]``. float64."""
    import torch

    out = torch.zeros((len(features), weight.shape[0 if linear else 1]), dtype=torch.float64)
    for part in _parts(features.shape[1], out.shape[1]):
        out += features[:, part] @ (weight[:, part].double().T if linear else weight[part].double())
    return out


def top_k(values: torch.Tensor, k: int) -> torch.Tensor:
    """The k largest of each row, the rest zero."""
    import torch

    top = values.topk(k, dim=-1)
    return torch.zeros_like(values).scatter_(-1, top.indices, top.values)


def _parts(length: int, width: int) -> Iterator[slice]:
    step = max(1, BLOCK_BYTES // (8 * width))
    return (slice(start, start + step) for start in range(0, length, step))


def random_state(seed: int, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    """Tensors for an example."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) / 4 for name, shape in shapes.items()}

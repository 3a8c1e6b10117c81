"""What reference passes share: checkpoints through their libraries' own loaders, not through saesync's readers, and products of
stored matrices in float64, in blocks of features."""

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
    """The state dict of a ``.safetensors`` or torch file, mapped where its layout allows that.

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


def encode(x: torch.Tensor, weight: torch.Tensor, linear: bool) -> torch.Tensor:
    """``x`` times an encoder's matrix: ``[d_sae, d_in]`` as torch's Linear stores it (``linear``), else ``[d_in, d_sae]``."""
    import torch

    out = torch.empty((len(x), weight.shape[0 if linear else 1]), dtype=torch.float64)
    for part in parts(out.shape[1], x.shape[1]):
        out[:, part] = x @ (weight[part].double().T if linear else weight[:, part].double())
    return out


def decode(features: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, *, linear: bool) -> torch.Tensor:
    """``features`` times a decoder's matrix, plus ``bias`` if any: ``[d_out, d_sae]`` (``linear``), else ``[d_sae, d_out]``."""
    import torch

    out = torch.zeros((len(features), weight.shape[0 if linear else 1]), dtype=torch.float64)
    if bias is not None:
        out += bias.double()
    for part in parts(features.shape[1], out.shape[1]):
        out += features[:, part] @ (weight[:, part].double().T if linear else weight[part].double())
    return out


def norms(weight: torch.Tensor, linear: bool) -> torch.Tensor:
    """L2 norm of each feature's decoder direction, for a decoder stored as in ``decode``. ``[d_sae]``"""
    import torch

    length, width = (weight.shape[1], weight.shape[0]) if linear else weight.shape
    blocks = ((weight[:, part].T if linear else weight[part]).double() for part in parts(length, width))
    return torch.cat([block.norm(dim=1) for block in blocks])


def top_k(h: torch.Tensor, k: int) -> torch.Tensor:
    """The ``k`` largest of each row; the others are 0."""
    import torch

    top = h.topk(k, dim=-1)
    return torch.zeros_like(h).scatter_(-1, top.indices, top.values)


def parts(length: int, width: int) -> Iterator[slice]:
    """Slices that cover ``length`` features of ``width`` float64 numbers each."""
    step = max(1, BLOCK_BYTES // (8 * width))
    return (slice(start, start + step) for start in range(0, length, step))


def random_state(seed: int, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    """Tensors for an example."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) / 4 for name, shape in shapes.items()}

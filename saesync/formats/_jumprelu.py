"""What both Gemma Scope formats share: JumpReLU parameters in SAELens's orientation, their checks, and the authors' forward
pass, read in blocks of rows by the file kinds' own libraries."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from saesync.errors import Refused
from saesync.formats._checks import require_tensors, widest
from saesync.formats._lazy import spans
from saesync.formats.base import TensorInfo

if TYPE_CHECKING:
    import torch

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Shape:
    """Dimensions of one set of parameters, and their widest dtype."""

    d_in: int
    d_sae: int
    d_out: int
    dtype: str


def shape_of(file: str, found: Mapping[str, TensorInfo], one_width: bool, extra: Shapes | None = None) -> Shape:
    """Dimensions as the biases and ``W_enc`` say; everything else must agree. ``one_width``: d_out must be d_in.

    Raises:
        Refused: missing or unknown tensors, wrong shapes.
    """
    lengths = {bias: found[bias].shape for bias in ("b_enc", "b_dec") if bias in found}
    d_sae, d_out = (lengths[bias][0] if len(lengths.get(bias, ())) == 1 else 0 for bias in ("b_enc", "b_dec"))
    encoder = found["W_enc"].shape if "W_enc" in found else ()
    d_in = d_out if one_width or len(encoder) != 2 else encoder[0]
    expected: dict[str, tuple[int, ...]] = {
        "W_enc": (d_in, d_sae),
        "W_dec": (d_sae, d_out),
        "b_enc": (d_sae,),
        "b_dec": (d_out,),
        "threshold": (d_sae,),
        **(extra or {}),
    }
    require_tensors(file, found, expected)
    if 0 in (d_in, d_sae, d_out):
        raise Refused("Wrong shape", f"{file}: an axis has length 0.")
    return Shape(d_in, d_sae, d_out, widest(found))


def cfg(shape: Shape, transcoder: bool, heads: bool = False, skip: bool = False) -> dict[str, Any]:
    """SAELens's fields. ``heads``: the input is attention heads, joined."""
    architecture = "jumprelu" + ("_skip" if skip else "") + ("_transcoder" if transcoder else "")
    return {
        "architecture": architecture,
        "d_in": shape.d_in,
        "d_sae": shape.d_sae,
        "apply_b_dec_to_input": False,
        "normalize_activations": "none",
        "reshape_activations": "hook_z" if heads else "none",
        **({"d_out": shape.d_out} if transcoder else {}),
    }


class Arrays(Protocol):
    """Parameters by lower-case name, read in blocks of rows: (first row, block as stored)."""

    def blocks(self, name: str) -> Iterator[tuple[int, torch.Tensor]]:
        """Blocks of rows of a matrix or vector, in order."""
        ...


@dataclass(frozen=True, slots=True)
class NpzArrays:
    """Arrays of an .npz file, through zipfile and numpy's own header parser."""

    path: Path

    def blocks(self, name: str) -> Iterator[tuple[int, torch.Tensor]]:
        """See ``Arrays``."""
        import numpy as np
        import torch

        with zipfile.ZipFile(self.path) as archive:
            (member,) = (entry for entry in archive.namelist() if entry.removesuffix(".npy").lower() == name)
            with archive.open(member) as stream:
                version = np.lib.format.read_magic(stream)
                reader = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
                shape, by_columns, dtype = reader(stream)
                if by_columns:  # rows do not lie together
                    with np.load(self.path, allow_pickle=False) as stored:
                        yield 0, torch.from_numpy(np.ascontiguousarray(stored[member.removesuffix(".npy")]))
                    return
                width = int(np.prod(shape[1:], dtype=np.int64)) * dtype.itemsize
                for start, stop in spans(shape[0], width):
                    data = bytearray(stream.read((stop - start) * width))
                    yield start, torch.from_numpy(np.frombuffer(data, dtype).reshape(stop - start, *shape[1:]))


@dataclass(frozen=True, slots=True)
class SafetensorsArrays:
    """Tensors of a .safetensors file, through the safetensors library."""

    path: Path

    def blocks(self, name: str) -> Iterator[tuple[int, torch.Tensor]]:
        """See ``Arrays``."""
        from safetensors import safe_open

        with safe_open(self.path, framework="pt") as stored:
            tensor = stored.get_slice(name)
            length, *rest = tensor.get_shape()
            for start, stop in spans(length, 8 * (rest[0] if rest else 1)):
                yield start, tensor[start:stop]


def forward(arrays: Arrays, x: torch.Tensor, skip: str | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """``f = relu(pre) * (pre > threshold)`` with ``pre = x w_enc + b_enc``, and ``f w_dec + b_dec``, in float64.

    ``skip`` names a matrix ``[d_in, d_out]`` by which the input is added to the output.
    """
    import torch

    pre = _vector(arrays, "b_enc").repeat(len(x), 1)
    for start, block in arrays.blocks("w_enc"):
        pre += x[:, start : start + len(block)] @ block.double()
    features = torch.relu(pre) * (pre > _vector(arrays, "threshold"))
    output = _vector(arrays, "b_dec").repeat(len(x), 1)
    for start, block in arrays.blocks("w_dec"):
        output += features[:, start : start + len(block)] @ block.double()
    if skip is not None:
        for start, block in arrays.blocks(skip):
            output += x[:, start : start + len(block)] @ block.double()
    return features, output


def _vector(arrays: Arrays, name: str) -> torch.Tensor:
    import torch

    return torch.cat([block.double() for _, block in arrays.blocks(name)])


def random_parameters(seed: int, d_out: int) -> dict[str, torch.Tensor]:
    """Parameters of a tiny model with d_in 12 and d_sae 40; some thresholds are negative, where relu decides alone."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    shapes = {"W_enc": (12, 40), "W_dec": (40, d_out), "b_enc": (40,), "b_dec": (d_out,), "threshold": (40,)}
    t = {name: torch.randn(shape, generator=generator) / 4 for name, shape in shapes.items()}
    return t | {"threshold": t["threshold"].abs() * torch.where(torch.arange(40) < 4, -1, 1)}

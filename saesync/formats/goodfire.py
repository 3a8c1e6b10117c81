"""Goodfire's ReLU SAEs: one checkpoint with two Linear layers, ``encoder_linear`` and ``decoder_linear``.

Authors' forward pass: ``f = relu(encoder_linear(x))``, ``reconstruction = decoder_linear(f)``: no bias is subtracted from the
input and nothing is normalised. Linear stores its matrix as ``[out, in]``, so both are transposed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saesync.errors import Refused
from saesync.formats import _safetensors, _torchzip
from saesync.formats._authors import decode, encode, load
from saesync.formats._bytes import LocalBytes
from saesync.formats._checks import require_tensors
from saesync.formats._lazy import Extent, Stored, Transposed, map_file
from saesync.formats._pickle import ALLOWED
from saesync.formats.base import Candidate, Headers, LazyTensor, SourceFiles, TensorInfo, Weights

if TYPE_CHECKING:
    import torch

SUFFIXES = (".pth", ".pt", ".safetensors")
ENCODER, DECODER = "encoder_linear.weight", "decoder_linear.weight"
ENCODER_BIAS, DECODER_BIAS = "encoder_linear.bias", "decoder_linear.bias"
_NAME = re.compile(r"(?P<model>Llama-[\w.-]+?)-SAE-l(?P<layer>\d+)", re.ASCII)


@dataclass(frozen=True, slots=True)
class GoodfireOptions:
    """The files say everything."""


class Goodfire:
    """See the module's docstring."""

    name = "goodfire"
    version = 1
    summary = "Goodfire checkpoints: encoder_linear and decoder_linear in one .pth, .pt or .safetensors file"
    Options: type[Any] = GoodfireOptions

    def files(self, names: Sequence[str], path: str) -> Mapping[str, str]:
        """The file ``path``, or the only weights file directly in folder ``path``."""
        chosen = path.rstrip("/")
        if chosen in names:
            found = [chosen] if chosen.endswith(SUFFIXES) else []
        else:
            prefix = f"{chosen}/" if chosen else ""
            inside = (name for name in names if name.startswith(prefix) and "/" not in name[len(prefix) :])
            found = sorted(name for name in inside if name.endswith(SUFFIXES))
        if len(found) != 1:
            what = f"{len(found)} of them" if found else "none"
            raise Refused("Missing file", f"A Goodfire SAE is one {', '.join(SUFFIXES)} file; {path or 'the root'} has {what}.")
        return {found[0].rsplit("/", 1)[-1]: found[0]}

    def sniff(self, headers: Headers) -> Candidate | None:
        """Certain when the four tensors are there and fit each other."""
        for file, tensors in headers.tensors.items():
            if not {ENCODER, DECODER} <= set(tensors):
                continue
            unsafe = tuple(name for name in headers.globals.get(file, ()) if name not in ALLOWED)
            if unsafe:
                return Candidate(self.name, 0.9, refusal=f"{file} {_torchzip.unsafe_detail(unsafe)}")
            try:
                d_in, d_sae = _dimensions(file, tensors)
            except Refused as refusal:
                return Candidate(self.name, 0.9, refusal=refusal.diagnostics[0].detail)
            facts = {"architecture": "standard", "d_in": d_in, "d_sae": d_sae, "dtype": tensors[ENCODER].dtype}
            if match := _NAME.match(file):
                facts |= {"hook": f"blocks.{int(match['layer'])}.hook_resid_post", "model": f"meta-llama/{match['model']}"}
            return Candidate(self.name, 1.0, facts)
        return None

    def read(self, files: SourceFiles, options: GoodfireOptions) -> Weights:
        """See ``Format.read``."""
        ((name, path),) = files.paths.items()
        extents = _extents(name, path)
        d_in, d_sae = _dimensions(name, {tensor: extent.info for tensor, extent in extents.items()})
        buffer = map_file(path)
        cfg = {
            "architecture": "standard",
            "d_in": d_in,
            "d_sae": d_sae,
            "apply_b_dec_to_input": False,
            "normalize_activations": "none",
            "reshape_activations": "none",
        }
        tensors: dict[str, LazyTensor] = {
            "W_enc": Transposed(Stored(buffer, extents[ENCODER])),
            "W_dec": Transposed(Stored(buffer, extents[DECODER])),
            "b_enc": Stored(buffer, extents[ENCODER_BIAS]),
            "b_dec": Stored(buffer, extents[DECODER_BIAS]),
        }
        return Weights(cfg, tensors)

    def reference(self, files: SourceFiles, options: GoodfireOptions, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See ``Format.reference``. Tensors come through torch's and safetensors' own loaders, not through ``read``."""
        ((_, path),) = files.paths.items()
        t = load(path)
        features = (encode(x.double(), t[ENCODER], linear=True) + t[ENCODER_BIAS].double()).relu()
        return features, decode(features, t[DECODER], t[DECODER_BIAS], linear=True)

    def example(self, folder: Path, seed: int) -> GoodfireOptions:
        """A tiny ``.pth`` with d_in 12 and d_sae 40."""
        import torch

        generator = torch.Generator().manual_seed(seed)
        shapes = {ENCODER: (40, 12), ENCODER_BIAS: (40,), DECODER: (12, 40), DECODER_BIAS: (12,)}
        folder.mkdir(parents=True, exist_ok=True)
        state = {name: torch.randn(shape, generator=generator) / 4 for name, shape in shapes.items()}
        torch.save(state, folder / "Tiny-SAE-l1.pth")
        return GoodfireOptions()


FORMAT = Goodfire()


def _extents(name: str, path: Path) -> Mapping[str, Extent]:
    if name.endswith(".safetensors"):
        return _safetensors.parse(LocalBytes(path), name)
    file = _torchzip.parse(LocalBytes(path), name, locate=True)
    _torchzip.require_safe(file, name)
    if file.others:
        raise Refused("Unknown entry", f"{name} holds {file.others[0]!r}, which is no tensor. Is the format right?")
    return file.extents


def _dimensions(name: str, found: Mapping[str, TensorInfo]) -> tuple[int, int]:
    """d_in and d_sae, as the biases say; the matrices must agree."""
    biases = {bias: found[bias].shape for bias in (ENCODER_BIAS, DECODER_BIAS) if bias in found}
    if len(biases) == 2 and all(len(shape) == 1 for shape in biases.values()):
        d_sae, d_in = biases[ENCODER_BIAS][0], biases[DECODER_BIAS][0]
    else:
        d_sae, d_in = found[ENCODER].shape if ENCODER in found and len(found[ENCODER].shape) == 2 else (0, 0)
    expected = {ENCODER: (d_sae, d_in), ENCODER_BIAS: (d_sae,), DECODER: (d_in, d_sae), DECODER_BIAS: (d_in,)}
    require_tensors(name, found, expected)
    if 0 in (d_in, d_sae):
        raise Refused("Wrong shape", f"{name}: an axis has length 0.")
    return d_in, d_sae

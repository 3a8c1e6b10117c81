"""Cross-layer transcoders of Gemma Scope 2 (Google DeepMind, 2025): ``params_layer_{i}.safetensors``, one file per layer. One
layer is read, for its features.

Authors' forward pass (as circuit-tracer, commit b00048e, and SAELens 6.54 read the files): ``f_i = h (h > threshold)`` of
``h = relu(x_i w_enc + b_enc)``; layer m gets ``f_i w_dec[:, m]`` from every i <= m, then ``b_dec``. ``w_dec`` is
``[d_sae, layers, d_out]``; its slices before layer i belong to no function and are left out. ``affine_skip_connection`` carries
the layer's own input to its own output.

As in ``clt``, the result is an encoder whose ``reconstruction`` is marked ``invalid``: ``W_dec`` is the sum of all that its
features write.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saesync.errors import Refused
from saesync.formats import _dense, _jumprelu
from saesync.formats._authors import load
from saesync.formats._checks import require_tensors, widest
from saesync.formats._cross_layer import INVALID, Written, write_sum
from saesync.formats._jumprelu import Shape
from saesync.formats._lazy import Transposed
from saesync.formats._open import only, open_tensors
from saesync.formats.base import Candidate, Headers, LazyTensor, SetPart, SourceFiles, TensorInfo, Weights

if TYPE_CHECKING:
    import torch

SKIP = "affine_skip_connection"
_FILE = re.compile(r"params_layer_(\d+)\.safetensors", re.ASCII)


@dataclass(frozen=True, slots=True)
class GemmaScope2CltOptions:
    """Nothing to declare: the layer stands in the file's name."""


class GemmaScope2Clt:
    """See the module's docstring."""

    name = "gemma_scope_2_clt"
    version = 1
    summary = "Cross-layer transcoders of Gemma Scope 2: one layer's encoder; its reconstruction is marked invalid"
    Options: type[Any] = GemmaScope2CltOptions
    variants = ("plain", "affine")
    conversion_func = "gemma_3"

    def files(self, names: Sequence[str], path: str) -> Mapping[str, str]:
        """The file params_layer_i.safetensors at ``path``, or the only one in that folder."""
        found = only(names, path, _FILE.fullmatch, "A layer of a cross-layer transcoder is one file params_layer_i.safetensors")
        return {found.rsplit("/", 1)[-1]: found}

    def sniff(self, headers: Headers) -> Candidate | None:
        """Certain by the file's name and the decoder's three axes."""
        for file, tensors in headers.tensors.items():
            if _FILE.fullmatch(file) is None or len(tensors["w_dec"].shape if "w_dec" in tensors else ()) != 3:
                continue
            try:
                shape = _measure(file, tensors)
            except Refused as refusal:
                return Candidate(self.name, 0.9, refusal=_dense.reason(refusal))
            cfg = _jumprelu.cfg(shape, transcoder=True, skip=SKIP in tensors)
            facts = {"architecture": cfg["architecture"], "d_in": shape.d_in, "d_sae": shape.d_sae, "dtype": shape.dtype}
            return Candidate(self.name, 1.0, facts | INVALID)
        return None

    def part_of_set(self, headers: Headers) -> SetPart | None:
        """One layer. Its decoder has a slice for every layer there is."""
        for file, tensors in headers.tensors.items():
            if _FILE.fullmatch(file) is not None and "w_dec" in tensors:
                return SetPart(_layer(file), tensors["w_dec"].shape[1])
        return None

    def read(self, files: SourceFiles, options: GemmaScope2CltOptions) -> Weights:
        """See ``Format.read``."""
        ((file, path),) = files.paths.items()
        opened = open_tensors(path, file)
        shape, t = _measure(file, opened.infos), opened.tensors
        tensors: dict[str, LazyTensor] = {
            "W_enc": t["w_enc"],
            "W_dec": Written(t["w_dec"], _layer(file)),
            "b_enc": t["b_enc"],
            "b_dec": t["b_dec"],
            "threshold": t["threshold"],
        }
        if SKIP in t:
            tensors["W_skip"] = Transposed(t[SKIP])
        return Weights(_jumprelu.cfg(shape, transcoder=True, skip=SKIP in t), tensors, dict(INVALID))

    def reference(self, files: SourceFiles, options: GemmaScope2CltOptions, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See ``Format.reference``. The output is the sum of all that this layer's features write, bias and skip."""
        ((file, path),) = files.paths.items()
        t, x = load(path), x.double()
        pre = t["b_enc"].double() + x @ t["w_enc"].double()
        features = pre.relu() * (pre > t["threshold"].double())
        output = write_sum(features, t["w_dec"], _layer(file)) + t["b_dec"].double()
        return features, output + x @ t[SKIP].double() if SKIP in t else output

    def example(self, folder: Path, seed: int, variant: str = "plain") -> GemmaScope2CltOptions:
        """Layer 1 of a tiny one of four layers, from 12 to 9."""
        import torch
        from safetensors.torch import save_file

        generator = torch.Generator().manual_seed(seed + 1)
        t = {name.lower(): value for name, value in _jumprelu.random_parameters(seed, 9).items()}
        t["w_dec"] = torch.randn((40, 4, 9), generator=generator) / 4
        if variant == "affine":
            t[SKIP] = torch.randn((12, 9), generator=generator) / 4
        folder.mkdir(parents=True, exist_ok=True)
        save_file(t, folder / "params_layer_1.safetensors")
        return GemmaScope2CltOptions()


FORMAT = GemmaScope2Clt()


def _layer(file: str) -> int:
    match = _FILE.fullmatch(file)
    if match is None:
        raise Refused("Not a layer of a cross-layer transcoder", f"{file}: such a file is named params_layer_i.safetensors.")
    return int(match[1])


def _measure(file: str, found: Mapping[str, TensorInfo]) -> Shape:
    """Dimensions as encoder and biases say; everything else must agree.

    Raises:
        Refused: missing or unknown tensors, wrong shapes, or a layer that the decoder does not reach.
    """
    d_sae, d_out = (found[name].shape[0] if name in found and len(found[name].shape) == 1 else 0 for name in ("b_enc", "b_dec"))
    d_in = found["w_enc"].shape[0] if "w_enc" in found and len(found["w_enc"].shape) == 2 else 0
    layers = found["w_dec"].shape[1] if "w_dec" in found and len(found["w_dec"].shape) == 3 else 0
    shapes: dict[str, tuple[int, ...]] = {"w_enc": (d_in, d_sae), "w_dec": (d_sae, layers, d_out), "b_enc": (d_sae,)}
    shapes |= {"b_dec": (d_out,), "threshold": (d_sae,)} | ({SKIP: (d_in, d_out)} if SKIP in found else {})
    require_tensors(file, found, shapes)
    if 0 in (d_in, d_sae, d_out):
        raise Refused("Wrong shape", f"{file}: an axis has length 0.")
    if _layer(file) >= layers:
        raise Refused("Wrong shape", f"{file}: w_dec has {layers} layers, so there is no layer {_layer(file)} in it.")
    return Shape(d_in, d_sae, d_out, widest(found))

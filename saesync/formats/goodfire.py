"""Goodfire's SAEs: one checkpoint with two Linear layers, ``encoder_linear`` and ``decoder_linear``, or ``decoder`` in TopK ones.

Authors' forward pass: ``f = relu(encoder_linear(x))``, ``reconstruction = decoder_linear(f)``: no bias is subtracted from the
input and nothing is normalised. Linear stores its matrix as ``[out, in]``, so both are transposed.

TopK (the hackathon's ``topk_sae_l15_exp16_k32.pt``): ``f`` is the k largest of ``encoder_linear(x)``, then relu;
``reconstruction = decoder(f)``. k stands in the file's name alone and must be declared. A decoder without a bias has none.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saesync.errors import Refused
from saesync.formats import _dense
from saesync.formats._authors import decode, encode, load, random_state, top_k
from saesync.formats._dense import LINEAR, Layout
from saesync.formats._lazy import Filled
from saesync.formats._open import beside, only, open_tensors
from saesync.formats.base import Candidate, Headers, SourceFiles, Weights

if TYPE_CHECKING:
    import torch

SUFFIXES = (".pth", ".pt", ".safetensors")
ENCODER, DECODER = "encoder_linear.weight", "decoder_linear.weight"
ENCODER_BIAS, DECODER_BIAS = "encoder_linear.bias", "decoder_linear.bias"
TOPK_DECODER, TOPK_BIAS = "decoder.weight", "decoder.bias"
_NAME = re.compile(r"(?P<model>Llama-[\w.-]+?)-SAE-l(?P<layer>\d+)", re.ASCII)
_TOPK_NAME = re.compile(r"topk_sae_l(?P<layer>\d+)_.*?k(?P<k>\d+)\.\w+", re.ASCII)


@dataclass(frozen=True, slots=True)
class GoodfireOptions:
    """What a TopK checkpoint does not say; the files of others say everything."""

    k: int | None = field(
        default=None,
        metadata={"help": "Active features per token; needed exactly when the decoder's tensor is called decoder.weight."},
    )


class Goodfire:
    """See the module's docstring."""

    name = "goodfire"
    version = 1
    summary = "Goodfire checkpoints: encoder_linear and decoder_linear (or decoder, TopK) in one .pth, .pt or .safetensors file"
    Options: type[Any] = GoodfireOptions
    variants = ("relu", "topk")
    conversion_func = "goodfire"

    def files(self, names: Sequence[str], path: str) -> Mapping[str, str]:
        """The file ``path``, or the only weights file directly in folder ``path``."""
        what = f"A Goodfire SAE is one {', '.join(SUFFIXES)} file"
        return beside(names, only(names, path, lambda name: name.endswith(SUFFIXES), what))

    def sniff(self, headers: Headers) -> Candidate | None:
        """Certain when the tensors are there and fit each other."""
        for file, tensors in headers.tensors.items():
            if ENCODER not in tensors or not {DECODER, TOPK_DECODER} & set(tensors):
                continue
            if (refused := _dense.more_than_tensors(self.name, headers, file)) is not None:
                return refused
            try:
                size = _dense.measure(file, tensors, _layout(tensors))
            except Refused as refusal:
                return Candidate(self.name, 0.9, refusal=_dense.reason(refusal))
            topk = DECODER not in tensors
            facts = {"architecture": "topk" if topk else "standard", **size.facts}
            if match := _NAME.match(file):
                facts |= {"hook": f"blocks.{int(match['layer'])}.hook_resid_post", "model": f"meta-llama/{match['model']}"}
            if not topk:
                return Candidate(self.name, 1.0, facts)
            named = _TOPK_NAME.fullmatch(file)
            if named is None:
                return Candidate(self.name, 1.0, facts, needs=("k",))
            facts["hook"] = f"blocks.{int(named['layer'])}.hook_resid_post"
            return Candidate(self.name, 1.0, facts, {"k": int(named["k"])})
        return None

    def read(self, files: SourceFiles, options: GoodfireOptions) -> Weights:
        """See ``Format.read``."""
        ((name, path),) = files.paths.items()
        opened = open_tensors(path, name)
        found = _dense.no_others(name, opened)
        layout, topk = _layout(found), DECODER not in found
        size = _dense.measure(name, opened.infos, layout)
        tensors = _dense.pick(found, layout)
        if not topk:
            if options.k is not None:
                raise Refused("Option does not fit", f"k is declared, but {name} is a ReLU SAE. Remove the option.")
            return Weights(_dense.cfg("standard", size), tensors)
        tensors.setdefault("b_dec", Filled(0.0, (size.d_in,)))
        if options.k is None:
            detail = f"{name} is a TopK SAE and does not say its k; its name may. Declare `k` beside format."
            raise Refused("Missing k", detail)
        return Weights(_dense.cfg("topk", size, k=_dense.checked_k(options.k, size.d_sae)), tensors)

    def reference(self, files: SourceFiles, options: GoodfireOptions, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See ``Format.reference``. Tensors come through torch's and safetensors' own loaders, not through ``read``."""
        ((_, path),) = files.paths.items()
        t = load(path)
        h = encode(x.double(), t[ENCODER], linear=True) + t[ENCODER_BIAS].double()
        if DECODER in t:
            features = h.relu()
            return features, decode(features, t[DECODER], linear=True) + t[DECODER_BIAS].double()
        features = top_k(h, int(options.k or 0)).relu()
        output = decode(features, t[TOPK_DECODER], linear=True)
        return features, output + t[TOPK_BIAS].double() if TOPK_BIAS in t else output

    def example(self, folder: Path, seed: int, variant: str = "relu") -> GoodfireOptions:
        """A tiny checkpoint with d_in 12 and d_sae 40."""
        import torch

        shapes: dict[str, tuple[int, ...]] = {ENCODER: (40, 12), ENCODER_BIAS: (40,)}
        shapes |= {DECODER: (12, 40), DECODER_BIAS: (12,)} if variant == "relu" else {TOPK_DECODER: (12, 40), TOPK_BIAS: (12,)}
        folder.mkdir(parents=True, exist_ok=True)
        name = "Tiny-SAE-l1.pth" if variant == "relu" else "topk_sae_l1_exp3_k14.pt"
        torch.save(random_state(seed, shapes), folder / name)
        return GoodfireOptions() if variant == "relu" else GoodfireOptions(14)


FORMAT = Goodfire()


def _layout(found: Mapping[str, Any]) -> Layout:
    names = {"W_enc": ENCODER, "b_enc": ENCODER_BIAS, "W_dec": DECODER, "b_dec": DECODER_BIAS}
    if DECODER not in found and TOPK_DECODER in found:
        names |= {"W_dec": TOPK_DECODER, "b_dec": TOPK_BIAS}
        if TOPK_BIAS not in found:
            del names["b_dec"]
    return Layout(names, LINEAR)

"""sparsify (EleutherAI/sparsify): ``cfg.json`` and ``sae.safetensors`` in the folder of one hookpoint.

Authors' forward pass (sparsify/sparse_coder.py, fused_encoder.py): ``f`` = the k largest of
``relu(encoder(x - b_dec))``, output ``f W_dec + b_dec``; ``W_dec`` lies as in SAELens, the encoder is a torch Linear.
``normalize_decoder`` acts while training only; it is written as false, so that going on training keeps the function.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from saesync.formats._lazy import Transposed
from saesync.formats.base import Weights
from saesync.writers import _plain
from saesync.writers._forms import with_input_bias, with_plain_choice
from saesync.writers.base import Layout, cannot

if TYPE_CHECKING:
    import torch

CFG, FILE = "cfg.json", "sae.safetensors"
_WHY = {
    "standard": ": a ReLU SAE would need k = d_sae, a gather of every feature for every token",
    # load_from_disk drops settings it does not know, so that the file would be read without an error as another function.
    "abstopk": " after a ReLU: features that keep their sign were `signed` in its versions of 2024, which later ones ignore",
}


class Sparsify:
    """See the module's docstring."""

    name = "sparsify"
    summary = "sparsify: cfg.json and sae.safetensors (TopK)"

    def layout(self, weights: Weights) -> Layout:
        """See ``Writer.layout``."""
        architecture = str(weights.cfg["architecture"])
        if architecture != "topk":
            detail = f"architecture is {architecture}, and sparsify's encoder always keeps the k largest features"
            raise cannot("sparsify", f"{detail}{_WHY.get(architecture, '')}.")
        if (norm := weights.cfg["normalize_activations"]) != "none":
            raise cannot("sparsify", f"normalize_activations is {norm}, and sparsify does not normalise its input.")
        plain = with_input_bias(with_plain_choice(weights), subtracts=True)
        d_in, d_sae = plain.cfg["d_in"], plain.cfg["d_sae"]
        cfg = {
            "activation": "topk",
            "d_in": d_in,
            "expansion_factor": max(1, d_sae // d_in),
            "k": plain.cfg["k"],
            "multi_topk": False,
            "normalize_decoder": False,
            "num_latents": d_sae,
            "skip_connection": False,
            "transcode": False,
        }
        t = plain.tensors
        tensors = {"encoder.weight": Transposed(t["W_enc"]), "encoder.bias": t["b_enc"], "W_dec": t["W_dec"], "b_dec": t["b_dec"]}
        return Layout(FILE, tensors, {CFG: cfg})

    def reference(self, folder: Path, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See ``Writer.reference``."""
        t, cfg = _plain.load(folder / FILE), _plain.side(folder / CFG)
        bias = t["b_dec"].double()
        pre = _plain.linear(x.double() - bias, t["encoder.weight"]) + t["encoder.bias"].double()
        features = _plain.largest(pre.relu(), cfg["k"])
        return features, _plain.rows(features, t["W_dec"]) + bias


WRITER = Sparsify()

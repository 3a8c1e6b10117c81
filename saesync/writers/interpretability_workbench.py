"""InterpretabilityWorkbench: ``sae_layer_{L}.safetensors`` and ``sae_layer_{L}_metadata.json``.

Authors' forward pass (interpretability_workbench/sae_train.py, class SparseAutoencoder, ``tied_weights=False``):
``f = relu(encoder(x))``, output ``decoder(f) + decoder_bias``; both biases of the output are added, so the Linear's own is
written as zeros. The class is told ``tied_weights`` by the metadata: its default, true, would refuse these tensors.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from saesync.errors import Refused
from saesync.formats._lazy import Filled, Transposed
from saesync.formats.base import Weights
from saesync.hooks import layer_of
from saesync.writers import _plain
from saesync.writers._forms import with_input_bias
from saesync.writers.base import Layout, cannot

if TYPE_CHECKING:
    import torch

_TOOL = "InterpretabilityWorkbench"


class InterpretabilityWorkbench:
    """See the module's docstring."""

    name = "interpretability-workbench"
    summary = "InterpretabilityWorkbench: sae_layer_L.safetensors with its metadata (ReLU, untied)"

    def layout(self, weights: Weights) -> Layout:
        """See ``Writer.layout``."""
        if (architecture := weights.cfg["architecture"]) != "standard":
            raise cannot(_TOOL, f"architecture is {architecture}; its SparseAutoencoder has ReLU and GELU and nothing else.")
        if (norm := weights.cfg["normalize_activations"]) != "none":
            raise cannot(_TOOL, f"normalize_activations is {norm}; its SparseAutoencoder does not normalise its input.")
        hook = weights.metadata.get("hook_name")
        layer = layer_of(str(hook)) if hook else None
        if layer is None:
            raise Refused("Needs a layer", f"{_TOOL} names its files by layer, and nothing says it. Name the hook with --hook.")
        plain = with_input_bias(weights, subtracts=False)
        t, d_in, d_sae = plain.tensors, plain.cfg["d_in"], plain.cfg["d_sae"]
        tensors = {
            "encoder.weight": Transposed(t["W_enc"]),
            "encoder.bias": t["b_enc"],
            "decoder.weight": Transposed(t["W_dec"]),
            "decoder.bias": Filled(0.0, (d_in,), t["b_dec"].dtype),
            "decoder_bias": t["b_dec"],
        }
        about = {
            "activation_fn": "relu",
            "expansion_factor": d_sae / d_in,
            "input_dim": d_in,
            "latent_dim": d_sae,
            "layer_idx": layer,
            "layer_name": hook,
            "tied_weights": False,
        }
        return Layout(f"sae_layer_{layer}.safetensors", tensors, {f"sae_layer_{layer}_metadata.json": about})

    def reference(self, folder: Path, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See ``Writer.reference``."""
        (path,) = folder.glob("sae_layer_*.safetensors")
        about = _plain.side(path.with_name(f"{path.stem}_metadata.json"))
        t = _plain.load(path)
        features = (_plain.linear(x.double(), t["encoder.weight"]) + t["encoder.bias"].double()).relu()
        if about["tied_weights"]:
            return features, _plain.rows(features, t["encoder.weight"]) + t["decoder_bias"].double()
        decoded = _plain.columns(features, t["decoder.weight"]) + t["decoder.bias"].double()
        return features, decoded + t["decoder_bias"].double()


WRITER = InterpretabilityWorkbench()

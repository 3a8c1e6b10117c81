"""miStudio (hitsainet/miStudio): ``checkpoint.safetensors`` with the class's tensors under ``model.`` and ``metadata.json``.

Authors' forward passes (backend/src/ml/sparse_autoencoder.py):

- ``SparseAutoencoder``: ``c = sqrt(d) / max(|x|, 1e-6)`` or 1, ``f = relu(encoder(c x))``, of which the k largest stay when
  ``top_k_sparsity`` is set, output ``(decoder(f) + decoder_bias) / c``.
- ``JumpReLUSAE``: ``z = W_enc (c x) + b_enc``, ``f = z (z > exp(log_threshold))``, output ``(W_dec f + b_dec) / c``.
- ``Transcoder``: ``f = relu(encoder(x))``, output ``decoder(f)``.

b_dec is never subtracted from the input. Training gives both output biases of a SparseAutoencoder the same value, so b_dec is
split into two halves. miStudio's own checkpoints keep neither ``top_k_sparsity`` (a percentage) nor ``normalize_activations``:
they stand in metadata.json, under the names of its hyperparameters.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saesync.formats._lazy import Mapped, Transposed
from saesync.formats.base import LazyTensor, Weights
from saesync.hooks import layer_of
from saesync.writers import _plain
from saesync.writers._forms import Halved, with_input_bias, with_plain_choice
from saesync.writers.base import Layout, cannot

if TYPE_CHECKING:
    import torch

FILE, METADATA = "checkpoint.safetensors", "metadata.json"
_CLASSES = {"standard": "SparseAutoencoder", "topk": "SparseAutoencoder", "jumprelu": "JumpReLUSAE", "transcoder": "Transcoder"}
_TYPES = {"SparseAutoencoder": "standard", "JumpReLUSAE": "jumprelu", "Transcoder": "transcoder"}
_NORMS = ("none", "constant_norm_rescale")
_WHY_NOT = {
    "gated": "miStudio has no gated encoder",
    "abstopk": "miStudio's TopK works on features after ReLU, so none of them can be negative",
    "skip_transcoder": "W_skip: the scale of a SkipAutoencoder's connection is a setting that its checkpoints do not hold",
}
# exp of it is 0 in float32, in which miStudio computes, and far below any activation in float64.
_NO_THRESHOLD = -104.0


class MiStudio:
    """See the module's docstring."""

    name = "mistudio"
    summary = "miStudio: checkpoint.safetensors with model.* tensors and metadata.json"

    def layout(self, weights: Weights) -> Layout:
        """See ``Writer.layout``."""
        architecture, norm = str(weights.cfg["architecture"]), weights.cfg["normalize_activations"]
        if architecture not in _CLASSES:
            raise cannot(
                "miStudio", f"architecture is {architecture}: {_WHY_NOT.get(architecture, 'miStudio has no such class')}."
            )
        if norm not in _NORMS:
            raise cannot("miStudio", f"normalize_activations is {norm}; miStudio has {' and '.join(_NORMS)}.")
        kind = _CLASSES[architecture]
        plain = with_input_bias(with_plain_choice(weights), subtracts=False)
        tensors = _jumprelu(plain.tensors) if kind == "JumpReLUSAE" else _linear(plain.tensors, both=kind == "SparseAutoencoder")
        return Layout(
            FILE,
            {f"model.{name}": tensor for name, tensor in tensors.items()},
            {METADATA: _about(plain, kind)},
            {"architecture": kind, "step": "0"},
            frozenset({"model.activation.log_threshold"}),
        )

    def reference(self, folder: Path, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See ``Writer.reference``."""
        t = {name.removeprefix("model."): tensor for name, tensor in _plain.load(folder / FILE).items()}
        settings = _plain.side(folder / METADATA)["hyperparameters"]
        x = x.double()
        scale = x.new_ones((len(x), 1))
        if settings["normalize_activations"] == "constant_norm_rescale":
            scale = x.shape[-1] ** 0.5 / x.norm(dim=-1, keepdim=True).clamp(min=1e-6)
        if "activation.log_threshold" in t:
            z = _plain.linear(x * scale, t["W_enc"]) + t["b_enc"].double()
            features = z * (z > t["activation.log_threshold"].double().exp())
            return features, (_plain.columns(features, t["W_dec"]) + t["b_dec"].double()) / scale
        features = (_plain.linear(x * scale, t["encoder.weight"]) + t["encoder.bias"].double()).relu()
        if settings["top_k_sparsity"] is not None:
            features = _plain.largest(features, max(1, int(settings["top_k_sparsity"] / 100.0 * features.shape[1])))
        output = _plain.columns(features, t["decoder.weight"]) + t["decoder.bias"].double()
        return features, (output + (t["decoder_bias"].double() if "decoder_bias" in t else 0.0)) / scale


WRITER = MiStudio()


def _linear(t: Mapping[str, LazyTensor], both: bool) -> dict[str, LazyTensor]:
    half = {"decoder.bias": Halved(t["b_dec"]), "decoder_bias": Halved(t["b_dec"])} if both else {"decoder.bias": t["b_dec"]}
    return {"encoder.weight": Transposed(t["W_enc"]), "encoder.bias": t["b_enc"], "decoder.weight": Transposed(t["W_dec"])} | half


def _jumprelu(t: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    return {
        "W_enc": Transposed(t["W_enc"]),
        "b_enc": t["b_enc"],
        "W_dec": Transposed(t["W_dec"]),
        "b_dec": t["b_dec"],
        # A threshold of 0 or less is ReLU, for SAELens zeroes negative features whatever the threshold.
        "activation.log_threshold": Mapped(
            t["threshold"], lambda block, *_: block.log().nan_to_num(_NO_THRESHOLD, neginf=_NO_THRESHOLD)
        ),
    }


def _about(weights: Weights, kind: str) -> dict[str, Any]:
    cfg, said = weights.cfg, weights.metadata
    hook = said.get("hook_name")
    return {
        "architecture": kind,
        "hook_name": hook,
        "hyperparameters": {
            "architecture_type": _TYPES[kind],
            "hidden_dim": cfg["d_in"],
            "latent_dim": cfg["d_sae"],
            "normalize_activations": cfg["normalize_activations"],
            "tied_weights": False,
            "top_k_sparsity": _percentage(cfg["k"], cfg["d_sae"]) if cfg["architecture"] == "topk" else None,
            "training_layers": [layer] if hook and (layer := layer_of(str(hook))) is not None else None,
        },
        "model_name": said.get("model_name"),
        "step": 0,
    }


def _percentage(k: int, d_sae: int) -> float:
    """What ``max(1, int(p / 100 * latent_dim))`` makes k of: half a feature above, away from the rounding at k."""
    return 100.0 * min(k + 0.5, float(d_sae)) / d_sae

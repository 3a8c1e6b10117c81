"""dictionary_learning (saprmarks/dictionary_learning): ``ae.pt``, a state dict, and ``config.json``.

The class follows from the function (dictionary_learning 0.1.0: dictionary.py, trainers/top_k.py): ``AutoEncoder`` subtracts its
bias from the input, ``AutoEncoderNew`` does not; ``GatedAutoEncoder`` and ``AutoEncoderTopK`` always do;
``JumpReluAutoEncoder`` never does and lies as in SAELens, where the others have torch Linears. SAELens's inference form of a
BatchTopK SAE is JumpReLU, and is written as such: the batch's k is not in it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saesync.formats._lazy import Transposed
from saesync.formats.base import LazyTensor, Weights
from saesync.hooks import layer_of
from saesync.writers import _plain
from saesync.writers._forms import with_input_bias, with_plain_choice
from saesync.writers.base import Layout, cannot

if TYPE_CHECKING:
    import torch

AE, CONFIG = "ae.pt", "config.json"
_TOOL = "dictionary_learning"
_SITES = {"hook_resid_post": "resid_post", "hook_mlp_out": "mlp_out", "hook_attn_out": "attention_out"}
_HOOK = re.compile(rf"blocks\.(\d+)\.({'|'.join(_SITES)})", re.ASCII)
_UNTRAINED = -1.0  # what AutoEncoderTopK's threshold is before it is learned; it is used only on demand


class DictionaryLearning:
    """See the module's docstring."""

    name = "dictionary_learning"
    summary = "dictionary_learning: ae.pt with config.json"

    def layout(self, weights: Weights) -> Layout:
        """See ``Writer.layout``."""
        architecture, norm = str(weights.cfg["architecture"]), weights.cfg["normalize_activations"]
        if norm != "none":
            raise cannot(_TOOL, f"normalize_activations is {norm}; its classes do not normalise their input.")
        if architecture == "standard":
            dict_class = "AutoEncoder" if weights.cfg["apply_b_dec_to_input"] else "AutoEncoderNew"
            return _layout(
                weights, dict_class, _linear(weights.tensors, "bias" if dict_class == "AutoEncoder" else "decoder.bias")
            )
        if architecture == "topk":
            plain = with_input_bias(with_plain_choice(weights), subtracts=True)
            numbers = {"k": int(plain.cfg["k"]), "threshold": _UNTRAINED}
            return _layout(plain, "AutoEncoderTopK", _linear(plain.tensors, "b_dec"), numbers)
        if architecture == "gated":
            plain = with_input_bias(weights, subtracts=True)
            return _layout(plain, "GatedAutoEncoder", _gated(plain.tensors))
        if architecture == "jumprelu":
            plain = with_input_bias(weights, subtracts=False)
            names = ("W_enc", "b_enc", "W_dec", "b_dec", "threshold")
            return _layout(plain, "JumpReluAutoEncoder", {name: plain.tensors[name] for name in names})
        why = (
            "its TopK works on features after ReLU"
            if architecture == "abstopk"
            else "none of its classes predicts another activation"
        )
        raise cannot(_TOOL, f"architecture is {architecture}: {why}.")

    def reference(self, folder: Path, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See ``Writer.reference``."""
        import torch

        t = torch.load(folder / AE, map_location="cpu", weights_only=True, mmap=True)
        trainer = _plain.side(folder / CONFIG)["trainer"]
        return _FORWARD[trainer["dict_class"]](t, x.double())


WRITER = DictionaryLearning()


def _layout(
    weights: Weights, dict_class: str, tensors: Mapping[str, LazyTensor], numbers: Mapping[str, int | float] | None = None
) -> Layout:
    said, cfg = weights.metadata, weights.cfg
    hook = str(said.get("hook_name") or "")
    site = _HOOK.fullmatch(hook)
    trainer: dict[str, Any] = {
        "activation_dim": cfg["d_in"],
        "dict_class": dict_class,
        "dict_size": cfg["d_sae"],
        "layer": layer_of(hook),
        "lm_name": said.get("model_name"),
        "submodule_name": f"{_SITES[site[2]]}_layer_{site[1]}" if site else None,
    }
    if "k" in (numbers or {}):
        trainer["k"] = cfg["k"]
    config = {"buffer": {"ctx_len": said.get("context_size"), "d_submodule": cfg["d_in"]}, "trainer": trainer}
    return Layout(AE, tensors, {CONFIG: config}, precise=frozenset({"threshold"}), numbers=numbers or {})


def _linear(t: Mapping[str, LazyTensor], bias: str) -> dict[str, LazyTensor]:
    return {
        "encoder.weight": Transposed(t["W_enc"]),
        "encoder.bias": t["b_enc"],
        "decoder.weight": Transposed(t["W_dec"]),
        bias: t["b_dec"],
    }


def _gated(t: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    matrices = {"encoder.weight": Transposed(t["W_enc"]), "decoder.weight": Transposed(t["W_dec"])}
    return matrices | {"gate_bias": t["b_gate"], "mag_bias": t["b_mag"], "r_mag": t["r_mag"], "decoder_bias": t["b_dec"]}


def _auto_encoder(t: _plain.State, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    bias = t["bias"].double()
    features = (_plain.linear(x - bias, t["encoder.weight"]) + t["encoder.bias"].double()).relu()
    return features, _plain.columns(features, t["decoder.weight"]) + bias


def _auto_encoder_new(t: _plain.State, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    features = (_plain.linear(x, t["encoder.weight"]) + t["encoder.bias"].double()).relu()
    return features, _plain.columns(features, t["decoder.weight"]) + t["decoder.bias"].double()


def _gated_forward(t: _plain.State, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    bias = t["decoder_bias"].double()
    inner = _plain.linear(x - bias, t["encoder.weight"])
    gate = inner + t["gate_bias"].double() > 0
    features = gate * (inner * t["r_mag"].double().exp() + t["mag_bias"].double()).relu()
    return features, _plain.columns(features, t["decoder.weight"]) + bias


def _top_k(t: _plain.State, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    bias = t["b_dec"].double()
    post = (_plain.linear(x - bias, t["encoder.weight"]) + t["encoder.bias"].double()).relu()
    features = _plain.largest(post, int(t["k"]))
    return features, _plain.columns(features, t["decoder.weight"]) + bias


def _jump_relu(t: _plain.State, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    pre = _plain.linear(x, t["W_enc"].T) + t["b_enc"].double()
    features = (pre * (pre > t["threshold"].double())).relu()
    return features, _plain.rows(features, t["W_dec"]) + t["b_dec"].double()


_FORWARD = {
    "AutoEncoder": _auto_encoder,
    "AutoEncoderNew": _auto_encoder_new,
    "GatedAutoEncoder": _gated_forward,
    "AutoEncoderTopK": _top_k,
    "JumpReluAutoEncoder": _jump_relu,
}

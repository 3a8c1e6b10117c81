"""The forward passes of dictionary_learning 0.1.0's classes, written out from their ``encode`` and ``decode``, in float64 and in
blocks of features. Checkpoints come through torch's own loader, not through saesync's reader."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saesync.formats._authors import State, decode, encode, load, top_k

if TYPE_CHECKING:
    import torch


def forward(dict_class: str, path: Path, x: torch.Tensor, k: int | None) -> tuple[torch.Tensor, torch.Tensor]:
    """``encode`` and ``decode`` of a class: ``x [n, d_in]`` -> (features ``[n, d_sae]``, output ``[n, d_in]``).

    ``k`` counts for an AutoEncoderTopK that does not hold its own.
    """
    t = load(path)
    x = x.double()
    features = _ENCODERS[dict_class](t, x, k)
    return features, _decode(t, features)


def _encoder(t: State, x: torch.Tensor) -> torch.Tensor:
    """``x`` times the encoder's matrix."""
    linear = "encoder.weight" in t
    return encode(x, t["encoder.weight"] if linear else t["W_enc"], linear)


def _decode(t: State, features: torch.Tensor) -> torch.Tensor:
    bias = next(t[name] for name in ("bias", "b_dec", "decoder_bias", "decoder.bias") if name in t)
    linear = "decoder.weight" in t
    return decode(features, t["decoder.weight"] if linear else t["W_dec"], bias, linear=linear)


def _auto_encoder(t: State, x: torch.Tensor, k: int | None) -> torch.Tensor:
    return (_encoder(t, x - t["bias"].double()) + t["encoder.bias"].double()).relu()


def _auto_encoder_new(t: State, x: torch.Tensor, k: int | None) -> torch.Tensor:
    return (_encoder(t, x) + t["encoder.bias"].double()).relu()


def _gated(t: State, x: torch.Tensor, k: int | None) -> torch.Tensor:
    x_enc = _encoder(t, x - t["decoder_bias"].double())
    gate = (x_enc + t["gate_bias"].double() > 0).double()
    return gate * (t["r_mag"].double().exp() * x_enc + t["mag_bias"].double()).relu()


def _post_relu(t: State, x: torch.Tensor) -> torch.Tensor:
    bias = t["encoder.bias"] if "encoder.bias" in t else t["b_enc"]
    return (_encoder(t, x - t["b_dec"].double()) + bias.double()).relu()


def _top_k(t: State, x: torch.Tensor, k: int | None) -> torch.Tensor:
    return top_k(_post_relu(t, x), int(t["k"]) if "k" in t else int(k or 0))


def _above_threshold(t: State, x: torch.Tensor, k: int | None) -> torch.Tensor:
    post = _post_relu(t, x)
    return post * (post > t["threshold"].double())


def _jump_relu(t: State, x: torch.Tensor, k: int | None) -> torch.Tensor:
    pre = _encoder(t, x) + t["b_enc"].double()
    return (pre * (pre > t["threshold"].double())).relu()


_ENCODERS = {
    "AutoEncoder": _auto_encoder,
    "AutoEncoderNew": _auto_encoder_new,
    "GatedAutoEncoder": _gated,
    "AutoEncoderTopK": _top_k,
    "BatchTopKSAE": _above_threshold,
    "MatryoshkaBatchTopKSAE": _above_threshold,
    "JumpReluAutoEncoder": _jump_relu,
}
_MADE_BY = {
    "AutoEncoder": "StandardTrainer",
    "AutoEncoderNew": "StandardTrainerAprilUpdate",
    "GatedAutoEncoder": "GatedSAETrainer",
    "AutoEncoderTopK": "TopKTrainer",
    "BatchTopKSAE": "BatchTopKTrainer",
    "MatryoshkaBatchTopKSAE": "MatryoshkaBatchTopKTrainer",
    "JumpReluAutoEncoder": "JumpReluTrainer",
}


def write_example(folder: Path, seed: int, dict_class: str, d_in: int = 12, d_sae: int = 40, k: int = 6) -> None:
    """A tiny ``ae.pt`` and the config.json its trainer would write: an AutoEncoderNew calls itself AutoEncoder."""
    import torch

    from saesync.formats.dictionary_learning import CLASSES

    generator = torch.Generator().manual_seed(seed)
    kind = CLASSES[dict_class]
    state: dict[str, torch.Tensor] = {}
    for name, stored in kind.names.items():
        shape = {"W_enc": (d_sae, d_in), "W_dec": (d_in, d_sae), "b_dec": (d_in,)}.get(name, (d_sae,))
        state[stored] = torch.randn(shape if kind.linear else shape[::-1], generator=generator) / 4
    if "threshold" in state:
        state["threshold"] = state["threshold"].abs() + 0.05
    if "TopK" in dict_class:
        state |= {"k": torch.tensor(k, dtype=torch.int32), "threshold": torch.tensor(0.3)}
    if dict_class == "MatryoshkaBatchTopKSAE":
        state["group_sizes"] = torch.tensor([d_sae // 4, d_sae - d_sae // 4])
    trainer: dict[str, Any] = {
        "trainer_class": _MADE_BY[dict_class],
        "dict_class": "AutoEncoder" if dict_class == "AutoEncoderNew" else dict_class,
        "activation_dim": d_in,
        "dict_size": d_sae,
        "layer": 3,
        "lm_name": "EleutherAI/pythia-70m-deduped",
        "submodule_name": "resid_post_layer_3",
        "norm_factor": 7.5,  # folded into the biases before saving; never to be used
        **({"k": k} if "TopK" in dict_class else {}),
    }
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(state, folder / "ae.pt")
    (folder / "config.json").write_text(json.dumps({"trainer": trainer, "buffer": {"d_submodule": d_in, "ctx_len": 128}}))

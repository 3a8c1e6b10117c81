"""Llamascopium's forward pass, written out from its ``normalize_activations``, ``encode`` and ``decode``, in float64."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saesync.formats._openmoss import Scales

if TYPE_CHECKING:
    import torch

NORM = "dataset_average_activation_norm."
LOG = "log_jumprelu_threshold"
NEW_LOG = f"activation_function.{LOG}"
# Today's names of tensors, and those of the first generation, whose matrices are torch's Linear's.
_FIRST = {"W_E": "encoder.weight", "b_E": "encoder.bias", "W_D": "decoder.weight", "b_D": "decoder.bias"}


def forward(
    path: Path, config: Mapping[str, Any], subtracts: bool, scales: Scales, threshold: float | None, x: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The authors' features and output. ``subtracts``: the decoder's bias from the scaled input; ``threshold`` is that of a
    batchtopk SAE, in units of what is ranked."""
    import torch

    from saesync.formats import _authors

    loaded = _authors.load(path)
    t = loaded.get("sae", loaded)
    first = "encoder.weight" in t
    W_E, b_E, W_D, b_D = _FIRST.values() if first else _FIRST
    x = x.double()
    bias = t[b_D].double() if b_D in t else torch.zeros(x.shape[1], dtype=torch.float64)
    factor = math.sqrt(x.shape[1]) / x.norm(dim=1, keepdim=True) if scales.per_token else scales.inside
    normalized = x * factor
    hidden_pre = _authors.encode(normalized - bias if subtracts else normalized, t[W_E], linear=first) + t[b_E].double()
    by_norm = config.get("sparsity_include_decoder_norm", True)
    norm = _authors.norms(t[W_D], linear=first) if by_norm else torch.ones(1, dtype=torch.float64)
    score = hidden_pre * norm
    act = config["act_fn"]
    if act == "jumprelu":
        score = score * (score > t[LOG if first else NEW_LOG].double().exp())
    elif act == "batchtopk":
        score = score.relu() * (score > float(threshold or 0))
    else:
        score = _authors.top_k(score.relu(), config["top_k"]) if act == "topk" else score.relu()
    features = score / norm
    output = _authors.decode(features, t[W_D], bias, linear=first)
    return features, output / (factor if scales.per_token else scales.out)


def write_example(folder: Path, seed: int, variant: str) -> None:
    """A tiny SAE with d_in 12 and d_sae 48 whose decoder norms are far from 1."""
    import torch
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(seed)
    shapes = {"W_E": (12, 48), "b_E": (48,), "W_D": (48, 12), "b_D": (12,)}
    t = {name: torch.randn(shape, generator=generator) / 4 for name, shape in shapes.items()}
    t["W_D"] *= torch.rand(48, generator=generator)[:, None] + 0.5
    log = torch.randn(48, generator=generator) / 2 - 2
    first, transcoder = variant == "r1-distill", variant == "transcoder"
    if first:
        t = {_FIRST[name]: value.T.contiguous() if name.startswith("W") else value for name, value in t.items()}
    act = variant if variant in ("relu", "topk", "batchtopk") else "jumprelu"
    if act == "jumprelu":
        t[LOG if first else NEW_LOG] = log
    inside, out = "blocks.5.hook_resid_post", "blocks.5.hook_resid_post"
    if transcoder:
        inside, out = "blocks.5.ln2.hook_normalized", "blocks.5.hook_mlp_out"
    if variant not in ("unset norms", "token-wise"):
        t |= {f"{NORM}{inside}": torch.tensor(2.5), f"{NORM}{out}": torch.tensor(5.0 if transcoder else 2.5)}
    config: dict[str, Any] = {
        "sae_type": "sae",
        "hook_point_in": inside,
        "hook_point_out": out,
        "d_model": 12,
        "expansion_factor": 4,
        "act_fn": act,
        "top_k": 6,
        "norm_activation": "token-wise" if variant == "token-wise" else "dataset-wise",
        "sparsity_include_decoder_norm": True,
        "use_decoder_bias": True,
        "use_glu_encoder": False,
        **({"apply_decoder_bias_to_pre_encoder": False, "jump_relu_threshold": 0.0} if first else {}),
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    if variant == "pt":
        torch.save({"sae": t, "version": "2.0.0"}, folder / "sae_weights.pt")
    else:
        save_file(t, folder / "sae_weights.safetensors")

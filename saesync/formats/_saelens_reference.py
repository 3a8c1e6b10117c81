"""The forward passes of SAELens's architectures, written out from their definitions, in float64 and in blocks of features.

Tensors come through the safetensors library, not through saesync's own reader, so that a mistake in the reader shows.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saesync.formats._lazy import BLOCK_BYTES
from saesync.formats._saelens_cfg import BATCH, TOPK, Config

if TYPE_CHECKING:
    import torch


def forward(config: Config, factor: float, path: Path, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Features ``[n, d_sae]`` and reconstruction ``[n, d_out]`` of ``x [n, d_in]``, all float64.

    With an input factor s the SAE was trained on s x; features are reported as SAELens reports them after folding s.
    """
    from safetensors import safe_open

    with safe_open(path, framework="pt") as stored:
        t: dict[str, torch.Tensor] = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118  not a dict
    if "finetuning_scaling_factor" in t:
        t["scaling_factor"] = t["finetuning_scaling_factor"]
    if "log_threshold" in t:
        t["threshold"] = t["log_threshold"].double().exp()
    x = x.double()
    inner, undo = _normalised(config.norm, x)
    z = factor * inner - (t["b_dec"].double() if config.apply_b_dec_to_input else 0.0)
    features = _features(config, factor, t, z)
    reconstruction = undo(_decoded(config, factor, t, features))
    if "skip" in config.architecture:
        reconstruction = reconstruction + x @ t["W_skip"].double().T
    return features, reconstruction


def _normalised(norm: str, x: torch.Tensor) -> tuple[torch.Tensor, Callable[[torch.Tensor], torch.Tensor]]:
    if norm == "layer_norm":  # unbiased deviation; the 1e-5 is not undone
        mean, deviation = x.mean(dim=-1, keepdim=True), x.std(dim=-1, keepdim=True)
        return (x - mean) / (deviation + 1e-5), lambda y: y * deviation + mean
    if norm == "constant_norm_rescale":
        scale = x.shape[-1] ** 0.5 / x.norm(dim=-1, keepdim=True)
        return x * scale, lambda y: y / scale
    return x, lambda y: y


def _blocks(config: Config) -> Iterator[slice]:
    step = max(1, BLOCK_BYTES // (8 * max(config.d_in, config.d_out)))
    return (slice(start, start + step) for start in range(0, config.d_sae, step))


def _features(config: Config, factor: float, t: dict[str, torch.Tensor], z: torch.Tensor) -> torch.Tensor:
    import torch

    out = torch.empty((z.shape[0], config.d_sae), dtype=torch.float64)
    for part in _blocks(config):
        W_enc = t["W_enc"][:, part].double()
        if config.architecture == "gated":
            gate = z @ W_enc + t["b_gate"][part].double() > 0
            magnitude = z @ (W_enc * t["r_mag"][part].double().exp()) + t["b_mag"][part].double()
            out[:, part] = gate * magnitude.relu()
            continue
        h = z @ W_enc + t["b_enc"][part].double()
        if config.rescale:
            h = h * (t["W_dec"][part].double() / factor).norm(dim=1)
        out[:, part] = h
    if config.architecture == "gated":
        return out
    return _activated(config, factor, t, out)


def _activated(config: Config, factor: float, t: dict[str, torch.Tensor], h: torch.Tensor) -> torch.Tensor:
    import torch

    if config.architecture in TOPK:
        size = h.abs() if config.architecture == "abstopk" else h
        keep = torch.zeros_like(h, dtype=torch.bool).scatter_(1, size.topk(int(config.k or 0), dim=1).indices, True)
        return h * keep if config.architecture == "abstopk" else h.relu() * keep
    if config.architecture in BATCH:
        # The training threshold is compared with pre-activations in training units.
        threshold = t["topk_threshold"].double() / (factor if config.rescale else 1.0)
        return h.relu() * (h > threshold)
    if "threshold" in t:
        return h.relu() * (h > t["threshold"].double())
    return h.relu()


def _decoded(config: Config, factor: float, t: dict[str, torch.Tensor], features: torch.Tensor) -> torch.Tensor:
    reconstruction = t["b_dec"].double() / factor + features.new_zeros((features.shape[0], 1))
    for part in _blocks(config):
        W_dec = t["W_dec"][part].double() / factor
        codes = features[:, part]
        if config.rescale:
            codes = codes / W_dec.norm(dim=1).clamp(min=1e-8)
        if "scaling_factor" in t:
            codes = codes * t["scaling_factor"][part].double()
        reconstruction = reconstruction + codes @ W_dec
    return reconstruction


def write_example(folder: Path, seed: int, **changes: Any) -> None:
    """A tiny BatchTopK training checkpoint; ``changes`` replace cfg fields. Tensors follow the architecture.

    d_in 12, d_sae 40: not square, so that a transposed matrix cannot pass unseen.
    """
    import torch
    from safetensors.torch import save_file

    from saesync.formats._saelens_cfg import parse_cfg

    cfg: dict[str, Any] = {
        "architecture": "batchtopk",
        "d_in": 12,
        "d_sae": 40,
        "k": 6,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "rescale_acts_by_decoder_norm": True,
        "metadata": {"sae_lens_version": "6.54.12", "hook_name": "blocks.0.hook_resid_post", "model_name": "gpt2"},
    } | changes
    if cfg["architecture"] not in (*TOPK, *BATCH):
        del cfg["k"], cfg["rescale_acts_by_decoder_norm"]
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        name: torch.randn(shape, generator=generator) / (shape[0] ** 0.5 if len(shape) == 2 else 4)
        for name, shape in parse_cfg(cfg).shapes().items()
    }
    if "threshold" in tensors:
        tensors["threshold"] = tensors["threshold"].abs() + 0.05
    if "topk_threshold" in tensors:
        tensors["topk_threshold"] = torch.tensor(0.3, dtype=torch.float64)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "sae_weights.safetensors")
    (folder / "cfg.json").write_text(json.dumps(cfg))

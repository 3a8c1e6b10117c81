"""miStudio's forward passes (hitsainet/miStudio cc5eed0, sparse_autoencoder.py), written out in float64, and tiny examples."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from saesync.formats._authors import decode, encode, load, random_state, top_k

if TYPE_CHECKING:
    import torch

    from saesync.formats.mistudio import MiStudioOptions


def forward(kind: str, path: Path, options: MiStudioOptions, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """``forward`` of a class: ``x [n, d_in]`` -> (features ``[n, d_sae]``, output ``[n, d_out]``)."""
    import torch

    t = {name.removeprefix("model."): value for name, value in load(path).items() if name.startswith("model.")}
    c = torch.ones(len(x), 1, dtype=torch.float64)
    if kind != "transcoder" and options.normalize_activations == "constant_norm_rescale":
        c = x.shape[1] ** 0.5 / x.norm(dim=1, keepdim=True).clamp(min=1e-6)
    if kind == "jumprelu":
        z = encode(x * c, t["W_enc"], linear=True) + t["b_enc"].double()
        features = z * (z > t["activation.log_threshold"].double().exp())
        return features, (decode(features, t["W_dec"], linear=True) + t["b_dec"].double()) / c
    features = (encode(x * c, t["encoder.weight"], linear=True) + t["encoder.bias"].double()).relu()
    if options.k:
        features = top_k(features, options.k)
    if kind == "transcoder":
        return features, decode(features, t["decoder.weight"], linear=True) + t["decoder.bias"].double()
    output = t["decoder_bias"].double().repeat(len(x), 1)
    if "decoder.weight" in t:
        output += decode(features, t["decoder.weight"], linear=True) + t["decoder.bias"].double()
    else:
        output += decode(features, t["encoder.weight"], linear=False)
    if kind == "skip":
        output += float(options.skip_scale or 0) * (x * c)
    return features, output / c


CLASSES = {"skip": "SkipAutoencoder", "transcoder": "Transcoder", "jumprelu": "JumpReLUSAE"}


def write_example(folder: Path, seed: int, variant: str, d_in: int = 12, d_sae: int = 40) -> None:
    """A tiny checkpoint of one class with some of Adam's state; "topk" and "plain" differ in options only."""
    import torch
    from safetensors.torch import save_file

    d_out = 9 if variant == "transcoder" else d_in
    shapes: dict[str, tuple[int, ...]] = {"encoder.weight": (d_sae, d_in), "encoder.bias": (d_sae,)}
    if variant != "tied":
        shapes |= {"decoder.weight": (d_out, d_sae), "decoder.bias": (d_out,)}
    if variant != "transcoder":
        shapes["decoder_bias"] = (d_in,)
    if variant == "jumprelu":
        shapes = {"W_enc": (d_sae, d_in), "b_enc": (d_sae,), "W_dec": (d_in, d_sae), "b_dec": (d_in,)}
        shapes["activation.log_threshold"] = (d_sae,)
    state: dict[str, Any] = {f"model.{name}": value for name, value in random_state(seed, shapes).items()}
    state |= {"optimizer.state.0.exp_avg": torch.zeros(d_sae, d_in), "optimizer.state.0.step": torch.tensor(50.0)}
    folder.mkdir(parents=True, exist_ok=True)
    notes = {"step": "50", "architecture": CLASSES.get(variant, "SparseAutoencoder")}
    save_file(state, folder / "checkpoint.safetensors", metadata=notes)

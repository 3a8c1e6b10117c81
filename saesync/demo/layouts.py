"""Saving a trained SAE the way people find SAEs: SAELens 6, its training checkpoint, its old form, Goodfire's ``.pth``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from saesync.demo.recipe import Dictionary, Layout
from saesync.model import CFG_FILE


def save(folder: Path, entry: Dictionary, sae: Any, trainer: Any) -> None:
    """Write ``sae`` (a SAELens TrainingSAE) to ``folder / entry.path`` in the entry's layout; ``trainer`` is its SAETrainer."""
    place = folder / entry.path
    place.parent.mkdir(parents=True, exist_ok=True)
    if entry.layout is Layout.CHECKPOINT:
        trainer.save_checkpoint(place.name, base_path=place.parent)
    elif entry.layout is Layout.GOODFIRE:
        save_goodfire(place, sae)
    else:
        sae.save_inference_model(place)
        if entry.layout is Layout.LEGACY:
            make_legacy(place)


def save_goodfire(place: Path, sae: Any) -> None:
    """A standard SAE as Goodfire saves it: two linear layers, transposed.

    Goodfire's forward pass does not subtract ``b_dec`` from its input, SAELens's does: relu((x - b_dec) W_enc + b_enc) is
    relu(x W_enc + b) with b = b_enc - b_dec W_enc.
    """
    wide = {name: tensor.detach().double() for name, tensor in sae.state_dict().items()}
    bias = wide["b_enc"] - wide["b_dec"] @ wide["W_enc"]
    state = {
        "encoder_linear.weight": wide["W_enc"].T,
        "encoder_linear.bias": bias,
        "decoder_linear.weight": wide["W_dec"].T,
        "decoder_linear.bias": wide["b_dec"],
    }
    torch.save({name: tensor.float().contiguous() for name, tensor in state.items()}, place)


def make_legacy(folder: Path) -> None:
    """Rewrite the cfg.json of a topk SAE in the flat form that SAELens wrote before 6.0. The weights' names are the same."""
    path = folder / CFG_FILE
    new = json.loads(path.read_bytes())
    metadata = new["metadata"]
    old = {
        "architecture": "standard",
        "d_in": new["d_in"],
        "d_sae": new["d_sae"],
        "activation_fn_str": "topk",
        "activation_fn_kwargs": {"k": new["k"]},
        "apply_b_dec_to_input": new["apply_b_dec_to_input"],
        "normalize_activations": new["normalize_activations"],
        "finetuning_scaling_factor": False,
        "dtype": new["dtype"],
        "device": "cpu",
        "model_name": metadata["model_name"],
        "hook_name": metadata["hook_name"],
        "hook_layer": int(metadata["hook_name"].split(".")[1]),
        "hook_head_index": None,
        "context_size": metadata["context_size"],
        "prepend_bos": metadata["prepend_bos"],
        "dataset_path": None,
        "sae_lens_training_version": "5.10.7",
    }
    path.write_text(json.dumps(old, indent=2) + "\n")

"""What a demo world is made of: sizes, steps and seeds, as data. The worlds of the test suite are smaller recipes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

RECIPE_VERSION = 1  # bumped by hand when the code makes something else out of the same numbers


class Layout(StrEnum):
    """How a trained SAE is saved: the forms in which people really find SAEs."""

    SAELENS = "saelens"  # what SAELens 6 saves for use: cfg.json, sae_weights.safetensors
    CHECKPOINT = "checkpoint"  # what SAELens's trainer saves on the way: the training form, with optimizer state beside it
    LEGACY = "legacy"  # the flat cfg.json of SAELens before 6.0
    GOODFIRE = "goodfire"  # one .pth with encoder_linear and decoder_linear


@dataclass(frozen=True, slots=True)
class Dictionary:
    """One SAE to train. ``sparsity`` is k (topk, batchtopk) or the L1 coefficient (standard); ``steps`` are trainer steps.

    ``id`` is its folder in the target, ``path`` its place under ``sources/``. ``release`` names the manifest that lists it.
    """

    id: str
    release: str
    layer: int
    architecture: str
    d_sae: int
    sparsity: float
    steps: int
    layout: Layout
    path: str

    @property
    def format(self) -> str:
        """The manifest's name for what ``layout`` is read with."""
        return "goodfire" if self.layout is Layout.GOODFIRE else "saelens"

    @property
    def hook(self) -> str:
        """TransformerLens's name of the residual stream after block ``layer``."""
        return f"blocks.{self.layer}.hook_resid_post"


@dataclass(frozen=True, slots=True)
class Recipe:
    """A whole world. Byte counts are of UTF-8 text; ``margin`` is how far (nats per token) the held-out loss must lie below
    the unigram entropy; ``gates`` are the bounds of the manifest that passes, ``failing_gates`` of the one that does not."""

    train_bytes: int
    held_out_bytes: int
    vocab: int
    layers: int
    d_model: int
    heads: int
    context: int
    model_steps: int
    model_batch: int
    model_lr: float
    margin: float
    dictionary_batch: int
    dictionary_lr: float
    dictionaries: tuple[Dictionary, ...]
    validate_tokens: int
    gates: Mapping[str, Mapping[str, float]]
    failing_gates: Mapping[str, Mapping[str, float]]
    seed: int = 0
    name: str = "tiny-python"
    version: int = field(default=RECIPE_VERSION)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return asdict(self)

    def of(self, release: str) -> tuple[Dictionary, ...]:
        """The SAEs that one manifest lists."""
        return tuple(entry for entry in self.dictionaries if entry.release == release)


def recipe_from_json(value: Mapping[str, Any]) -> Recipe:
    """Inverse of ``Recipe.to_json``."""
    entries = (Dictionary(**{**entry, "layout": Layout(entry["layout"])}) for entry in value["dictionaries"])
    return Recipe(**{**value, "dictionaries": tuple(entries)})


FULL_STEPS = 250
SHORT_STEPS = 6

DEMO = Recipe(
    train_bytes=4_000_000,
    held_out_bytes=400_000,
    vocab=1024,
    layers=4,
    d_model=128,
    heads=4,
    context=128,
    model_steps=750,
    model_batch=8,
    model_lr=2e-3,
    margin=1.5,
    dictionary_batch=1024,
    dictionary_lr=2e-3,
    dictionaries=(
        Dictionary("layer_1/topk", "good", 1, "topk", 512, 32, FULL_STEPS, Layout.SAELENS, "layer_1/topk"),
        Dictionary("layer_2/topk", "good", 2, "topk", 512, 32, FULL_STEPS, Layout.SAELENS, "layer_2/topk"),
        Dictionary("layer_1/standard", "good", 1, "standard", 512, 1.0, FULL_STEPS, Layout.SAELENS, "layer_1/standard"),
        Dictionary("layer_2/standard", "good", 2, "standard", 512, 1.0, FULL_STEPS, Layout.GOODFIRE, "goodfire/layer_2.pth"),
        Dictionary("layer_1/batchtopk", "good", 1, "batchtopk", 512, 32, FULL_STEPS, Layout.SAELENS, "root_level_repo"),
        Dictionary("layer_2/batchtopk", "good", 2, "batchtopk", 512, 32, FULL_STEPS, Layout.CHECKPOINT, "training_checkpoint"),
        Dictionary("layer_1/topk_wide", "good", 1, "topk", 1024, 32, FULL_STEPS, Layout.LEGACY, "legacy"),
        Dictionary("sweep/layer_1", "failing", 1, "topk", 512, 16, FULL_STEPS, Layout.SAELENS, "sweep/layer_1"),
        Dictionary("sweep/layer_2", "failing", 2, "topk", 512, 16, SHORT_STEPS, Layout.SAELENS, "sweep/layer_2"),
    ),
    validate_tokens=16_384,
    gates={"explained_variance": {"min": 0.8}, "ce_loss_score": {"min": 0.9}, "l0": {"max": 64}},
    failing_gates={"explained_variance": {"min": 0.8}},
)

"""The demo's SAEs: trained by SAELens's own trainer, all of one length from one forward pass of the model."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from sae_lens import (
    ActivationsStore,
    BatchTopKTrainingSAEConfig,
    LoggingConfig,
    StandardTrainingSAEConfig,
    TopKTrainingSAEConfig,
)
from sae_lens.config import SAETrainerConfig
from sae_lens.registry import get_sae_training_class
from sae_lens.saes.sae import SAEMetadata
from sae_lens.training.multi_sae_trainer import MultiSAETrainer
from transformer_lens.model_bridge import TransformerBridge

from saesync.demo.corpus import read_texts
from saesync.demo.language import Tick, pack
from saesync.demo.layouts import save
from saesync.demo.recipe import Dictionary, Recipe

_BUFFER_SEQUENCES = 64
_STORE_BATCH = 16


def make_dictionaries(folder: Path, data: Path, model: Path, recipe: Recipe, tick: Tick) -> dict[str, Any]:
    """Train every SAE of the recipe on the model's residual stream and save each in its layout under ``folder``.

    ``tick`` gets activations seen and in all, summed over SAEs.
    """
    torch.manual_seed(recipe.seed)
    bridge = TransformerBridge.boot_transformers(str(model), device="cpu")
    tokens = pack(read_texts(data / "train.jsonl"), bridge.tokenizer, recipe.context)
    order = torch.randperm(len(tokens), generator=torch.Generator().manual_seed(recipe.seed))
    rows = Dataset.from_dict({"tokens": tokens[order].tolist()}).to_iterable_dataset()
    whole = sum(entry.steps for entry in recipe.dictionaries) * recipe.dictionary_batch
    done = 0
    for steps, group in itertools.groupby(sorted(recipe.dictionaries, key=_steps), key=_steps):
        members = {entry.id: entry for entry in group}
        trainer = _trainer(members, steps, bridge, rows, recipe)
        trainer.data_provider = _counted(trainer.data_provider, done, len(members) * recipe.dictionary_batch, whole, tick)
        for name, sae in trainer.fit().items():
            save(folder, members[name], sae, trainer.trainers[name])
        done += steps * len(members) * recipe.dictionary_batch
    return {"saes": len(recipe.dictionaries)}


def _trainer(members: dict[str, Dictionary], steps: int, bridge: Any, rows: Any, recipe: Recipe) -> Any:
    hooks = {name: entry.hook for name, entry in members.items()}
    distinct = sorted(set(hooks.values()))
    total = steps * recipe.dictionary_batch
    store = ActivationsStore.from_config_multi_hook(
        bridge,
        dataset=rows,
        hook_names=distinct,
        hook_d_ins=dict.fromkeys(distinct, recipe.d_model),
        context_size=recipe.context,
        n_batches_in_buffer=_BUFFER_SEQUENCES,
        total_training_tokens=total,
        store_batch_size_prompts=_STORE_BATCH,
        train_batch_size_tokens=recipe.dictionary_batch,
        exclude_special_tokens=torch.tensor([bridge.tokenizer.bos_token_id]),
    )
    saes = {}
    for name, entry in members.items():
        config = _config(entry, recipe)
        saes[name] = get_sae_training_class(entry.architecture)[0](config)
    config = SAETrainerConfig(
        total_training_samples=total,
        train_batch_size_samples=recipe.dictionary_batch,
        lr=recipe.dictionary_lr,
        lr_end=recipe.dictionary_lr / 10,
        lr_warm_up_steps=steps // 20,
        lr_decay_steps=steps // 5,
        dead_feature_window=100,
        feature_sampling_window=max(1, steps // 2),
        n_batches_for_norm_estimate=8,
        logger=LoggingConfig(log_to_wandb=False),
    )
    return MultiSAETrainer(config, saes, hooks, store.get_multi_hook_data_loader())


def _config(entry: Dictionary, recipe: Recipe) -> Any:
    metadata = SAEMetadata(
        model_name=recipe.name,
        hook_name=entry.hook,
        context_size=recipe.context,
        prepend_bos=True,
        exclude_special_tokens=True,
        model_from_pretrained_kwargs={},
    )
    common = {"d_in": recipe.d_model, "d_sae": entry.d_sae, "metadata": metadata}
    if entry.architecture == "standard":
        # The L1 coefficient means something only for inputs of a known scale; the trainer folds the scale into the weights.
        return StandardTrainingSAEConfig(
            **common,
            l1_coefficient=entry.sparsity,
            l1_warm_up_steps=entry.steps // 4,
            normalize_activations="expected_average_only_in",
        )
    if entry.architecture == "batchtopk":
        return BatchTopKTrainingSAEConfig(**common, k=entry.sparsity)
    return TopKTrainingSAEConfig(**common, k=int(entry.sparsity))


def _counted(batches: Iterator[Any], done: int, per_batch: int, whole: int, tick: Tick) -> Iterator[Any]:
    for batch in batches:
        yield batch
        done = min(done + per_batch, whole)
        tick(done, whole)


def _steps(entry: Dictionary) -> int:
    return entry.steps

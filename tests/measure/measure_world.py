"""A small real world to measure in: a GPT-2 of 3 layers with a word tokenizer, SAEs of several architectures, text."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from saesync.jobs import CaptureJob, MeasureJob, MeasureSae

if TYPE_CHECKING:
    import torch

# Notes of third parties to each other, raised while they are imported or told to load a model.
THIRD_PARTY = (
    "ignore:The 'utils' module has been deprecated:DeprecationWarning",  # sae_lens imports transformer_lens.utils
    "ignore:To copy construct from a tensor:UserWarning",  # ActivationsStore, of tokenised datasets
    "ignore:Dataset is not tokenized:UserWarning",  # ActivationsStore, of text
)
LOADERS = ("TransformerBridge", "HookedTransformer", "AutoModelForCausalLM")
D_MODEL, D_SAE, CONTEXT, VOCAB = 32, 96, 16, 120
SPECIAL = ("<unk>", "<bos>", "<eos>", "<pad>")
SAES = {
    "standard": ("blocks.1.hook_resid_post", {}),
    "topk": ("blocks.1.hook_resid_post", {"k": 8}),
    "jumprelu": ("blocks.2.hook_resid_pre", {}),
    "gated": ("blocks.1.hook_mlp_out", {}),
    "standard-z": ("blocks.1.attn.hook_z", {}),
    "topk-first": ("blocks.0.hook_resid_pre", {"k": 4}),
    "standard-last": ("blocks.2.hook_resid_post", {"normalize_activations": "layer_norm"}),
}


def make_tokenizer(folder: Path, special: tuple[str, ...] = SPECIAL) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = [*special, *(f"w{index}" for index in range(VOCAB - len(special)))]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token=words[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    names = {"<bos>": "bos_token", "<eos>": "eos_token", "<pad>": "pad_token", "<unk>": "unk_token"}
    chosen = {names[word]: word for word in special}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **chosen).save_pretrained(folder)


def make_model(folder: Path, seed: int = 0) -> Path:
    """Random weights, larger than at initialisation so that blocks do something."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel
    from transformers.utils import logging as hf_logging

    hf_logging.disable_progress_bar()
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=VOCAB,
        n_positions=32,
        n_ctx=32,
        n_embd=D_MODEL,
        n_layer=3,
        n_head=4,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=3,
    )
    model = GPT2LMHeadModel(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 2 or name.endswith("bias"):
                weight.add_(torch.randn_like(weight) * 0.15)
    model.save_pretrained(folder)
    make_tokenizer(folder)
    return folder


def make_sae(folder: Path, architecture: str, hook: str, seed: int, **fields: Any) -> Path:
    import torch
    from sae_lens import SAE
    from sae_lens.registry import get_sae_class

    made, config = get_sae_class(architecture)
    cfg = config.from_dict(
        {"architecture": architecture, "d_in": D_MODEL, "d_sae": D_SAE, "dtype": "float32", "device": "cpu", **fields}
    )
    cfg.metadata.hook_name, cfg.metadata.prepend_bos, cfg.metadata.context_size = hook, True, CONTEXT
    sae: SAE[Any] = made(cfg)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in sae.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            if name == "W_dec":
                weight.copy_(noise / noise.norm(dim=-1, keepdim=True))
            elif name in ("b_enc", "b_gate", "b_mag", "threshold"):
                weight.copy_(noise.abs() * (0.5 if name == "threshold" else -0.5))
            elif name == "W_enc":
                alike = sae.W_dec.T * 0.6 if sae.W_dec.shape[1] == len(weight) else 0.2 * noise
                weight.copy_(alike + 0.05 * noise)
            else:
                weight.copy_(0.1 * noise)
    sae.save_model(folder)
    return folder


def make_text(path: Path, seed: int = 0, documents: int = 60) -> Path:
    rng = random.Random(seed)
    lines = [" ".join(f"w{min(int(rng.expovariate(0.05)), 115)}" for _ in range(rng.randint(3, 50))) for _ in range(documents)]
    path.write_text("".join(json.dumps({"text": line, "n": index}) + "\n" for index, line in enumerate(lines)))
    return path


def make_world(root: Path) -> SimpleNamespace:
    """``job`` measures all SAEs of the world on 20 sequences; ``loaded`` is the model, loaded once as a TransformerBridge."""
    import torch

    from saesync.measure.models import load_model

    model = make_model(root / "model")
    saes = tuple(
        MeasureSae(f"rel/{name}", name, str(make_sae(root / name, name.partition("-")[0], hook, seed, **fields)), hook)
        for seed, (name, (hook, fields)) in enumerate(SAES.items())
    )
    job = MeasureJob(
        model=str(model), loader="TransformerBridge", dtype="float32", kwargs={}, dataset=str(make_text(root / "text.jsonl")),
        dataset_files=(), column="text", split="train", tokens=20 * CONTEXT, context=CONTEXT, prepend_bos=True, device="cpu",
        saes=saes, cache=str(root / "cache"),
    )  # fmt: skip
    loaded = load_model(model, "TransformerBridge", "float32", {}, torch.device("cpu"))
    return SimpleNamespace(root=root, model=model, saes=saes, job=job, loaded=loaded)


def job_for(world: SimpleNamespace, loader: str) -> MeasureJob:
    """All SAEs of the world, or those at a hook that the loader has, too."""
    if loader != "AutoModelForCausalLM":
        return replace(world.job, loader=loader, model_name="gpt2")
    there = {"blocks.1.hook_resid_post": "transformer.h.1", "blocks.2.hook_resid_post": "transformer.h.2"}
    saes = tuple(replace(sae, hook=there[sae.hook]) for sae in world.saes if sae.hook in there)
    return replace(world.job, loader=loader, saes=saes)


def capture_job(world: SimpleNamespace, loader: str, out: dict[str, str]) -> CaptureJob:
    job = world.job
    return CaptureJob(
        model=job.model, loader=loader, dtype="float32", kwargs={}, dataset=job.dataset, dataset_files=(), column="text",
        split="train", context=CONTEXT, prepend_bos=True, device="cpu", rows=50, out=out, cache=job.cache,
    )  # fmt: skip


def only(job: MeasureJob, *names: str) -> MeasureJob:
    """The job with the SAEs of these names alone."""
    return replace(job, saes=tuple(sae for sae in job.saes if sae.key in names))


def loss_of(
    world: SimpleNamespace, tokens: torch.Tensor, keep: torch.Tensor, hook: str, change: Callable[[Any], Any] | None = None
) -> torch.Tensor:
    """The model's mean loss where ``keep``, with ``change`` of the activation at ``hook``, the whole model run."""
    from torch.nn.functional import cross_entropy

    hooks = [] if change is None else [(hook, lambda value, hook: change(value))]
    logits = world.loaded.module.run_with_hooks(tokens, fwd_hooks=hooks, return_type="logits")
    found = cross_entropy(logits[:, :-1].transpose(1, 2), tokens[:, 1:], reduction="none")
    mean: torch.Tensor = found[keep[:, :-1]].double().mean()
    return mean

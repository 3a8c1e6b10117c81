"""The demo's language model: a byte-level BPE tokenizer and a small GPT-2, trained in plain torch."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from saesync.demo.corpus import read_texts
from saesync.demo.recipe import Recipe
from saesync.errors import SaesyncError

END = "<|endoftext|>"
Tick = Callable[[int, int], None]


def train_tokenizer(texts: list[str], recipe: Recipe) -> Any:
    """A byte-level BPE tokenizer in Hugging Face's form; ``<|endoftext|>`` (id 0) is BOS and EOS, as in GPT-2."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=recipe.vocab,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token=END, eos_token=END, model_max_length=recipe.context, clean_up_tokenization_spaces=False
    )


def pack(texts: list[str], tokenizer: Any, context: int) -> torch.Tensor:
    """Token ids ``[sequences, context]``: documents joined by EOS, each sequence opened by BOS; a short rest is dropped."""
    bos = tokenizer.bos_token_id
    joined: list[int] = []
    for encoding in tokenizer.backend_tokenizer.encode_batch(texts, add_special_tokens=False):
        joined.extend(encoding.ids)
        joined.append(bos)
    width = context - 1
    rows = torch.tensor(joined[: len(joined) // width * width]).view(-1, width)
    return torch.cat([torch.full((len(rows), 1), bos), rows], dim=1)


def unigram_entropy(tokens: torch.Tensor) -> float:
    """Entropy (nats per token) of the tokens' own frequencies: the least loss of any model that ignores context.

    ``tokens`` is ``[sequences, context]``; the opening BOS is not predicted and not counted.
    """
    counts = torch.bincount(tokens[:, 1:].flatten()).double()
    p = counts[counts > 0] / counts.sum()
    return float(-(p * p.log()).sum())


def held_out_loss(model: Any, tokens: torch.Tensor, batch: int) -> float:
    """Mean next-token cross-entropy (nats) over ``tokens [sequences, context]``."""
    total = 0.0
    with torch.inference_mode():
        for start in range(0, len(tokens), batch):
            rows = tokens[start : start + batch]
            total += float(model(input_ids=rows, labels=rows).loss) * len(rows)
    return total / len(tokens)


def train_model(tokens: torch.Tensor, recipe: Recipe, tick: Tick) -> Any:
    """A GPT-2 trained on ``tokens [sequences, context]`` with AdamW, warm-up and cosine decay.

    ``tick`` gets tokens done and in all.
    """
    torch.manual_seed(recipe.seed)
    config = GPT2Config(
        vocab_size=recipe.vocab,
        n_positions=recipe.context,
        n_embd=recipe.d_model,
        n_layer=recipe.layers,
        n_head=recipe.heads,
        bos_token_id=0,
        eos_token_id=0,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )
    model = GPT2LMHeadModel(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.model_lr, betas=(0.9, 0.95), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, recipe.model_steps))
    picker = torch.Generator().manual_seed(recipe.seed)
    per_step = recipe.model_batch * recipe.context
    model.train()
    for step in range(recipe.model_steps):
        rows = tokens[torch.randint(len(tokens), (recipe.model_batch,), generator=picker)]
        model(input_ids=rows, labels=rows).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        schedule.step()
        tick((step + 1) * per_step, recipe.model_steps * per_step)
    return model.eval()


def make_model(folder: Path, data: Path, recipe: Recipe, tick: Tick) -> dict[str, Any]:
    """Train tokenizer and model on ``data/train.jsonl`` and save both into ``folder``.

    Returns held-out loss and unigram entropy (nats per token), the number of parameters and of tokens trained on.

    Raises:
        SaesyncError: the model did not learn: its loss is not ``recipe.margin`` below the unigram entropy.
    """
    texts = read_texts(data / "train.jsonl")
    tokenizer = train_tokenizer(texts, recipe)
    model = train_model(pack(texts, tokenizer, recipe.context), recipe, tick)
    held_out = pack(read_texts(data / "held_out.jsonl"), tokenizer, recipe.context)[:256]
    entropy, loss = unigram_entropy(held_out), held_out_loss(model, held_out, recipe.model_batch)
    if not loss <= entropy - recipe.margin:
        raise SaesyncError(
            "Model did not learn",
            f"Its loss on held-out text is {loss:.2f} nats per token, and the unigram entropy is {entropy:.2f}; "
            f"at least {recipe.margin} below was expected. Please report this with the versions of Python and torch.",
        )
    model.save_pretrained(folder, safe_serialization=True)
    tokenizer.save_pretrained(folder)
    return {
        "unigram_entropy": entropy,
        "loss": loss,
        "params": sum(parameter.numel() for parameter in model.parameters()),
        "tokens": recipe.model_steps * recipe.model_batch * recipe.context,
    }


def _rate(step: int, steps: int) -> float:
    """Share of the peak learning rate: linear warm-up over 5 % of the steps, then a cosine to 5 %."""
    warm_up = max(1, steps // 20)
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up)))

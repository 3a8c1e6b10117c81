"""Passes that skip blocks give what whole passes give, with all three loaders, at every kind of hook."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from measure_world import THIRD_PARTY, make_tokenizer

from saesync.errors import Refused
from saesync.measure.models import load_model
from saesync.measure.passes import LanguageModel, Route, _arity

pytestmark = [pytest.mark.filterwarnings(note) for note in THIRD_PARTY]
HOOKS = {
    "TransformerBridge": {
        "blocks.0.hook_resid_pre": Route(),
        "blocks.1.hook_resid_pre": Route(1, direct=True),
        "blocks.1.hook_resid_mid": Route(1),
        "blocks.1.hook_resid_post": Route(2, direct=True),
        "blocks.2.hook_resid_post": Route(3, direct=True),
        "blocks.2.hook_mlp_out": Route(2),
        "blocks.2.attn.hook_z": Route(2),
        # holds the residual stream, but only the attention reads it: giving it as the block's input would be wrong
        "blocks.2.ln1.hook_in": Route(2),
    },
    "HookedTransformer": {
        "hook_embed": Route(),
        "blocks.1.hook_resid_pre": Route(1, direct=True),
        "blocks.1.hook_resid_post": Route(2, direct=True),
        "blocks.2.hook_mlp_out": Route(2),
        "blocks.2.attn.hook_z": Route(2),
    },
    "AutoModelForCausalLM": {
        "transformer.wte": Route(),
        "transformer.h.1": Route(2, direct=True),
        "transformer.h.2": Route(3, direct=True),
        "transformer.h.2.mlp": Route(2),
        "transformer.h.2.attn": Route(2),
    },
}


def loaded(world: SimpleNamespace, loader: str) -> LanguageModel:
    return load_model(world.model, loader, "float32", {}, torch.device("cpu"), "gpt2")


def test_a_model_that_fails_on_tokens_is_named(tmp_path: Path) -> None:
    """TransformerBridge mixes the dtypes of OLMo 2 in bfloat16."""
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    transformers.Olmo2ForCausalLM(
        transformers.Olmo2Config(**sizes, vocab_size=128, pad_token_id=0, eos_token_id=0)
    ).save_pretrained(tmp_path)
    make_tokenizer(tmp_path)
    model = load_model(tmp_path, "TransformerBridge", "bfloat16", {}, torch.device("cpu"))
    with pytest.raises(Refused, match=r"fails on tokens: .*dtype.* Use another `loader`, or `dtype: float32`"):
        model.clean(torch.arange(8)[None], frozenset())


def test_a_gpu_that_fails_ends_its_worker(world: SimpleNamespace) -> None:
    """Nothing is wrong with the model: another process may well run it."""
    model = loaded(world, "TransformerBridge")

    def fail(_module: Any, _given: Any) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    handle = model.blocks[0].register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="CUDA error"):
        model.clean(torch.arange(8)[None], frozenset())
    handle.remove()


@pytest.mark.parametrize("loader", HOOKS)
@torch.no_grad()
def test_skipping_blocks_changes_nothing(world: SimpleNamespace, loader: str) -> None:
    model = loaded(world, loader)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(4, 120, (3, 16), generator=generator)
    routes = model.routes(tokens[:1], frozenset(HOOKS[loader]))
    assert routes == HOOKS[loader]
    before, seen = model.clean(tokens, frozenset(routes), frozenset(range(len(model.blocks))))
    for hook, route in routes.items():
        noise = torch.randn(seen.hooks[hook].shape, generator=generator)
        whole = model.changed(tokens, hook, Route(), lambda x, noise=noise: x + noise, seen)
        short = model.changed(tokens, hook, route, lambda x, noise=noise: x + noise, seen)
        assert torch.equal(short, whole), hook
        assert not torch.allclose(whole, before), hook
    after, _ = model.clean(tokens, frozenset())
    assert torch.equal(after, before)  # nothing of ours is left in the model


FAMILIES: dict[str, dict[str, Any]] = {
    "Llama": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_key_value_heads": 2},
    "Gemma2": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_key_value_heads": 2, "sliding_window": 8},
    "Bloom": {"hidden_size": 32, "n_layer": 3, "n_head": 4},  # its blocks return tuples
}


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_other_families_skip_blocks_too(family: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    shape = {"vocab_size": 120, "num_attention_heads": 4, "head_dim": 8, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3}
    config = getattr(transformers, f"{family}Config")(**shape, **FAMILIES[family])
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    make_tokenizer(tmp_path)
    tokens = torch.randint(4, 120, (2, 16))
    expected = {"blocks.1.hook_resid_post": (2, True), "blocks.2.hook_resid_pre": (2, True), "blocks.2.hook_mlp_out": (2, False)}
    model = load_model(tmp_path, "TransformerBridge", "float32", {}, torch.device("cpu"))
    routes = model.routes(tokens, frozenset(expected))
    assert {hook: (route.start, route.direct) for hook, route in routes.items()} == expected


@torch.no_grad()
def test_a_model_whose_blocks_share_more_than_the_stream_is_run_whole(world: SimpleNamespace) -> None:
    """The last block takes something that the first one left in the same pass, as in models that share keys and values."""
    model = loaded(world, "AutoModelForCausalLM")
    left: list[torch.Tensor] = []
    first, _, last = model.blocks
    forward = first.forward

    def leaving(hidden: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        left.append(hidden)
        return forward(hidden, *args, **kwargs)

    first.__dict__["forward"] = leaving
    last.register_forward_pre_hook(lambda _module, args: (args[0] + left.pop(), *args[1:]))
    tokens = torch.randint(4, 120, (1, 16), generator=torch.Generator().manual_seed(0))
    assert model.routes(tokens, frozenset({"transformer.h.1"})) == {"transformer.h.1": Route()}
    assert first.__dict__["forward"] is leaving


def test_a_hook_that_does_not_fire_is_absent(world: SimpleNamespace) -> None:
    _, seen = world.loaded.clean(torch.tensor([[1, 5, 6]]), frozenset({"blocks.1.hook_mlp_in", "blocks.1.hook_resid_post"}))
    assert set(seen.hooks) == {"blocks.1.hook_resid_post"}


@pytest.mark.parametrize("seeing", ["hook", "block"])
@torch.no_grad()
def test_what_a_model_writes_over_later_is_kept_as_the_hook_saw_it(seeing: str, tmp_path: Path) -> None:
    """Falcon adds the attention's output to the MLP's in place, after the MLP's hook."""
    torch.manual_seed(0)
    shape = {"vocab_size": 120, "hidden_size": 32, "num_attention_heads": 4, "bos_token_id": 1, "eos_token_id": 2}
    config = transformers.FalconConfig(num_hidden_layers=2, parallel_attn=True, new_decoder_architecture=False, **shape)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    make_tokenizer(tmp_path)
    model = load_model(tmp_path, "AutoModelForCausalLM", "float32", {}, torch.device("cpu"))
    mlp = model.module.model.transformer.h[1].mlp
    if seeing == "block":  # a model whose block's output is what is written over
        model = replace(model, blocks=(*model.blocks, mlp))
    tokens = torch.randint(4, 120, (2, 16), generator=torch.Generator().manual_seed(0))
    saw: list[torch.Tensor] = []
    mlp.register_forward_hook(lambda _module, _inputs, out: saw.append(out.clone()))
    hook = "transformer.h.1.mlp"
    for _ in range(2):
        logits, seen = model.clean(tokens, frozenset({hook}), frozenset({0, 2} if seeing == "block" else {0}))
        assert torch.equal(seen.hooks[hook], saw[-1])
        if seeing == "block":
            assert torch.equal(seen.blocks[2], saw[-1])
        same = model.changed(tokens, hook, Route(1, arity=_arity(seen.blocks[0])), lambda x: x.clone(), seen)
        assert torch.allclose(same, logits, atol=1e-6)
    assert len(saw) == 5  # found out once: one pass was run again

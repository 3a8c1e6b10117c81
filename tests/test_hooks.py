"""hf_hook_name names the very tensor TransformerLens has at the hook: compared on small random models of each family."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from saesync.hooks import contradict, hf_hook_name, layer_of

SMALL = {
    "vocab_size": 16,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 32,
}
GROUPED = {**SMALL, "num_key_value_heads": 2}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT2", {"vocab_size": 16, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32}),
    "gpt_neox": ("GPTNeoX", SMALL),
    "llama": ("Llama", GROUPED),
    "mistral": ("Mistral", GROUPED),
    "qwen2": ("Qwen2", GROUPED),
    "gemma2": ("Gemma2", {**GROUPED, "head_dim": 8}),
    "phi3": ("Phi3", {**GROUPED, "pad_token_id": 0}),
}
HOOKS = [f"blocks.1.{site}" for site in ("hook_resid_post", "hook_resid_pre", "hook_mlp_out", "hook_attn_out")]


@pytest.mark.filterwarnings("ignore")  # third-party deprecations inside transformers and transformer_lens
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_the_module_gives_the_hooks_tensor(family: str, tmp_path: Path) -> None:
    import torch
    import transformers
    from tokenizers import Tokenizer, models
    from transformer_lens.model_bridge import TransformerBridge

    name, fields = FAMILIES[family]
    config = getattr(transformers, f"{name}Config")(**fields)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    model.save_pretrained(tmp_path)
    end = "<|endoftext|>"
    words = Tokenizer(models.WordLevel({end: 0, "a": 1}, unk_token=end))
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, bos_token=end, eos_token=end).save_pretrained(tmp_path)
    bridge = TransformerBridge.boot_transformers(str(tmp_path), device="cpu")
    ids = torch.randint(0, 16, (1, 8))
    _, cache = bridge.run_with_cache(ids)
    mapped = {hook: module for hook in HOOKS if (module := hf_hook_name(hook, config.model_type)) is not None}
    assert "blocks.1.hook_resid_post" in mapped
    for hook, module in mapped.items():
        seen: list[torch.Tensor] = []
        handle = model.get_submodule(module).register_forward_hook(
            lambda _module, _args, out, seen=seen: seen.append(out[0] if isinstance(out, tuple) else out)
        )
        model(ids)
        handle.remove()
        torch.testing.assert_close(seen[0], cache[hook], atol=1e-5, rtol=1e-5)


def test_what_is_not_surely_equal_is_left_out() -> None:
    assert hf_hook_name("blocks.1.hook_mlp_out", "gemma2") is None  # a norm follows the module
    assert hf_hook_name("blocks.0.hook_resid_pre", "gpt2") is None
    assert hf_hook_name("blocks.1.hook_resid_post", "unheard_of") is None
    assert hf_hook_name("model.layers.3.mlp", "llama") == "model.layers.3.mlp"


@pytest.mark.parametrize(
    ("hook", "layer"),
    [("blocks.12.hook_resid_post", 12), ("model.layers.3.mlp", 3), ("transformer.h.0", 0), ("hook_embed", None)],
)
def test_layer_of(hook: str, layer: int | None) -> None:
    assert layer_of(hook) == layer


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("blocks.5.hook_resid_post", "blocks.5.hook_resid_post", False),
        ("blocks.5.hook_resid_post", "blocks.6.hook_resid_pre", False),
        ("blocks.5.hook_resid_post", "blocks.5.hook_resid_pre", True),
        ("blocks.5.hook_resid_post", "blocks.6.hook_resid_post", True),
        ("blocks.5.hook_resid_post", "model.layers.5", False),
        ("transformer.h.4", "blocks.5.hook_resid_pre", False),
        ("blocks.5.hook_resid_post", "model.language_model.layers.6", True),
        ("blocks.5.hook_mlp_out", "model.layers.5.mlp", False),
        ("blocks.5.hook_mlp_out", "model.layers.6.mlp", True),
        ("blocks.5.hook_mlp_out", "blocks.5.hook_resid_post", True),
        ("blocks.5.hook_mlp_out", "blocks.5.mlp.hook_out", False),  # one activation under two names of TransformerBridge
        ("blocks.5.hook_resid_mid", "blocks.5.hook_mlp_in", False),  # HookedTransformer's is a copy of the other
        ("model.layers.4.output", "blocks.5.hook_resid_pre", False),
        ("transformer.blocks.4", "blocks.5.hook_resid_pre", False),
        ("hook_embed", "blocks.0.hook_resid_pre", False),  # nothing is sure
    ],
)
def test_names_that_are_surely_of_different_activations(one: str, other: str, expected: bool) -> None:
    assert contradict(one, other) is expected
    assert contradict(other, one) is expected

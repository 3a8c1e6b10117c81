"""The hooks proposed for Gemma Scope name the tensors its SAEs were trained on: compared on a small random Gemma 3."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from saesync.formats.gemma_scope_2 import _HOOKS


@pytest.mark.filterwarnings("ignore")  # third-party deprecations inside transformers and transformer_lens
def test_modules_and_hooks_are_the_same_tensors(tmp_path: Path) -> None:
    import transformers
    from tokenizers import Tokenizer, models
    from transformer_lens.model_bridge import TransformerBridge

    config = transformers.Gemma3TextConfig(
        vocab_size=16, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2,
        head_dim=8, max_position_embeddings=32, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.Gemma3ForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # norms of 1 would hide what is before and what behind them
            parameter.add_(torch.randn_like(parameter) * 0.3)
    model.save_pretrained(tmp_path)
    end = "<|endoftext|>"
    words = Tokenizer(models.WordLevel({end: 0, "a": 1}, unk_token=end))
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, bos_token=end, eos_token=end).save_pretrained(tmp_path)
    ids = torch.randint(0, 16, (1, 8), generator=torch.Generator().manual_seed(0))
    _, cache = TransformerBridge.boot_transformers(str(tmp_path), device="cpu").run_with_cache(ids)
    seen: dict[str, torch.Tensor] = {}

    def keep(name: str, value: torch.Tensor | tuple[torch.Tensor, ...]) -> None:
        seen[name] = value[0] if isinstance(value, tuple) else value

    for name in _HOOKS:
        module = model.get_submodule("model.layers.1" if name == "output" else f"model.layers.1.{name.rpartition('.')[0]}")
        module.register_forward_hook(lambda _, given, out, name=name: keep(name, given if name.endswith("input") else out))
    embedded: list[torch.Tensor] = []
    model.get_submodule("model.embed_tokens").register_forward_hook(lambda _m, _g, out: embedded.append(out))
    with torch.no_grad():
        model(ids)
    assert set(seen) == set(_HOOKS)
    for name, hook in _HOOKS.items():
        torch.testing.assert_close(cache[f"blocks.1.{hook}"].reshape(seen[name].shape), seen[name], atol=1e-4, rtol=1e-4)
    # What `kind: embedding` of gemma_scope folds: models hand on rows times sqrt(d_in).
    rows = model.get_input_embeddings().weight[ids] * 16**0.5
    torch.testing.assert_close(cache["hook_embed"], rows, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(embedded[0], rows, atol=1e-4, rtol=1e-4)

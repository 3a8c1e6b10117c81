"""Hook names: TransformerLens's vocabulary and the Hugging Face modules that give the same tensor.

Only families where the two are equal are mapped; anything else is left out rather than guessed.
"""

from __future__ import annotations

import re

_BLOCKS = {
    "gpt2": "transformer.h.{layer}",
    "gpt_neo": "transformer.h.{layer}",
    "gptj": "transformer.h.{layer}",
    "gpt_neox": "gpt_neox.layers.{layer}",
    **dict.fromkeys(
        ("llama", "mistral", "gemma", "gemma2", "gemma3_text", "qwen2", "qwen3", "phi3", "olmo", "olmo2", "gpt_oss"),
        "model.layers.{layer}",
    ),
}
# In these families the module's output is what TransformerLens calls mlp_out and attn_out: no norm follows it.
_LLAMA_LIKE = ("llama", "mistral", "gemma", "qwen2", "qwen3", "phi3", "olmo")
_PLAIN_OUTPUTS = {
    "gpt2": {"hook_mlp_out": "mlp", "hook_attn_out": "attn"},
    "gpt_neox": {"hook_mlp_out": "mlp", "hook_attn_out": "attention"},
    **{family: {"hook_mlp_out": "mlp", "hook_attn_out": "self_attn"} for family in _LLAMA_LIKE},
}
_HOOK = re.compile(r"blocks\.(\d+)\.(.+)")


def name_output(architecture: str) -> str:
    """What to do where nothing says which activation a transcoder's output stands for."""
    said = "Name the hook it predicts as `hook_out` beside `hook`, on the command line with `--hook-out`"
    if architecture.startswith("skip"):  # SAELens has no other class for an autoencoder with a skip connection
        said += "; an autoencoder with a skip connection predicts what it reads, so that both are the same hook"
    return f"{said}."


def layer_of(hook: str) -> int | None:
    """The layer a hook name speaks of: ``blocks.12.hook_resid_post`` and ``model.layers.12.mlp`` give 12."""
    match = re.search(r"(?:^|\.)(?:blocks|layers|h)\.(\d+)(?:\.|$)", hook)
    return int(match.group(1)) if match else None


def hf_hook_name(hook: str, model_type: str | None) -> str | None:
    """The Hugging Face module whose output is the tensor at ``hook``, or None where no module surely is.

    ``model_type`` is config.json's. ``hook_resid_pre`` of layer L is the output of block L-1.
    """
    match = _HOOK.fullmatch(hook)
    if match is None:
        return hook if re.match(r"(model|transformer|gpt_neox)\.", hook) else None
    block = _BLOCKS.get(model_type or "")
    if block is None:
        return None
    layer, site = int(match.group(1)), match.group(2)
    if site == "hook_resid_post":
        return block.format(layer=layer)
    if site == "hook_resid_pre":
        return block.format(layer=layer - 1) if layer > 0 else None
    module = _PLAIN_OUTPUTS.get(model_type or "", {}).get(site)
    return None if module is None else f"{block.format(layer=layer)}.{module}"

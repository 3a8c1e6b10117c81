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


_SITES = frozenset(
    {"hook_resid_pre", "hook_resid_mid", "hook_resid_post", "hook_mlp_out", "hook_attn_out", "attn.hook_z",
     "mlp.hook_pre", "mlp.hook_post", "ln1.hook_normalized", "ln2.hook_normalized"}
)  # fmt: skip


def contradict(one: str, other: str) -> bool:
    """Whether two names, each in either vocabulary, are surely of different activations: other layers, or well-known sites that
    differ. Layer L's ``hook_resid_post`` is layer L + 1's ``hook_resid_pre``, and the output of the Hugging Face block L.
    """
    if one == other:
        return False
    depths = _depth(one), _depth(other)
    if None not in depths:
        return depths[0] != depths[1]
    layers = layer_of(one), layer_of(other)
    if None not in layers and layers[0] != layers[1]:
        return True
    return {_site(one), _site(other)} <= _SITES


def _depth(hook: str) -> int | None:
    """How many blocks have written to the residual stream that is meant; None for another activation."""
    if (match := re.fullmatch(r"blocks\.(\d+)\.hook_resid_(pre|post)", hook)) is not None:
        return int(match[1]) + (match[2] == "post")
    match = re.fullmatch(r"(?:\w+\.)*(?:layers|h|blocks)\.(\d+)(?:\.output)?", hook)
    return None if match is None else int(match[1]) + 1


def _site(hook: str) -> str:
    match = _HOOK.fullmatch(hook)
    return "" if match is None else match[2]


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

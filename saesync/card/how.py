"""How the numbers of a card were measured, in a sentence. Everything shown comes from a record and is written inert."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from saesync.digest import short
from saesync.inert import code, plain
from saesync.model import Sae

_VERSIONS = ("torch", "sae_lens", "transformer_lens", "transformers")


def how_measured(inputs: Mapping[str, Any], about: Mapping[str, Any], sae: Sae | None) -> str:
    """One line: tokens and dataset, model and loader, device, versions. ``sae`` names what the record knows by digest only."""
    spec = sae.validate if sae is not None else None
    dataset = _named(inputs, "validate.dataset.", "repo", None if spec is None else spec.dataset.label)
    model = _named(inputs, "model.", "name", None if sae is None else sae.model.label)
    tokens = _integer(about.get("tokens", inputs.get("validate.tokens")))
    shape = f"{_integer(about.get('sequences'))} sequences of {_integer(inputs.get('validate.context'))}"
    bos = "BOS first" if inputs.get("validate.prepend_bos") else "no BOS"
    versions = ", ".join(f"{name} {_inert(about[name])}" for name in _VERSIONS if name in about)
    return (
        f"{tokens} tokens of {dataset} ({shape}, {bos}); model {model} through {_inert(inputs.get('model.loader'))} "
        f"in {_inert(inputs.get('model.dtype'))}, on {_inert(about.get('device'))}{f'; {versions}' if versions else ''}."
    )


def _named(inputs: Mapping[str, Any], prefix: str, name: str, label: str | None) -> str:
    """A Hub name with its revision, or a local label with the content's digest."""
    if isinstance(found := inputs.get(prefix + name), str):
        revision = inputs.get(prefix + "revision")
        return f"{code(found)} at {code(short(revision))}" if isinstance(revision, str) else code(found)
    digest = inputs.get(prefix + "digest")
    content = f"content {code(short(digest))}" if isinstance(digest, str) else "unknown content"
    return f"{code(label)} ({content})" if label else content


def _integer(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else "?"


def _inert(value: Any) -> str:
    """Short words as they are, everything else as code."""
    text = plain("?" if value is None else value, 80)
    return text if text.replace(".", "").replace("+", "").replace(":", "").replace("_", "").isalnum() else code(text)

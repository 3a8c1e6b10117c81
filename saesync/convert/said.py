"""What a source says of its own training, against what the manifest says of measuring. Pure; no torch.

The length of training's sequences, and whether BOS began them, are facts that no measurement changes: cfg.json keeps them, and
the record says what was measured with. How the model's weights were processed decides which activations the SAE reads: measured
and published otherwise, all numbers would be those of another input, so a contradiction is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from saesync.errors import Diagnostic, Refused
from saesync.hooks import contradict
from saesync.measure.loaders import PROCESSING

KWARGS = "model_from_pretrained_kwargs"
_NOTED, _LONG = "source.", 200
_HOOKS = ("hook_name", "hf_hook_name", "hook_name_out", "hf_hook_name_out")
_OF_TRAINING = {"prepend_bos": bool, "context_size": int}


def settled(source: Mapping[str, Any], manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest's metadata for cfg.json, less what the source's own metadata says itself.

    Raises:
        Refused: the source's activations come from a model with processed weights, of which the manifest says nothing.
    """
    if KWARGS in manifest:
        require_same_processing(source.get(KWARGS), manifest[KWARGS])
    return {name: value for name, value in manifest.items() if not _own(name, source)}


def noted(source: Mapping[str, Any]) -> dict[str, Any]:
    """What a source says that counts later as well, flat, to stand with the proof: a relabel does not have the source."""
    hooks = {name: source[name] for name in _HOOKS if isinstance(source.get(name), str) and len(source[name]) <= _LONG}
    own = {name: source[name] for name in _OF_TRAINING if _own(name, source)}
    said = source.get(KWARGS)
    flags = [name for name in PROCESSING if isinstance(said, Mapping) and said.get(name) is True]
    return {f"{_NOTED}{name}": value for name, value in {**hooks, **own, **dict.fromkeys(flags, True)}.items()}


def recalled(proof: Mapping[str, Any]) -> dict[str, Any]:
    """What was ``noted``, as metadata."""
    found = {name.removeprefix(_NOTED): value for name, value in proof.items() if name.startswith(_NOTED)}
    flags = {name: found.pop(name) for name in PROCESSING if name in found}
    return {**found, **({KWARGS: flags} if flags else {})}


def require_source_hooks(source: Mapping[str, Any], manifest: Mapping[str, Any]) -> None:
    """``require_same_hooks`` of a source, where nothing that is measured would tell a wrong hook."""
    decide = " If the source is wrong, bounds under `validate.require` decide: a wrong hook misses them."
    require_same_hooks(source, manifest, "The source", decide)


def require_same_hooks(said: Mapping[str, Any], manifest: Mapping[str, Any], whose: str = "its cfg.json", do: str = "") -> None:
    """Whether somebody else's metadata names the manifest's hooks. What it does not say contradicts nothing.

    Raises:
        Refused: it names another hook: numbers measured at one would be published for the other.
    """
    for name, hf_name in (("hook_name", "hf_hook_name"), ("hook_name_out", "hf_hook_name_out")):
        ours, theirs = ([str(names[key]) for key in (name, hf_name) if names.get(key) is not None] for names in (manifest, said))
        if ours and theirs and all(contradict(one, other) for one in ours for other in theirs):
            detail = f"{whose} says {name} {theirs[0][:100]!r}, and the manifest {ours[0][:100]!r}: correct one.{do}"
            raise Refused.of([Diagnostic("Another hook", detail, key="hook" if name == "hook_name" else "hook_out")])


def _own(name: str, source: Mapping[str, Any]) -> bool:
    return name in _OF_TRAINING and type(source.get(name)) is _OF_TRAINING[name]


def require_same_processing(said: Any, manifest: Mapping[str, Any], whose: str = "The source") -> None:
    """Whether the manifest speaks of every flag by which somebody says that the model's weights were processed.

    Raises:
        Refused: it does not: the activations would be others.
    """
    theirs = said if isinstance(said, Mapping) else {}
    unsaid = [name for name in PROCESSING if theirs.get(name) is True and name not in manifest]
    if unsaid:
        flags = ", ".join(f"{name}: true" for name in unsaid)
        detail = (
            f"{whose} says that its activations come from a model loaded with {flags}, and the manifest's model does not: the "
            f"SAE would be measured, and published, for other activations. Add `kwargs: {{{flags}}}` to `model` (its loader must "
            f"be TransformerBridge or HookedTransformer), or say false there if {whose[0].lower()}{whose[1:]} is wrong."
        )
        raise Refused.of([Diagnostic("Model is processed otherwise", detail, key="model")])

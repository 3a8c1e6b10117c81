"""Gemma Scope (Google DeepMind, 2024): one ``params.npz`` per SAE or transcoder, all of them JumpReLU.

Authors' forward pass, as in their tutorial notebook's ``JumpReLUSAE`` (huggingface.co/google/gemma-scope): ``pre = x W_enc +
b_enc``, ``f = relu(pre) * (pre > threshold)``, output ``f W_dec + b_dec``; nothing is subtracted from the input.

The file says neither model nor layer nor site, and a transcoder has the very arrays of an SAE, so what it is must be declared.
Embedding SAEs were trained on rows of the embedding matrix, while models hand on those rows times ``sqrt(d_in)``: the factor is
folded, into ``b_dec`` too (SAELens's loader leaves ``b_dec`` out, which moves every reconstruction unless it is zero).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from saesync.errors import Refused
from saesync.formats import _jumprelu
from saesync.formats._jumprelu import Shape
from saesync.formats._lazy import Mapped
from saesync.formats._open import beside, choose, open_tensors
from saesync.formats.base import Candidate, Headers, LazyTensor, SourceFiles, TensorInfo, Weights

if TYPE_CHECKING:
    import torch

PARAMS = "params.npz"
KINDS = ("sae", "attention", "embedding", "transcoder")
# What the authors call their repos and folders; proposed by `inspect`, never relied on.
_REPO = re.compile(r"gemma-scope-(?P<size>2b|9b|27b)-(?P<tuned>pt|it)-(?P<site>res|mlp|att|transcoders)(?:[/-]|$)")
_LAYER = re.compile(r"(?:^|/)layer_(\d+)(?:/|$)")
_SITES = {"res": ("sae", "hook_resid_post"), "mlp": ("sae", "hook_mlp_out"), "att": ("attention", "attn.hook_z")}


@dataclass(frozen=True, slots=True)
class GemmaScopeOptions:
    """What the files do not say."""

    kind: Literal["sae", "attention", "embedding", "transcoder"] = field(
        metadata={
            "help": "What the arrays are: sae (residual stream, MLP output), attention (heads at hook_z, joined), embedding "
            "(trained on embedding rows that the model multiplies by sqrt(d_in)), or transcoder (needs hook_out). "
            "All of them have the same arrays."
        }
    )


class GemmaScope:
    """See the module's docstring."""

    name = "gemma_scope"
    version = 1
    summary = "Gemma Scope: JumpReLU SAEs and transcoders in one params.npz each"
    Options: type[Any] = GemmaScopeOptions
    variants = KINDS
    conversion_func = "gemma_2"  # transcoders: gemma_2_transcoder

    def files(self, names: Sequence[str], path: str) -> Mapping[str, str]:
        """The file ``path``, or params.npz in folder ``path``."""
        return beside(names, choose(names, path, (PARAMS,), (".npz",), "A Gemma Scope SAE"))

    def sniff(self, headers: Headers) -> Candidate | None:
        """Certain when the five arrays fit each other; the kind is proposed where the authors' own repo name says it."""
        for file, arrays in headers.tensors.items():
            if not file.endswith(".npz") or not {"w_enc", "w_dec", "threshold"} <= {name.lower() for name in arrays}:
                continue
            try:
                shape = _shape(file, arrays, None)
            except Refused as refusal:
                return Candidate(self.name, 0.9, refusal=refusal.diagnostics[0].detail)
            facts, options = _place(headers.place)
            architecture = "jumprelu_transcoder" if options.get("kind") == "transcoder" else "jumprelu"
            facts = {"architecture": architecture, "d_in": shape.d_in, "d_sae": shape.d_sae, "dtype": shape.dtype} | facts
            return Candidate(self.name, 1.0, facts, options, () if options else ("kind",))
        return None

    def read(self, files: SourceFiles, options: GemmaScopeOptions) -> Weights:
        """See ``Format.read``."""
        ((name, path),) = files.paths.items()
        opened = open_tensors(path, name)
        shape = _shape(name, opened.infos, options.kind)
        tensors: dict[str, LazyTensor] = {_canonical(array): stored for array, stored in opened.tensors.items()}
        if options.kind == "embedding":
            factor = math.sqrt(shape.d_in)
            tensors["W_enc"] = Mapped(tensors["W_enc"], lambda block, *_: block / factor)
            tensors["W_dec"] = Mapped(tensors["W_dec"], lambda block, *_: block * factor)
            tensors["b_dec"] = Mapped(tensors["b_dec"], lambda block, *_: block * factor)
        return Weights(_jumprelu.cfg(shape, options.kind == "transcoder", options.kind == "attention"), tensors)

    def reference(self, files: SourceFiles, options: GemmaScopeOptions, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See ``Format.reference``. Arrays come through zipfile and numpy's own parser, not through ``read``."""
        ((_, path),) = files.paths.items()
        x = x.double()
        factor = math.sqrt(x.shape[1]) if options.kind == "embedding" else 1.0
        features, output = _jumprelu.forward(_jumprelu.NpzArrays(path), x / factor)
        return features, output * factor

    def example(self, folder: Path, seed: int, variant: str = "sae") -> GemmaScopeOptions:
        """A tiny ``params.npz`` of one kind."""
        import numpy as np

        t = _jumprelu.random_parameters(seed, d_out=9 if variant == "transcoder" else 12)
        folder.mkdir(parents=True, exist_ok=True)
        np.savez(folder / PARAMS, **{name: value.numpy() for name, value in t.items()})  # type: ignore[arg-type]  # numpy's stub
        return GemmaScopeOptions(variant)  # type: ignore[arg-type]  # one of KINDS


FORMAT = GemmaScope()


def _canonical(array: str) -> str:
    return f"W_{array[2:]}" if array.startswith("w_") else array


def _shape(file: str, arrays: Mapping[str, TensorInfo], kind: str | None) -> Shape:
    """Dimensions, checked against each other. ``kind`` None accepts what any of them may have.

    Raises:
        Refused: missing or unknown arrays, wrong shapes, an unknown kind.
    """
    if kind is not None and kind not in KINDS:
        raise Refused("Unknown kind", f"kind must be one of {', '.join(KINDS)}, not {kind[:50]!r}.")
    found = {_canonical(array): info for array, info in arrays.items()}
    if len(found) != len(arrays):
        raise Refused("Unknown tensor", f"{file} holds an array twice, in small and in capital letters.")
    return _jumprelu.shape_of(file, found, one_width=kind not in (None, "transcoder"))


def _place(place: str) -> tuple[dict[str, Any], dict[str, str]]:
    """Facts and options that the authors' own naming of a repo and its folders gives."""
    repo, layer = _REPO.search(place), _LAYER.search(place)
    if repo is None:
        return {}, {}
    facts: dict[str, Any] = {"model": f"google/gemma-2-{repo['size']}" + ("-it" if repo["tuned"] == "it" else "")}
    if repo["site"] == "transcoders":
        kind, site = "transcoder", "ln2.hook_normalized"
        facts |= {"hook_out": f"blocks.{int(layer[1])}.hook_mlp_out"} if layer else {}
    else:
        kind, site = _SITES[repo["site"]]
    if layer is None:
        embedding = repo["site"] == "res" and "/embedding/" in f"{place}/"
        return (facts | {"hook": "hook_embed"}, {"kind": "embedding"}) if embedding else (facts, {})
    return facts | {"hook": f"blocks.{int(layer[1])}.{site}"}, {"kind": kind}

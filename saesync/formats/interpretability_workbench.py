"""InterpretabilityWorkbench's SAEs: ``sae_layer_{L}.safetensors`` with ``sae_layer_{L}_metadata.json``.

Authors' forward pass (GuyNachshon/InterpretabilityWorkbench, commit 5c8b040): ``f = act(encoder(x))``; tied, the output is
``f encoder.weight + decoder_bias``; untied, ``decoder(f) + decoder_bias`` where decoder has a bias of its own, and both count.
``act`` is relu or gelu; gelu is negative somewhere, and SAELens has no such SAE. The metadata may say ``tied_weights`` of
converted files that are not: tensors and metadata must agree.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from saesync.errors import Inexpressible, Refused
from saesync.formats import _dense
from saesync.formats._authors import decode, encode, load, random_state
from saesync.formats._checks import read_json
from saesync.formats._dense import LINEAR, Layout, Size
from saesync.formats._lazy import Mapped, whole
from saesync.formats._open import beside, only, open_tensors
from saesync.formats.base import Candidate, Headers, LazyTensor, SourceFiles, TensorInfo, Weights

if TYPE_CHECKING:
    import torch

_FILE = re.compile(r"(sae_layer_\d+)\.safetensors", re.ASCII)
_NAMES = {"W_enc": "encoder.weight", "b_enc": "encoder.bias", "W_dec": "decoder.weight", "b_dec": "decoder.bias"}
_UNTIED = Layout(_NAMES, LINEAR, {"decoder_bias": "d_out"})
_TIED = Layout({**_NAMES, "W_dec": "encoder.weight", "b_dec": "decoder_bias"}, frozenset(("W_enc",)))


@dataclass(frozen=True, slots=True)
class WorkbenchOptions:
    """What a file without its metadata does not say."""

    activation: Literal["relu"] | None = field(
        default=None, metadata={"help": "Needed exactly when there is no _metadata.json beside the weights; only relu converts."}
    )


class InterpretabilityWorkbench:
    """See the module's docstring."""

    name = "interpretability_workbench"
    version = 1
    summary = "InterpretabilityWorkbench SAEs: sae_layer_L.safetensors with its _metadata.json, tied or untied"
    Options: type[Any] = WorkbenchOptions
    variants = ("untied", "tied", "undeclared")

    def files(self, names: Sequence[str], path: str) -> Mapping[str, str]:
        """The file ``path``, or the only sae_layer file directly in folder ``path``, with its metadata."""
        found = only(names, path, _FILE.fullmatch, "A workbench SAE is one file sae_layer_L.safetensors")
        return beside(names, found, _metadata_name(found.rsplit("/", 1)[-1]))

    def sniff(self, headers: Headers) -> Candidate | None:
        """Certain with its metadata; file name and tensors alone leave the activation open."""
        for file, tensors in headers.tensors.items():
            if not _FILE.fullmatch(file) or "encoder.weight" not in tensors or "decoder_bias" not in tensors:
                continue
            metadata = headers.json.get(_metadata_name(file))
            try:
                size = _measure(file, tensors, metadata)
                if metadata is not None:
                    _check_activation(metadata, WorkbenchOptions())
            except Refused as refusal:
                return Candidate(self.name, 0.9, refusal=_dense.reason(refusal))
            facts = {"architecture": "standard", "tied": "decoder.weight" not in tensors, **size.facts}
            needs = ("activation",) if metadata is None else ()
            return Candidate(self.name, 1.0 if metadata is not None else 0.8, facts, needs=needs)
        return None

    def read(self, files: SourceFiles, options: WorkbenchOptions) -> Weights:
        """See ``Format.read``."""
        file, path, metadata = _resolve(files)
        opened = open_tensors(path, file)
        size = _measure(file, opened.infos, metadata)
        _check_activation(metadata, options)
        tensors: dict[str, LazyTensor] = _dense.pick(opened.tensors, _layout(opened.tensors))
        if "decoder.bias" in opened.tensors:
            second = whole(opened.tensors["decoder_bias"]).double()
            tensors["b_dec"] = Mapped(tensors["b_dec"], lambda block, start, stop: block + second[start:stop])
        return Weights(_dense.cfg("standard", size), tensors)

    def reference(self, files: SourceFiles, options: WorkbenchOptions, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See ``Format.reference``."""
        t = load(_resolve(files)[1])
        features = (encode(x.double(), t["encoder.weight"], linear=True) + t["encoder.bias"].double()).relu()
        if "decoder.weight" in t:
            output = decode(features, t["decoder.weight"], linear=True) + t["decoder.bias"].double()
        else:
            output = decode(features, t["encoder.weight"], linear=False)
        return features, output + t["decoder_bias"].double()

    def example(self, folder: Path, seed: int, variant: str = "untied") -> WorkbenchOptions:
        """A tiny one with d_in 12 and d_sae 40; "undeclared" has no metadata."""
        import json

        from safetensors.torch import save_file

        shapes: dict[str, tuple[int, ...]] = {"encoder.weight": (40, 12), "encoder.bias": (40,), "decoder_bias": (12,)}
        if variant != "tied":
            shapes |= {"decoder.weight": (12, 40), "decoder.bias": (12,)}
        folder.mkdir(parents=True, exist_ok=True)
        save_file(random_state(seed, shapes), folder / "sae_layer_3.safetensors")
        if variant == "undeclared":
            return WorkbenchOptions("relu")
        metadata = {"input_dim": 12, "latent_dim": 40, "tied_weights": variant == "tied", "activation_fn": "relu", "layer_idx": 3}
        (folder / "sae_layer_3_metadata.json").write_text(json.dumps(metadata))
        return WorkbenchOptions()


FORMAT = InterpretabilityWorkbench()


def _metadata_name(file: str) -> str:
    return file.removesuffix(".safetensors") + "_metadata.json"


def _resolve(files: SourceFiles) -> tuple[str, Path, Mapping[str, Any] | None]:
    ((file, path),) = ((name, path) for name, path in files.paths.items() if name.endswith(".safetensors"))
    name = _metadata_name(file)
    return file, path, read_json(files.paths[name], name) if name in files.paths else None


def _layout(found: Mapping[str, Any]) -> Layout:
    return _UNTIED if "decoder.weight" in found or "decoder.bias" in found else _TIED


def _measure(file: str, found: Mapping[str, TensorInfo], metadata: Mapping[str, Any] | None) -> Size:
    """Dimensions, as the tensors say; the metadata must agree.

    Raises:
        Refused: missing or unknown tensors, wrong shapes, or other facts in the metadata.
    """
    layout = _layout(found)
    size = _dense.measure(file, found, layout)
    claims = {"input_dim": size.d_in, "latent_dim": size.d_sae, "tied_weights": layout is _TIED}
    for key, truth in claims.items():
        said = (metadata or {}).get(key, truth)
        if said != truth:
            detail = f"{_metadata_name(file)}: {key} is {str(said)[:50]}, the tensors say {truth}."
            raise Refused("Config contradicts tensors", detail)
    return size


def _check_activation(metadata: Mapping[str, Any] | None, options: WorkbenchOptions) -> None:
    said = options.activation if metadata is None else metadata.get("activation_fn")
    if metadata is not None and options.activation is not None:
        raise Refused("Option does not fit", "The metadata says activation_fn. Remove the option `activation`.")
    if said is None:
        detail = "Nothing says which activation it has: relu and gelu have the same tensors. Declare `activation` beside format."
        raise Refused("Needs a declared activation", detail)
    if said != "relu":
        raise Inexpressible.by("activation_fn", f"activation_fn is {str(said)[:50]!r}; SAELens has relu only.")

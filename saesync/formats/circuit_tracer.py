"""circuit-tracer's per-layer transcoders: ``layer_{i}.safetensors`` with one ``config.yaml`` for the set.

Authors' forward pass (circuit-tracer, transcoder/single_layer_transcoder.py, commits d797c82 and 4bb8c0e): ``f = act(x W_encᵀ +
b_enc)``, output ``f W_dec + b_dec``, with ``W_skip`` also ``+ x W_skipᵀ``. ``act`` is relu, or ``h (h > threshold)`` where
``activation_function.threshold`` is stored. ``W_enc`` is ``[d_sae, d_in]``; ``W_dec`` is ``[d_sae, d_out]`` today and was
``[d_out, d_sae]`` in June 2025, which its shape tells unless both are equal.

A TopK transcoder says so in config.yaml; SAELens has none. Without config.yaml the activation must be declared.
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
from saesync.formats._checks import read_yaml
from saesync.formats._circuit_tracer import CONFIG, hooks_and_model
from saesync.formats._dense import Layout, Size
from saesync.formats._lazy import Filled, whole
from saesync.formats._open import beside, only, open_tensors
from saesync.formats.base import Candidate, Headers, SetPart, SourceFiles, TensorInfo, Weights

if TYPE_CHECKING:
    import torch

THRESHOLD = "activation_function.threshold"
_FILE = re.compile(r"layer_(\d+)\.safetensors", re.ASCII)
_ACTIVATIONS = {"relu": "relu", "jumprelu": "jumprelu", "jump_relu": "jumprelu"}


@dataclass(frozen=True, slots=True)
class CircuitTracerOptions:
    """What a file without its config.yaml does not say."""

    activation: Literal["relu", "jumprelu"] | None = field(
        default=None, metadata={"help": "relu or jumprelu; needed exactly when there is no config.yaml beside the weights."}
    )


class CircuitTracer:
    """See the module's docstring."""

    name = "circuit_tracer"
    version = 1
    summary = "circuit-tracer transcoders: layer_i.safetensors with the set's config.yaml; relu, jumprelu, skip"
    Options: type[Any] = CircuitTracerOptions
    variants = ("relu", "jumprelu", "skip", "jumprelu_skip", "june", "undeclared")
    conversion_func = "mwhanna_transcoder"

    def files(self, names: Sequence[str], path: str) -> Mapping[str, str]:
        """The file ``path``, or the only layer file directly in folder ``path``, with config.yaml beside it."""
        found = only(names, path, _FILE.fullmatch, "A transcoder is one file layer_i.safetensors")
        return beside(names, found, CONFIG)

    def sniff(self, headers: Headers) -> Candidate | None:
        """Certain with config.yaml; by name and tensors alone the activation is open."""
        config = headers.json.get(CONFIG)
        for file, tensors in headers.tensors.items():
            if not _FILE.fullmatch(file) or not {"W_enc", "W_dec", "b_enc", "b_dec"} <= set(tensors):
                continue
            try:
                size = _measure(file, tensors)
                if config is not None:
                    _check(config, CircuitTracerOptions(), tensors)
            except Refused as refusal:
                return Candidate(self.name, 0.9, refusal=_dense.reason(refusal))
            facts = {"architecture": _architecture(tensors), **size.facts, **_said(config, file)}
            needs = ("activation",) if config is None else ()
            return Candidate(self.name, 1.0 if config is not None else 0.8, facts, needs=needs)
        return None

    def part_of_set(self, headers: Headers) -> SetPart | None:
        """One layer of a set, whose size nothing says."""
        return next((SetPart(int(match[1])) for file in headers.tensors if (match := _FILE.fullmatch(file))), None)

    def read(self, files: SourceFiles, options: CircuitTracerOptions) -> Weights:
        """See ``Format.read``."""
        file, path = _weights(files)
        config = read_yaml(files.paths[CONFIG], CONFIG) if CONFIG in files.paths else None
        opened = open_tensors(path, file)
        size = _measure(file, opened.infos)
        _check(config, options, opened.infos)
        tensors = _dense.pick(opened.tensors, _layout(file, opened.infos))
        if THRESHOLD in opened.tensors:
            threshold = opened.tensors[THRESHOLD]
            values = whole(threshold).double()
            if not bool((values >= 0).all()):
                detail = f"{file}: {THRESHOLD} is negative somewhere: there features are negative, which SAELens's never are."
                raise Inexpressible.by(THRESHOLD, detail)
            scalar = not threshold.extent.info.shape
            tensors["threshold"] = Filled(values.item(), (size.d_sae,)) if scalar else threshold
        said = _said(config, file)
        named = {"hook_name": "hook", "hook_name_out": "hook_out", "model_name": "model"}
        metadata: dict[str, Any] = {key: said[fact] for key, fact in named.items() if fact in said}
        metadata["model_from_pretrained_kwargs"] = {"fold_ln": False}  # they read what the model itself computes
        return Weights(_dense.cfg(_architecture(opened.tensors), size), tensors, metadata)

    def reference(self, files: SourceFiles, options: CircuitTracerOptions, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See ``Format.reference``."""
        t, x = load(_weights(files)[1]), x.double()
        h = encode(x, t["W_enc"], linear=True) + t["b_enc"].double()
        features = h * (h > t[THRESHOLD].double()) if THRESHOLD in t else h.relu()
        june = t["W_dec"].shape[0] == len(t["b_dec"])
        output = decode(features, t["W_dec"], linear=june) + t["b_dec"].double()
        return features, output + x @ t["W_skip"].double().T if "W_skip" in t else output

    def example(self, folder: Path, seed: int, variant: str = "relu") -> CircuitTracerOptions:
        """A tiny transcoder from 12 to 9; "june" has the older decoder, "undeclared" no config.yaml."""
        from safetensors.torch import save_file

        shapes = {"W_enc": (40, 12), "b_enc": (40,), "W_dec": (9, 40) if variant == "june" else (40, 9), "b_dec": (9,)}
        if "jumprelu" in variant:
            shapes[THRESHOLD] = (40,)
        if "skip" in variant:
            shapes["W_skip"] = (9, 12)
        state = random_state(seed, shapes)
        if THRESHOLD in state:
            state[THRESHOLD] = state[THRESHOLD].abs()
        folder.mkdir(parents=True, exist_ok=True)
        save_file(state, folder / "layer_3.safetensors")
        if variant == "undeclared":
            return CircuitTracerOptions("relu")
        lines = ["model_name: google/gemma-2-2b", "model_kind: transcoder_set", "feature_input_hook: ln2.hook_normalized"]
        text = "\n".join([*lines, "feature_output_hook: hook_mlp_out", "scan: gemma-2-2b", "transcoders: []"])
        (folder / CONFIG).write_text(text + "\n", encoding="utf-8")
        return CircuitTracerOptions()


FORMAT = CircuitTracer()


def _weights(files: SourceFiles) -> tuple[str, Path]:
    ((name, path),) = ((name, path) for name, path in files.paths.items() if name != CONFIG)
    return name, path


def _architecture(found: Mapping[str, Any]) -> str:
    return ("jumprelu_" if THRESHOLD in found else "") + ("skip_" if "W_skip" in found else "") + "transcoder"


def _layout(file: str, found: Mapping[str, TensorInfo]) -> Layout:
    """Where tensors are, with the decoder's orientation by its shape.

    Raises:
        Refused: the shape fits both.
    """
    names = {name: name for name in ("W_enc", "W_dec", "b_enc", "b_dec", *(("W_skip",) if "W_skip" in found else ()))}
    wide, out = (found[bias].shape if bias in found else () for bias in ("b_enc", "b_dec"))
    if wide == out and wide:
        detail = f"{file}: d_sae and d_out are both {wide[0]}, so W_dec may be stored either way round."
        raise Refused("Ambiguous orientation", detail + " Ask its authors for a form that says it.")
    june = "W_dec" in found and found["W_dec"].shape == (*out, *wide)
    extra = {THRESHOLD: "d_sae" if found[THRESHOLD].shape else ""} if THRESHOLD in found else {}
    return Layout(names, frozenset(("W_enc", "W_dec") if june else ("W_enc",)), extra)


def _measure(file: str, found: Mapping[str, TensorInfo]) -> Size:
    if "k" in found:
        raise Inexpressible.by("k", f"{file} holds k: a TopK transcoder, and SAELens has none.")
    return _dense.measure(file, found, _layout(file, found), transcoder=True)


def _check(config: Mapping[str, Any] | None, options: CircuitTracerOptions, found: Mapping[str, Any]) -> None:
    """The activation, as config.yaml or else the manifest says, must be the one that the tensors have.

    Raises:
        Refused: it is not, or SAELens has none such, or nothing says it.
    """
    stored = "jumprelu" if THRESHOLD in found else "relu"
    if config is None:
        if options.activation is None:
            detail = f"There is no {CONFIG} beside the weights, which says whether it is a TopK transcoder. Declare `activation`."
            raise Refused("Needs a declared activation", detail)
        said: Any = options.activation
    else:
        if config.get("model_kind", "transcoder_set") != "transcoder_set":
            kind = str(config["model_kind"])[:50]
            detail = f"{CONFIG}: model_kind is {kind!r}; this format reads transcoder_set."
            raise Inexpressible("Not a set of transcoders", detail, said_by="model_kind")
        if options.activation is not None:
            raise Refused("Option does not fit", f"There is a {CONFIG}. Remove the option `activation`.")
        if config.get("k") is not None:
            raise Inexpressible.by("k", f"{CONFIG} says k: a TopK transcoder, and SAELens has none.")
        said = config.get("activation") or stored
    if (meant := _ACTIVATIONS.get(str(said))) != stored:
        detail = f"The activation is said to be {str(said)[:50]!r}, and the tensors are those of a {stored} transcoder."
        raise Inexpressible.by("activation", detail) if meant is None else Refused("Activations contradict", detail)


def _said(config: Mapping[str, Any] | None, file: str) -> dict[str, str]:
    """Hooks and model; the layer stands in the file's name."""
    match = _FILE.fullmatch(file)
    return {} if match is None else hooks_and_model(config, int(match[1]))

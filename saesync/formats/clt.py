"""Cross-layer transcoders as circuit-tracer keeps them: ``W_enc_{i}.safetensors`` and ``W_dec_{i}.safetensors`` for each layer i,
and one ``config.yaml``. One layer is read, for its features.

Authors' forward pass (circuit-tracer, transcoder/cross_layer_transcoder.py, commit b00048e): ``f_i = act(x_i W_enc_iᵀ +
b_enc_i)``; layer m is predicted as ``sum over i <= m of f_i W_dec_i[:, m - i] + b_dec_m``. ``act`` is relu, or ``h (h >
threshold_i)`` where that is stored.

What one layer's features write is spread over all later layers, and what a layer receives comes from all earlier ones: no SAE of
one layer reconstructs anything. So the result is an encoder: ``W_dec`` is the sum of the slices (as in SAELens's own loader of
these files), good for looking at directions; it is marked ``reconstruction: invalid``, and nothing that needs a reconstruction is
measured on it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saesync.errors import Inexpressible, Refused
from saesync.formats import _dense
from saesync.formats._authors import encode, load, random_state
from saesync.formats._checks import read_yaml, require_tensors, widest
from saesync.formats._circuit_tracer import CONFIG, hooks_and_model
from saesync.formats._cross_layer import INVALID, Written, write_sum
from saesync.formats._dense import Size
from saesync.formats._lazy import Transposed, whole
from saesync.formats._open import beside, only, open_tensors
from saesync.formats.base import Candidate, Headers, LazyTensor, SetPart, SourceFiles, TensorInfo, Weights

if TYPE_CHECKING:
    import torch

KIND = "cross_layer_transcoder"
_FILE = re.compile(r"W_enc_(\d+)\.safetensors", re.ASCII)


@dataclass(frozen=True, slots=True)
class CltOptions:
    """Nothing to declare: the tensors say it all."""


class Clt:
    """See the module's docstring."""

    name = "clt"
    version = 1
    summary = "Cross-layer transcoders (circuit-tracer): one layer's encoder; its reconstruction is marked invalid"
    Options: type[Any] = CltOptions
    variants = ("relu", "jumprelu", "bare")
    conversion_func = "mntss_clt_layer_transcoder"

    def files(self, names: Sequence[str], path: str) -> Mapping[str, str]:
        """The file W_enc_i.safetensors at ``path``, or the only one in that folder, with its decoder and config.yaml."""
        found = only(names, path, _FILE.fullmatch, "A layer of a cross-layer transcoder is one file W_enc_i.safetensors")
        encoder = found.rsplit("/", 1)[-1]
        files = beside(names, found, _decoder_of(encoder), CONFIG)
        if _decoder_of(encoder) not in files:
            raise Refused("Missing file", f"{found} needs {_decoder_of(encoder)} beside it.")
        return files

    def sniff(self, headers: Headers) -> Candidate | None:
        """Certain by the names of its tensors, which carry the layer."""
        for file, tensors in headers.tensors.items():
            match = _FILE.fullmatch(file)
            if match is None or f"W_enc_{match[1]}" not in tensors:
                continue
            try:
                size = _measure(file, tensors, headers.tensors.get(_decoder_of(file), {}))
                said = _said(headers.json.get(CONFIG), file)
            except Refused as refusal:
                return Candidate(self.name, 0.9, refusal=_dense.reason(refusal))
            return Candidate(self.name, 1.0, {"architecture": _architecture(file, tensors), **size.facts, **INVALID, **said})
        return None

    def part_of_set(self, headers: Headers) -> SetPart | None:
        """One layer. Its decoder writes to all from it on, which says how many there are."""
        for file in headers.tensors:
            if (match := _FILE.fullmatch(file)) is not None:
                stored = headers.tensors.get(_decoder_of(file), {}).get(f"W_dec_{match[1]}")
                return SetPart(int(match[1]), None if stored is None else int(match[1]) + stored.shape[1])
        return None

    def read(self, files: SourceFiles, options: CltOptions) -> Weights:
        """See ``Format.read``."""
        file, layer = _layer(files)
        config = read_yaml(files.paths[CONFIG], CONFIG) if CONFIG in files.paths else None
        said = _said(config, file)
        encoder = open_tensors(files.paths[file], file)
        decoder = open_tensors(files.paths[_decoder_of(file)], _decoder_of(file))
        size = _measure(file, encoder.infos, decoder.infos)
        t = encoder.tensors
        tensors: dict[str, LazyTensor] = {
            "W_enc": Transposed(t[f"W_enc_{layer}"]),
            "b_enc": t[f"b_enc_{layer}"],
            "W_dec": Written(decoder.tensors[f"W_dec_{layer}"]),
            "b_dec": t[f"b_dec_{layer}"],
        }
        if (threshold := t.get(f"threshold_{layer}")) is not None:
            if not bool((whole(threshold) >= 0).all()):
                detail = (
                    f"{file}: threshold_{layer} is negative somewhere: there features are negative, which SAELens's never are."
                )
                raise Inexpressible.by(f"threshold_{layer}", detail)
            tensors["threshold"] = threshold
        named = {"hook_name": "hook", "hook_name_out": "hook_out", "model_name": "model"}
        metadata: dict[str, Any] = {key: said[fact] for key, fact in named.items() if fact in said}
        metadata |= {**INVALID, "model_from_pretrained_kwargs": {"fold_ln": False}}  # it reads what the model itself computes
        return Weights(_dense.cfg(_architecture(file, t), size), tensors, metadata)

    def reference(self, files: SourceFiles, options: CltOptions, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See ``Format.reference``. The output is the sum of all that this layer's features write, and this layer's bias."""
        file, layer = _layer(files)
        t = load(files.paths[file])
        h = encode(x.double(), t[f"W_enc_{layer}"], linear=True) + t[f"b_enc_{layer}"].double()
        threshold = t.get(f"threshold_{layer}")
        features = h.relu() if threshold is None else h * (h > threshold.double())
        written = write_sum(features, load(files.paths[_decoder_of(file)])[f"W_dec_{layer}"])
        return features, written + t[f"b_dec_{layer}"].double()

    def example(self, folder: Path, seed: int, variant: str = "relu") -> CltOptions:
        """Layer 2 of a tiny one of five layers; "bare" has no config.yaml."""
        from safetensors.torch import save_file

        shapes = {"W_enc_2": (40, 12), "b_enc_2": (40,), "b_dec_2": (12,), "W_dec_2": (40, 3, 12)}
        if variant == "jumprelu":
            shapes["threshold_2"] = (40,)
        state = random_state(seed, shapes)
        decoder = {"W_dec_2": state.pop("W_dec_2")}
        if "threshold_2" in state:
            state["threshold_2"] = state["threshold_2"].abs()
        folder.mkdir(parents=True, exist_ok=True)
        save_file(state, folder / "W_enc_2.safetensors")
        save_file(decoder, folder / "W_dec_2.safetensors")
        if variant != "bare":
            lines = ["model_name: google/gemma-2-2b", f"model_kind: {KIND}", "feature_input_hook: hook_resid_mid"]
            text = "\n".join([*lines, "feature_output_hook: hook_mlp_out", "scan: mntss/clt-gemma-2-2b"])
            (folder / CONFIG).write_text(text + "\n", encoding="utf-8")
        return CltOptions()


FORMAT = Clt()


def _decoder_of(encoder: str) -> str:
    return encoder.replace("W_enc_", "W_dec_")


def _layer(files: SourceFiles) -> tuple[str, str]:
    """The encoder's file, and its layer as the file's name spells it."""
    ((file, match),) = ((name, match) for name in files.paths if (match := _FILE.fullmatch(name)) is not None)
    return file, match[1]


def _measure(file: str, encoder: Mapping[str, TensorInfo], decoder: Mapping[str, TensorInfo]) -> Size:
    """Dimensions as the biases say; everything else must agree.

    Raises:
        Refused: missing or unknown tensors, wrong shapes.
    """
    layer = file.removeprefix("W_enc_").removesuffix(".safetensors")
    d_sae, d = (
        info.shape[0] if (info := encoder.get(f"{name}_{layer}")) and len(info.shape) == 1 else 0 for name in ("b_enc", "b_dec")
    )
    shapes: dict[str, tuple[int, ...]] = {f"W_enc_{layer}": (d_sae, d), f"b_enc_{layer}": (d_sae,), f"b_dec_{layer}": (d,)}
    shapes |= {f"threshold_{layer}": (d_sae,)} if f"threshold_{layer}" in encoder else {}
    require_tensors(file, encoder, shapes)
    name = f"W_dec_{layer}"
    stored = decoder[name].shape if name in decoder else ()
    layers = stored[1] if len(stored) == 3 else 0
    require_tensors(_decoder_of(file), decoder, {name: (d_sae, layers, d)})
    if 0 in (d_sae, d, layers):
        raise Refused("Wrong shape", f"{file}: an axis has length 0.")
    return Size(d, d_sae, d, widest({**encoder, **decoder}))


def _architecture(file: str, encoder: Mapping[str, Any]) -> str:
    layer = file.removeprefix("W_enc_").removesuffix(".safetensors")
    return "jumprelu_transcoder" if f"threshold_{layer}" in encoder else "transcoder"


def _said(config: Mapping[str, Any] | None, file: str) -> dict[str, str]:
    """Hooks and model as config.yaml names them; the layer stands in the file's name.

    Raises:
        Refused: config.yaml is that of something else.
    """
    match = _FILE.fullmatch(file)
    if config is None or match is None:
        return {}
    if config.get("model_kind", KIND) != KIND:
        kind = str(config["model_kind"])[:50]
        raise Refused("Not a cross-layer transcoder", f"{CONFIG}: model_kind is {kind!r}; this format reads {KIND}.")
    return hooks_and_model(config, int(match[1]))

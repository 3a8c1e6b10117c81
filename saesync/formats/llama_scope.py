"""Llama Scope (OpenMOSS, 2024): ``checkpoints/final.safetensors`` with hyperparams.json one folder above.

Authors' inference (lm_saes/sae.py at 1e710367, ``from_config`` and ``encode``): with norm_activation "dataset-wise" the scales
``s_in = sqrt(d_model) / dataset_average_activation_norm["in"]`` and ``s_out`` go into the weights, so that raw activations are
read: ``encoder.bias / s_in``, ``decoder.weight s_in / s_out``, ``decoder.bias / s_out``. With sparsity_include_decoder_norm, the
norm of each decoder direction then moves to the encoder. Then ``h = encoder(x)``, ``f = h (h > jump_relu_threshold)``, output
``decoder(f)``. The one threshold is therefore in units of raw inputs and unit decoder directions. A topk SAE with a threshold
runs as JumpReLU, too.

SAELens's own loader scales the threshold by s_in and ignores the decoder norms: the same function only where these are 1.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saesync.errors import Inexpressible, Refused
from saesync.formats import _openmoss
from saesync.formats._checks import read_json, unknown_value, widest
from saesync.formats._fold import divided_rows, positive_row_norms, scaled, scaled_features
from saesync.formats._layout import LINEARS, cfg, look, require_k
from saesync.formats._lazy import Filled
from saesync.formats._open import open_tensors
from saesync.formats._openmoss import Scales
from saesync.formats.base import Candidate, Headers, LazyTensor, SourceFiles, TensorInfo, Weights

if TYPE_CHECKING:
    import torch

HYPER, FINAL = "hyperparams.json", "checkpoints/final.safetensors"
_CHECKPOINTS = "checkpoints/"
_PLACE = re.compile(r"Llama3_1-8B-Base-L\d+(?:R|M|A|TC)-\d+x", re.ASCII)


@dataclass(frozen=True, slots=True)
class LlamaScopeOptions:
    """The files say everything."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What hyperparams.json says. ``act`` is relu, topk (with ``k``) or jumprelu (with ``threshold``)."""

    act: str
    k: Any
    threshold: float
    scales: Scales
    unit_decoder: bool
    subtracts: bool
    bias: bool
    hooks: tuple[str, str]

    @property
    def transcoder(self) -> bool:
        """Whether something else than the input is predicted."""
        return self.hooks[0] != self.hooks[1]

    @property
    def architecture(self) -> str:
        """SAELens's name."""
        return _openmoss.architecture("standard" if self.act == "relu" else self.act, self.transcoder)


class LlamaScope:
    """See the module's docstring."""

    name = "llama_scope"
    version = 1
    summary = "Llama Scope: checkpoints/final.safetensors with hyperparams.json (JumpReLU SAEs and transcoders)"
    Options: type[Any] = LlamaScopeOptions
    variants = ("jumprelu", "topk", "thresholded topk", "relu", "transcoder", "token-wise", "subtracting")
    conversion_func = "llama_scope"

    def files(self, names: Sequence[str], path: str) -> Mapping[str, str]:
        """hyperparams.json and checkpoints/final.safetensors in folder ``path``, or the file ``path`` in such a folder."""
        chosen, present = path.rstrip("/"), set(names)
        folder, weights = chosen, FINAL
        if chosen in present:
            above, _, last = chosen.rpartition("/")
            folder, weights = above.removesuffix("checkpoints").rstrip("/"), _CHECKPOINTS + last
        prefix = f"{folder}/" if folder else ""
        found = {name: prefix + name for name in (HYPER, weights)}
        if not set(found.values()) <= present or not weights.endswith(".safetensors"):
            raise Refused(
                "Missing file", f"A Llama Scope SAE is a folder with {HYPER} and {FINAL}; {path or 'the root'} is none."
            )
        return found

    def sniff(self, headers: Headers) -> Candidate | None:
        """Certain by hyperparams.json and its tensors."""
        config = headers.json.get(HYPER)
        seen = look(headers, ("encoder.weight", "decoder.weight"), (".safetensors",))
        if seen is None or not isinstance(config, Mapping) or not {"d_model", "d_sae", "act_fn"} <= set(config):
            return None
        try:
            d_in, d_sae = _dimensions(seen.file, config, seen.tensors)
            found = _settings(config, d_in)
        except Refused as refusal:
            return Candidate(self.name, 0.9, refusal=refusal.diagnostics[0].detail)
        facts = {"architecture": found.architecture, "d_in": d_in, "d_sae": d_sae, "dtype": widest(seen.tensors)}
        model = {"model": "meta-llama/Llama-3.1-8B"} if _PLACE.search(headers.place) else {}
        return Candidate(self.name, 1.0, facts | _openmoss.facts(config) | model)

    def read(self, files: SourceFiles, options: LlamaScopeOptions) -> Weights:
        """See ``Format.read``."""
        config = read_json(files.paths[HYPER], HYPER)
        file, path = _weights(files)
        opened = open_tensors(path, file)
        d_in, d_sae = _dimensions(file, config, opened.infos)
        found = _settings(config, d_in)
        tensors = _folded(file, LINEARS.tensors(opened, d_in, d_sae), found)
        more: dict[str, Any] = {"d_out": d_in} if found.transcoder else {}
        if found.act == "topk":
            more |= {"k": require_k(found.k, d_sae, f"{HYPER}: top_k"), "rescale_acts_by_decoder_norm": False}
        if found.act == "jumprelu":
            tensors["threshold"] = Filled(found.threshold, (d_sae,))
        norm = "constant_norm_rescale" if found.scales.per_token else "none"
        metadata = {"hook_name": found.hooks[0]} | ({"hook_name_out": found.hooks[1]} if found.transcoder else {})
        return Weights(cfg(found.architecture, d_in, d_sae, found.subtracts, norm, **more), tensors, metadata)

    def reference(self, files: SourceFiles, options: LlamaScopeOptions, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See ``Format.reference``. The authors' ``from_config`` and ``encode``, with the norms kept beside the matrices."""
        import torch

        from saesync.formats import _authors

        config = read_json(files.paths[HYPER], HYPER)
        t = _authors.load(_weights(files)[1])
        x = x.double()
        found = _settings(config, x.shape[1])
        b_dec = (t["decoder.bias"].double() if found.bias else torch.zeros(x.shape[1], dtype=torch.float64)) / found.scales.out
        token = math.sqrt(x.shape[1]) / x.norm(dim=1, keepdim=True) if found.scales.per_token else 1.0
        z = x * token - b_dec if found.subtracts else x * token
        h = _authors.encode(z, t["encoder.weight"], linear=True) + t["encoder.bias"].double() / found.scales.inside
        ratio = found.scales.inside / found.scales.out
        unit = _authors.norms(t["decoder.weight"], linear=True) * ratio if found.unit_decoder else torch.ones(1).double()
        h = h * unit
        f = h.relu() if found.act == "relu" else h.where(h > found.threshold, 0.0)
        if found.act == "topk":
            f = _authors.top_k(h.relu(), found.k)
        bare = torch.zeros_like(b_dec)
        output = _authors.decode(f / unit, t["decoder.weight"], bare, linear=True) * ratio + b_dec
        return f, output / token

    def example(self, folder: Path, seed: int, variant: str = "jumprelu") -> LlamaScopeOptions:
        """A tiny bfloat16 one whose decoder norms are far from 1."""
        import json

        import torch
        from safetensors.torch import save_file

        generator = torch.Generator().manual_seed(seed)
        shapes = {"encoder.weight": (40, 12), "encoder.bias": (40,), "decoder.weight": (12, 40), "decoder.bias": (12,)}
        t = {name: torch.randn(shape, generator=generator) / 4 for name, shape in shapes.items()}
        t["decoder.weight"] *= torch.rand(40, generator=generator) + 0.5
        site = "ln2.hook_normalized" if variant == "transcoder" else "hook_resid_post"
        config: dict[str, Any] = {
            "hook_point_in": f"blocks.15.{site}",
            "hook_point_out": "blocks.15.hook_mlp_out" if variant == "transcoder" else f"blocks.15.{site}",
            "d_model": 12,
            "d_sae": 40,
            "act_fn": {"relu": "relu", "topk": "topk", "thresholded topk": "topk"}.get(variant, "jumprelu"),
            "jump_relu_threshold": 0.0 if variant in ("topk", "relu") else 0.11,
            "top_k": 6,
            "norm_activation": "token-wise" if variant == "token-wise" else "dataset-wise",
            "dataset_average_activation_norm": {"in": 2.5, "out": 5.0 if variant == "transcoder" else 2.5},
            "sparsity_include_decoder_norm": True,
            "use_decoder_bias": True,
            "apply_decoder_bias_to_pre_encoder": variant == "subtracting",
            "use_glu_encoder": False,
        }
        (folder / _CHECKPOINTS).mkdir(parents=True, exist_ok=True)
        save_file({name: value.bfloat16() for name, value in t.items()}, folder / FINAL)
        (folder / HYPER).write_text(json.dumps(config))
        return LlamaScopeOptions()


FORMAT = LlamaScope()


def _weights(files: SourceFiles) -> tuple[str, Path]:
    ((name, path),) = ((name, path) for name, path in files.paths.items() if name != HYPER)
    return name, path


def _dimensions(file: str, config: Mapping[str, Any], found: Mapping[str, TensorInfo]) -> tuple[int, int]:
    """d_in and d_sae as the tensors say; hyperparams.json must agree.

    Raises:
        Refused: missing or unknown tensors, wrong shapes, or other sizes in hyperparams.json.
    """
    if glu := sorted(name for name in found if name.startswith("encoder_glu")):
        raise Inexpressible.by(glu[0], f"{file}: {glu[0]}: its encoder is gated by a second one.")
    biased = _openmoss.flag(config, "use_decoder_bias", True, HYPER)
    d_in, d_sae = LINEARS.dimensions(file, found, () if biased else ("b_dec",))
    if not biased and "decoder.bias" in found:
        raise Refused("Config contradicts tensors", f"{HYPER}: use_decoder_bias is false, but {file} holds decoder.bias.")
    for key, length in (("d_model", d_in), ("d_sae", d_sae)):
        if config.get(key) != length:
            said = str(config.get(key))[:50]
            raise Refused("Config contradicts tensors", f"{HYPER}: {key} is {said}, the tensors say {length}.")
    return d_in, d_sae


def _settings(config: Mapping[str, Any], d_model: int) -> Settings:
    """Everything but the tensors.

    Raises:
        Refused: a setting is missing, damaged, or not expressible in SAELens.
    """
    hooks = _openmoss.hooks(config, HYPER)
    subtracts = _openmoss.flag(config, "apply_decoder_bias_to_pre_encoder", True, HYPER)
    biased = _openmoss.flag(config, "use_decoder_bias", True, HYPER)
    _openmoss.check_expressible(config, HYPER, hooks[0] != hooks[1], subtracts and biased)
    threshold = config.get("jump_relu_threshold", 0.0)
    if isinstance(threshold, bool) or not isinstance(threshold, int | float) or not abs(threshold) < math.inf:
        raise Refused("Damaged config", f"{HYPER}: jump_relu_threshold is {str(threshold)[:50]}, which is no number.")
    if threshold < 0:
        raise Inexpressible.by(
            "jump_relu_threshold",
            f"{HYPER}: jump_relu_threshold is {str(threshold)[:50]}. A negative one lets negative features through, which "
            "SAELens sets to 0.",
        )
    act = str(config.get("act_fn")).lower()
    if act not in ("relu", "topk", "jumprelu"):
        raise unknown_value(HYPER, "act_fn", config.get("act_fn"), "jumprelu, topk, relu")
    if act == "topk" and threshold > 0:
        act = "jumprelu"  # as the authors' from_config does
    unit = _openmoss.flag(config, "sparsity_include_decoder_norm", True, HYPER)
    scales = _scales(config, d_model)
    return Settings(act, config.get("top_k"), float(threshold), scales, unit, subtracts and biased, biased, hooks)


def _scales(config: Mapping[str, Any], d_model: int) -> Scales:
    norm = config.get("norm_activation")
    if norm in ("inference", "none"):
        return Scales()
    if norm == "token-wise":
        return Scales(per_token=True)
    if norm != "dataset-wise":
        raise unknown_value(HYPER, "norm_activation", norm, "dataset-wise, token-wise, inference, none")
    said = config.get("dataset_average_activation_norm")
    norms = said if isinstance(said, Mapping) else {}
    inside, out = (
        _openmoss.require_norm(norms.get(key), f"{HYPER}: dataset_average_activation_norm.{key}") for key in ("in", "out")
    )
    return Scales(_openmoss.scale(d_model, inside), _openmoss.scale(d_model, out))


def _folded(file: str, tensors: dict[str, LazyTensor], found: Settings) -> dict[str, LazyTensor]:
    """Scales, then decoder norms, in the weights."""
    scales = found.scales
    tensors["b_enc"] = scaled(tensors["b_enc"], 1 / scales.inside)
    tensors["W_dec"] = scaled(tensors["W_dec"], scales.inside / scales.out)
    tensors["b_dec"] = scaled(tensors["b_dec"], 1 / scales.out)
    if found.unit_decoder:
        norms = positive_row_norms(file, tensors["W_dec"])
        tensors["W_enc"], tensors["b_enc"] = (scaled_features(tensors[name], norms) for name in ("W_enc", "b_enc"))
        tensors["W_dec"] = divided_rows(tensors["W_dec"], norms)
    return tensors

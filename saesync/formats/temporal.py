"""Temporal SAEs (Lubana et al. 2025, arXiv 2511.01836): latest_ckpt.safetensors with conf.yaml.

Authors' forward pass (eslubana/temporalSAEs, sae/saeTemporal.py at 4b5ada8, sae/utils.py at d520c8c) over the tokens of one
sequence, inputs times ``scaling_factor`` (train_temporal_saes.py): ``x = s X - b``. Each attention layer takes codes
``z = relu(lam x E)`` with ``lam = 1 / (4 d_in)``; queries are of the token, keys and values of the codes shifted by one, zeros
first, so that a token sees those before it. The layer's output ``p = relu(...)`` predicts ``p D``; the projection of ``x`` on
that direction, ``a = <p D, x> / (|p D| + 1e-6)^2`` times it, is taken from ``x``, and ``a p`` is added to the predicted codes.
Features are the novel codes of what is left, ``relu(lam x E)``, of which "topk" keeps the k largest. Output
``((novel + predicted) D + b) / s``. ``E`` is ``D^T`` where weights are tied.

SAELens's class is the same function, with ``s`` in its config. A feature depends on all tokens before it, and its decoder alone
does not give the output.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saesync.errors import Inexpressible, Refused
from saesync.formats import _dense
from saesync.formats._authors import decode, encode, load, random_state, top_k
from saesync.formats._checks import read_yaml, require_tensors, widest
from saesync.formats._open import beside, choose, open_tensors
from saesync.formats.base import Candidate, Headers, LazyTensor, SourceFiles, TensorInfo, Weights

if TYPE_CHECKING:
    import torch

WEIGHTS, CONFIG = "latest_ckpt.safetensors", "conf.yaml"
_ATTENTION = re.compile(r"attn_layers\.(\d{1,4})\.\w+\.\w+", re.ASCII)
_LAYER = re.compile(r"(?:^|/)layer_(\d+)(?=/|$)", re.ASCII)
_ACTIVATIONS = ("relu", "topk")
_EPS = 1e-6


@dataclass(frozen=True, slots=True)
class TemporalOptions:
    """The files say everything."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What conf.yaml says of the function. ``k`` is None for relu."""

    d_in: int
    d_sae: int
    n_heads: int
    n_layers: int
    bottleneck: int
    activation: str
    k: int | None
    tied: bool
    factor: float

    def cfg(self) -> dict[str, Any]:
        """SAELens's fields."""
        return {
            "architecture": "temporal",
            "d_in": self.d_in,
            "d_sae": self.d_sae,
            "n_heads": self.n_heads,
            "n_attn_layers": self.n_layers,
            "bottleneck_factor": self.bottleneck,
            "sae_diff_type": self.activation,
            "kval_topk": self.k,
            "tied_weights": self.tied,
            "activation_normalization_factor": self.factor,
            "normalize_activations": "constant_scalar_rescale",
            "apply_b_dec_to_input": True,
            "reshape_activations": "none",
        }

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Tensors the checkpoint must hold, without b, which has two shapes."""
        d_in, d_sae = self.d_in, self.d_sae
        shapes: dict[str, tuple[int, ...]] = {"D": (d_sae, d_in)}
        if not self.tied:
            shapes["E"] = (d_in, d_sae)
        inner = d_sae // self.bottleneck
        for layer in range(self.n_layers):
            for name, width in (("k_ctx", inner), ("q_target", inner), ("v_ctx", d_sae), ("c_proj", d_sae)):
                shapes[f"attn_layers.{layer}.{name}.weight"] = (width, d_sae)
                shapes[f"attn_layers.{layer}.{name}.bias"] = (width,)
        return shapes


class Temporal:
    """See the module's docstring."""

    name = "temporal"
    version = 1
    summary = "Temporal SAEs (canrager/temporalSAEs): latest_ckpt.safetensors with conf.yaml; features depend on earlier tokens"
    Options: type[Any] = TemporalOptions
    variants = ("tied", "untied", "relu", "two_layers")
    conversion_func = "temporal"

    def files(self, names: Sequence[str], path: str) -> Mapping[str, str]:
        """The file ``path``, or latest_ckpt.safetensors in folder ``path``, with conf.yaml beside it."""
        found = beside(names, choose(names, path, (WEIGHTS,), (".safetensors",), "A temporal SAE"), CONFIG)
        if CONFIG not in found:
            raise Refused("Missing file", f"A temporal SAE has {CONFIG} beside it; {path or 'the root'} has none.")
        return found

    def sniff(self, headers: Headers) -> Candidate | None:
        """Certain by its attention layers; conf.yaml must agree."""
        for file, tensors in headers.tensors.items():
            if "D" not in tensors or not any(map(_ATTENTION.fullmatch, tensors)):
                continue
            config = headers.json.get(CONFIG)
            if not isinstance(config, Mapping):
                return Candidate(self.name, 0.9, refusal=f"{file} has no {CONFIG} beside it, which says what its layers compute.")
            try:
                found = _settings(file, config, tensors)
            except Refused as refusal:
                return Candidate(self.name, 0.9, refusal=_dense.reason(refusal))
            facts: dict[str, Any] = {"architecture": "temporal", "d_in": found.d_in, "d_sae": found.d_sae}
            facts |= {"dtype": widest(tensors), **_said(config)}
            layers = _LAYER.findall(headers.place)
            return Candidate(self.name, 1.0, facts | ({"hook": f"blocks.{int(layers[-1])}.hook_resid_post"} if layers else {}))
        return None

    def read(self, files: SourceFiles, options: TemporalOptions) -> Weights:
        """See ``Format.read``."""
        config = read_yaml(files.paths[CONFIG], CONFIG)
        file, path = _weights(files)
        opened = open_tensors(path, file)
        found = _settings(file, config, opened.infos)
        tensors: dict[str, LazyTensor] = {name: opened.tensors[name] for name in found.shapes() if name not in ("D", "E")}
        tensors["W_dec"] = opened.tensors["D"]
        if not found.tied:
            tensors["W_enc"] = opened.tensors["E"]
        bias = opened.tensors["b"]
        flat = replace(bias.extent.info, shape=(found.d_in,))  # [1, d_in] in a row
        tensors["b_dec"] = replace(bias, extent=replace(bias.extent, info=flat, strides=bias.extent.strides[-1:]))
        named = {"model_name": "model", "context_size": "context", "dataset_path": "dataset"}
        said = _said(config)
        return Weights(found.cfg(), tensors, {key: said[fact] for key, fact in named.items() if fact in said})

    def reference(self, files: SourceFiles, options: TemporalOptions, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See ``Format.reference``. The rows are the tokens of one sequence."""
        config = read_yaml(files.paths[CONFIG], CONFIG)["sae"]
        t = load(_weights(files)[1])
        lam, factor, b = 1 / (4 * x.shape[1]), config["scaling_factor"], t["b"].double().reshape(-1)

        def codes(left: torch.Tensor) -> torch.Tensor:
            tied = config["tied_weights"]
            return encode(left * lam, t["D"] if tied else t["E"], linear=tied).relu()

        left = x.double() * factor - b
        output = b.repeat(len(x), 1)
        for layer in range(config["n_attn_layers"]):
            predicted = _attended(t, f"attn_layers.{layer}.", codes(left), config["n_heads"]).relu()
            direction = decode(predicted, t["D"], linear=False)
            share = (direction * left).sum(dim=1, keepdim=True) / (direction.norm(dim=1, keepdim=True) + _EPS) ** 2
            output += share * direction
            left = left - share * direction
        novel = codes(left)
        if config["sae_diff_type"] == "topk":
            novel = top_k(novel, config["kval_topk"])
        return novel, (output + decode(novel, t["D"], linear=False)) / factor

    def example(self, folder: Path, seed: int, variant: str = "tied") -> TemporalOptions:
        """A tiny one of two heads; all but "relu" keep the 5 largest."""
        from safetensors.torch import save_file

        layers = 2 if variant == "two_layers" else 1
        found = Settings(8, 16, 2, layers, 2, "relu" if variant == "relu" else "topk", 5, variant != "untied", 0.5)
        state = random_state(seed, {**found.shapes(), "b": (1, 8)})
        state |= {name: state[name] * 4 for name in ("D", "E") if name in state}  # long rows: codes are of the size of 1
        folder.mkdir(parents=True, exist_ok=True)
        save_file(state, folder / WEIGHTS)
        (folder / CONFIG).write_text(_CONFIG_TEXT.format(found, str(found.tied).lower()), encoding="utf-8")
        return TemporalOptions()


FORMAT = Temporal()

_CONFIG_TEXT = """\
data: {{context_length: 500, dtype: bfloat16, hf_name: monology/pile-uncopyrighted}}
llm: {{model_hf_name: google/gemma-2-2b, dimin: {0.d_in}}}
sae:
  sae_type: temporal
  sae_diff_type: {0.activation}
  kval_topk: {0.k}
  tied_weights: {1}
  exp_factor: 2
  n_heads: {0.n_heads}
  n_attn_layers: {0.n_layers}
  bottleneck_factor: {0.bottleneck}
  scaling_factor: {0.factor}
"""


def _attended(t: Mapping[str, torch.Tensor], layer: str, z: torch.Tensor, heads: int) -> torch.Tensor:
    """One attention layer's output for the codes ``z [n, d_sae]`` of a sequence."""
    import torch

    def linear(name: str, rows: torch.Tensor) -> torch.Tensor:
        return encode(rows, t[f"{layer}{name}.weight"], linear=True) + t[f"{layer}{name}.bias"].double()

    before = torch.cat([torch.zeros_like(z[:1]), z[:-1]])
    queries, keys, values = (
        linear(name, rows).reshape(len(z), heads, -1).transpose(0, 1)
        for name, rows in (("q_target", z), ("k_ctx", before), ("v_ctx", before))
    )
    scores = queries @ keys.transpose(1, 2) / math.sqrt(queries.shape[2])
    later = torch.ones(len(z), len(z), dtype=torch.bool).triu(diagonal=1)
    mixed = scores.masked_fill(later, -math.inf).softmax(dim=-1) @ values
    return linear("c_proj", mixed.transpose(0, 1).reshape(len(z), -1))


def _weights(files: SourceFiles) -> tuple[str, Path]:
    ((name, path),) = ((name, path) for name, path in files.paths.items() if name != CONFIG)
    return name, path


def _settings(file: str, config: Mapping[str, Any], found: Mapping[str, TensorInfo]) -> Settings:
    """What conf.yaml says, which the tensors must be those of.

    Raises:
        Refused: a field is missing or no such value, the tensors are others, or SAELens has no such activation.
    """
    sae = _section(config, "sae")
    activation, k = _activation(sae)
    tied = sae.get("tied_weights")
    if type(tied) is not bool:
        raise _damaged("sae.tied_weights", "true or false", tied)
    d_in, n_layers = _count(_section(config, "llm"), "llm", "dimin"), _count(sae, "sae", "n_attn_layers")
    stored = len({match[1] for name in found if (match := _ATTENTION.fullmatch(name))})
    if n_layers != stored:
        raise _contradicts(f"sae.n_attn_layers is {n_layers}, {file} holds {stored}")
    d_sae = int(d_in * _number(sae, "exp_factor"))
    heads, bottleneck = _count(sae, "sae", "n_heads"), _count(sae, "sae", "bottleneck_factor")
    if d_sae == 0 or d_sae % (heads * bottleneck):
        detail = f"{CONFIG}: {d_sae} features cannot be divided among n_heads {heads} with bottleneck_factor {bottleneck}."
        raise Refused("Damaged config", detail)
    if k is not None and k > d_sae:
        raise Refused("Damaged config", f"{CONFIG}: sae.kval_topk is {k}, and there are {d_sae} features.")
    factor = _number(sae, "scaling_factor")
    settings = Settings(d_in, d_sae, heads, n_layers, bottleneck, activation, k, tied, factor)
    _check_tensors(file, found, settings)
    return settings


def _check_tensors(file: str, found: Mapping[str, TensorInfo], settings: Settings) -> None:
    if "D" in found and "E" in found and settings.tied:
        raise _contradicts(f"sae.tied_weights is true, and {file} holds an encoder E of its own")
    if "D" in found and "E" not in found and not settings.tied:
        raise _contradicts(f"sae.tied_weights is false, and {file} holds no encoder E")
    if "D" in found and found["D"].shape != (settings.d_sae, settings.d_in):
        shown = f"llm.dimin and sae.exp_factor give D the shape {[settings.d_sae, settings.d_in]}"
        raise _contradicts(f"{shown}, in {file} it is {list(found['D'].shape)}")
    flat = (settings.d_in,)
    bias = flat if "b" in found and found["b"].shape == flat else (1, settings.d_in)
    require_tensors(file, found, {**settings.shapes(), "b": bias})


def _activation(sae: Mapping[str, Any]) -> tuple[str, int | None]:
    """Of the novel codes, and k where it has one."""
    if (kind := sae.get("sae_type", "temporal")) != "temporal":
        raise Refused("Not a temporal SAE", f"{CONFIG}: sae.sae_type is {str(kind)[:50]!r}; this format reads temporal ones.")
    if "sae_diff_type" not in sae:
        raise _missing("sae.sae_diff_type")
    activation = sae["sae_diff_type"]
    if activation not in _ACTIVATIONS:
        detail = f"{CONFIG}: sae.sae_diff_type is {str(activation)[:50]!r}. SAELens's class computes {' and '.join(_ACTIVATIONS)}"
        raise Inexpressible.by("sae.sae_diff_type", f"{detail}, and takes any other word for relu.")
    return activation, _count(sae, "sae", "kval_topk") if activation == "topk" else None


def _section(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = config.get(name)
    if not isinstance(found, Mapping):
        raise _missing(name)
    return found


def _count(section: Mapping[str, Any], where: str, name: str) -> int:
    if section.get(name) is None:
        raise _missing(f"{where}.{name}")
    found = section[name]
    if type(found) is not int or not 0 < found < 1 << 31:
        raise _damaged(f"{where}.{name}", "a positive whole number", found)
    return found


def _number(sae: Mapping[str, Any], name: str) -> float:
    """A positive number; YAML reads 1e-3, without a point, as text."""
    if sae.get(name) is None:
        raise _missing(f"sae.{name}")
    found = sae[name]
    if type(found) not in (int, float) or not 1e-30 < found < 1e30:
        raise _damaged(f"sae.{name}", "a positive number", found)
    return float(found)


def _missing(name: str) -> Refused:
    return Refused("Missing setting", f"{CONFIG} says nothing of {name}, which decides what the tensors compute.")


def _damaged(name: str, what: str, found: Any) -> Refused:
    return Refused("Damaged config", f"{CONFIG}: {name} must be {what}, not {str(found)[:50]!r}.")


def _contradicts(detail: str) -> Refused:
    return Refused("Config contradicts tensors", f"{CONFIG}: {detail}.")


def _said(config: Mapping[str, Any]) -> dict[str, Any]:
    """Model, context and data as conf.yaml names them."""
    found: dict[str, Any] = {}
    for fact, section, key in (("model", "llm", "model_hf_name"), ("dataset", "data", "hf_name")):
        value = config[section].get(key) if isinstance(config.get(section), Mapping) else None
        if isinstance(value, str) and value:
            found[fact] = value
    context = config["data"].get("context_length") if isinstance(config.get("data"), Mapping) else None
    return found | ({"context": context} if type(context) is int else {})

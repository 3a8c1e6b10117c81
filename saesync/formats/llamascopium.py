"""Llamascopium (OpenMOSS, formerly Language-Model-SAEs): ``sae_weights.safetensors`` or ``.pt`` with config.json beside it; the
Llama Scope R1-Distill release is of its first generation, with Linear's tensor names.

Authors' forward pass (llamascopium/models/sae.py at 95281ac7; for the first generation lm_saes/sae.py at 5284ba55): inputs times
``s_in = sqrt(d_model) / dataset_average_activation_norm``, ``h = x W_E + b_E``, ``g = h n`` with the decoder norms n when
sparsity_include_decoder_norm is on (its default), ``f = act(g) / n``, output ``f W_D + b_D``, divided by s_out. JumpReLU keeps
``g > exp(log_jumprelu_threshold)``: in SAELens's terms the threshold is ``exp(...) / n``. With topk, n chooses the features: that
is SAELens's rescale_acts_by_decoder_norm, whose features are n times the authors'.

batchtopk keeps the largest of a whole batch and stores no threshold for single tokens: one calibrated on data must be declared.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saesync.errors import Inexpressible, Refused
from saesync.formats import _openmoss
from saesync.formats._checks import read_json, require_only, unknown_value, widest
from saesync.formats._fold import positive_row_norms, scaled
from saesync.formats._layout import LINEARS, Layout, cfg, look, require_k
from saesync.formats._lazy import Filled, Mapped, Stored, whole
from saesync.formats._llamascopium_reference import LOG, NEW_LOG, NORM, forward, write_example
from saesync.formats._open import TORCH, Opened, beside, choose, open_tensors
from saesync.formats._openmoss import Scales
from saesync.formats.base import Candidate, Headers, LazyTensor, SourceFiles, TensorInfo, Weights

if TYPE_CHECKING:
    import torch

CONFIG = "config.json"
FILES = ("sae_weights.safetensors", "sae_weights.pt")
SUFFIXES = (".safetensors", *TORCH)
NEW = Layout({"W_enc": "W_E", "W_dec": "W_D", "b_enc": "b_E", "b_dec": "b_D"})
_PREFIX = "sae."  # in a .pt, which holds {"sae": state dict, "version": ...}
_ARCHITECTURES = {"relu": "standard", "jumprelu": "jumprelu", "topk": "topk", "batchtopk": "jumprelu"}


@dataclass(frozen=True, slots=True)
class LlamascopiumOptions:
    """What the files may fail to say."""

    activation_norm_in: float | None = field(
        default=None,
        metadata={
            "help": "Average norm of input activations in training; needed when norm_activation is dataset-wise and the weights "
            "hold no dataset_average_activation_norm."
        },
    )
    activation_norm_out: float | None = field(
        default=None, metadata={"help": "That of a transcoder's targets; in an SAE it is the input's."}
    )
    threshold: float | None = field(
        default=None,
        metadata={
            "help": "Inference threshold of a batchtopk SAE, calibrated on data, in units of what is ranked (features times "
            "decoder norms with sparsity_include_decoder_norm). Needed for act_fn batchtopk, whose files hold none."
        },
    )


@dataclass(frozen=True, slots=True)
class Source:
    """One SAE, opened and checked. ``first``: of the first generation."""

    file: str
    config: Mapping[str, Any]
    layout: Layout
    first: bool
    d_in: int
    d_sae: int

    @property
    def hooks(self) -> tuple[str, str]:
        """Where activations are read, and what is predicted."""
        return _openmoss.hooks(self.config, CONFIG)

    @property
    def transcoder(self) -> bool:
        """Whether something else than the input is predicted."""
        return self.hooks[0] != self.hooks[1]

    @property
    def act(self) -> str:
        """relu, jumprelu, topk or batchtopk."""
        return str(self.config["act_fn"]).lower()

    @property
    def by_norm(self) -> bool:
        """Whether features are chosen by their value times their decoder norm."""
        return _openmoss.flag(self.config, "sparsity_include_decoder_norm", True, CONFIG)

    @property
    def subtracts(self) -> bool:
        """Whether the decoder's bias is subtracted from scaled inputs: in the first generation only."""
        return self.first and _openmoss.flag(self.config, "apply_decoder_bias_to_pre_encoder", False, CONFIG)


class Llamascopium:
    """See the module's docstring."""

    name = "llamascopium"
    version = 1
    summary = "Llamascopium (OpenMOSS) and Llama Scope R1-Distill: sae_weights with config.json (sae_type sae)"
    Options: type[Any] = LlamascopiumOptions
    variants = ("jumprelu", "relu", "topk", "batchtopk", "transcoder", "token-wise", "unset norms", "r1-distill", "pt")
    conversion_func = "llama_scope_r1_distill"  # reads the first generation only, and ignores decoder norms

    def files(self, names: Sequence[str], path: str) -> Mapping[str, str]:
        """The file ``path``, or sae_weights in folder ``path``, with config.json beside it."""
        found = beside(names, choose(names, path, FILES, SUFFIXES, "A Llamascopium SAE"), CONFIG)
        if CONFIG not in found:
            raise Refused("Missing file", f"A Llamascopium SAE has {CONFIG} beside it; {path or 'the root'} has none.")
        return found

    def sniff(self, headers: Headers) -> Candidate | None:
        """Certain by config.json; recognised and refused when it is a crosscoder or anything else but an SAE."""
        config = headers.json.get(CONFIG)
        if not isinstance(config, Mapping) or not {"sae_type", "d_model", "expansion_factor"} <= set(config):
            return None
        seen = look(headers, (), SUFFIXES)
        if seen is None:
            return None
        if seen.unsafe is not None:
            return Candidate(self.name, 0.9, refusal=seen.unsafe)
        try:
            source = _source(seen.file, config, _bare(seen.tensors))
        except Refused as refusal:
            return Candidate(self.name, 0.9, refusal=refusal.diagnostics[0].detail)
        facts: dict[str, Any] = {"architecture": _openmoss.architecture(_ARCHITECTURES[source.act], source.transcoder)}
        facts |= {"act_fn": source.act, "d_in": source.d_in, "d_sae": source.d_sae}
        facts |= {"dtype": widest(seen.tensors), **_openmoss.facts(config)}
        needs = ["threshold"] if source.act == "batchtopk" else []
        if config.get("norm_activation", "dataset-wise") == "dataset-wise":
            for hook, option in zip(source.hooks, ("activation_norm_in", "activation_norm_out"), strict=True):
                absent = f"{NORM}{hook}" not in _bare(seen.tensors)
                if absent and (option.endswith("in") or source.transcoder):
                    needs.append(option)
        return Candidate(self.name, 1.0, facts, needs=tuple(needs))

    def read(self, files: SourceFiles, options: LlamascopiumOptions) -> Weights:
        """See ``Format.read``."""
        source, opened = _open(files)
        scales = _scales(source, opened.tensors, options)
        tensors = source.layout.tensors(opened, source.d_in, source.d_sae)
        norms = positive_row_norms(source.file, tensors["W_dec"]) if source.by_norm else None
        tensors["W_enc"] = scaled(tensors["W_enc"], scales.inside)
        tensors["W_dec"], tensors["b_dec"] = (scaled(tensors[name], 1 / scales.out) for name in ("W_dec", "b_dec"))
        more: dict[str, Any] = {"d_out": source.d_in} if source.transcoder else {}
        threshold = _threshold(source, options)
        if source.act == "jumprelu":
            tensors["threshold"] = _divided(Mapped(tensors["threshold"], lambda block, *_: block.exp()), norms)
        elif threshold is not None:
            tensors["threshold"] = _divided(Filled(threshold, (source.d_sae,)), norms)
        factors = None
        if source.act == "topk":
            k = require_k(source.config.get("top_k"), source.d_sae, f"{CONFIG}: top_k")
            more |= {"k": k, "rescale_acts_by_decoder_norm": source.by_norm}
            factors = None if norms is None else _divided(Filled(1 / scales.out, (source.d_sae,)), 1 / norms)
        hooks = source.hooks
        metadata = {"hook_name": hooks[0]} | ({"hook_name_out": hooks[1]} if source.transcoder else {})
        if source.act == "batchtopk":
            metadata["training_architecture"] = "batchtopk"
        architecture = _openmoss.architecture(_ARCHITECTURES[source.act], source.transcoder)
        norm = "constant_norm_rescale" if scales.per_token else "none"
        fields = cfg(architecture, source.d_in, source.d_sae, source.subtracts, norm, **more)
        return Weights(fields, tensors, metadata, "raw" if factors is None else "decoder_norm", factors)

    def reference(self, files: SourceFiles, options: LlamascopiumOptions, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See ``Format.reference``."""
        source, opened = _open(files)
        scales = _scales(source, opened.tensors, options)
        return forward(_weights(files)[1], source.config, source.subtracts, scales, options.threshold, x)

    def example(self, folder: Path, seed: int, variant: str = "jumprelu") -> LlamascopiumOptions:
        """A tiny one; "unset norms" has none in its weights, "pt" is a torch file."""
        write_example(folder, seed, variant)
        norm = 2.5 if variant == "unset norms" else None
        return LlamascopiumOptions(activation_norm_in=norm, threshold=0.11 if variant == "batchtopk" else None)


FORMAT = Llamascopium()


def _weights(files: SourceFiles) -> tuple[str, Path]:
    ((name, path),) = ((name, path) for name, path in files.paths.items() if name != CONFIG)
    return name, path


def _bare(found: Mapping[str, Any]) -> dict[str, Any]:
    """Tensors by their own names, without what a ``.pt`` puts before them."""
    return {name.removeprefix(_PREFIX): value for name, value in found.items()}


def _open(files: SourceFiles) -> tuple[Source, Opened]:
    """Checked, with the tensors under their own names."""
    file, path = _weights(files)
    opened = open_tensors(path, file)
    require_only(file, opened.others, ("version",))
    bare = Opened(_bare(opened.tensors))
    return _source(file, read_json(files.paths[CONFIG], CONFIG), bare.infos), bare


def _source(file: str, config: Mapping[str, Any], found: Mapping[str, TensorInfo]) -> Source:
    """Config and tensors, checked against each other.

    Raises:
        Refused: they do not fit, or SAELens cannot express what they say.
    """
    if config.get("sae_type") != "sae":
        raise unknown_value(CONFIG, "sae_type", config.get("sae_type"), "sae alone")
    act = str(config.get("act_fn", "relu")).lower()
    if act not in _ARCHITECTURES:
        raise unknown_value(CONFIG, "act_fn", config.get("act_fn"), ", ".join(_ARCHITECTURES))
    if glu := sorted(name for name in found if "glu" in name):
        raise Inexpressible.by(glu[0], f"{file}: {glu[0][:100]}: its encoder is gated by a second one.")
    first = "encoder.weight" in found
    names = dict((LINEARS if first else NEW).names)
    if act == "jumprelu":
        names["threshold"] = LOG if first else NEW_LOG
    layout = Layout(names, LINEARS.turned if first else frozenset())
    biased = _openmoss.flag(config, "use_decoder_bias", True, CONFIG)
    extra: dict[str, tuple[int, ...]] = {name: () for name in found if name.startswith(NORM)}
    d_in, d_sae = layout.dimensions(file, found, () if biased else ("b_dec",), extra)
    source = Source(file, {**config, "act_fn": act}, layout, first, d_in, d_sae)
    _openmoss.check_expressible(source.config, CONFIG, source.transcoder, source.subtracts)
    if first and act == "topk":
        raise Inexpressible.by(
            "act_fn",
            f"{CONFIG}: act_fn is topk in a checkpoint of the first generation, which lets negative features through "
            "wherever fewer than top_k are positive.",
        )
    factor = config.get("expansion_factor")
    wide = int(d_in * factor) if isinstance(factor, int | float) and math.isfinite(factor) else None
    for key, said, length in (("d_model", config.get("d_model"), d_in), ("expansion_factor", wide, d_sae)):
        if said != length:
            raise Refused("Config contradicts tensors", f"{CONFIG}: {key} gives {str(said)[:50]}, the tensors say {length}.")
    return source


def _scales(source: Source, tensors: Mapping[str, Stored], options: LlamascopiumOptions) -> Scales:
    """Scales of inputs and targets, from the weights or as declared.

    Raises:
        Refused: a norm is neither stored nor declared, or both and different, or not needed, or no norm.
    """
    declared = (options.activation_norm_in, options.activation_norm_out)
    norm = source.config.get("norm_activation", "dataset-wise")
    if norm in ("inference", "token-wise") and declared != (None, None):
        raise Refused("Norm is not needed", f"An activation norm is declared, but {CONFIG} says norm_activation {norm}.")
    if norm == "inference":
        return Scales()
    if norm == "token-wise":
        return Scales(per_token=True)
    if norm != "dataset-wise":
        raise unknown_value(CONFIG, "norm_activation", norm, "dataset-wise, token-wise, inference")
    if not source.transcoder:
        if declared[1] not in (None, declared[0]):
            raise Refused("Norm is not needed", "activation_norm_out is declared, but input and target are the same activations.")
        inside = _norm(source, tensors, 0, declared[0])
        return Scales(inside, inside)
    return Scales(_norm(source, tensors, 0, declared[0]), _norm(source, tensors, 1, declared[1]))


def _norm(source: Source, tensors: Mapping[str, Stored], side: int, declared: float | None) -> float:
    """The scale on one side: 0 is the input, 1 the target."""
    option = ("activation_norm_in", "activation_norm_out")[side]
    name = f"{NORM}{source.hooks[side]}"
    if name not in tensors:
        if declared is None:
            raise Refused(
                "Needs a declared norm",
                f"{CONFIG} says norm_activation dataset-wise, but {source.file} holds no {name}. Declare the average norm of "
                f"these activations in training as `{option}` beside format.",
            )
        return _openmoss.scale(source.d_in, _openmoss.require_norm(declared, option))
    stored = _openmoss.require_norm(float(whole(tensors[name]).item()), f"{source.file}: {name}")
    if declared is not None and not math.isclose(declared, stored, rel_tol=1e-6):
        raise Refused("Norms contradict", f"{option} is declared as {declared:g}, but {source.file} says {stored:g}.")
    return _openmoss.scale(source.d_in, stored)


def _threshold(source: Source, options: LlamascopiumOptions) -> float | None:
    """The declared threshold of a batchtopk SAE.

    Raises:
        Refused: it is missing, not needed, or no threshold.
    """
    if source.act != "batchtopk":
        if options.threshold is not None:
            raise Refused("Threshold is not needed", f"threshold is declared, but {CONFIG} says act_fn {source.act}.")
        return None
    if options.threshold is None:
        raise Refused(
            "Needs a declared threshold",
            f"{CONFIG} says act_fn batchtopk, which keeps the largest of a whole batch, and no file holds a threshold for single "
            "tokens. Calibrate one on data and declare it as `threshold` beside format.",
        )
    if isinstance(options.threshold, bool) or not 0 < options.threshold < math.inf:
        raise Refused("Untrained threshold", f"threshold must be a positive number, not {options.threshold!r}.")
    return float(options.threshold)


def _divided(vector: LazyTensor, norms: torch.Tensor | None) -> LazyTensor:
    return vector if norms is None else Mapped(vector, lambda block, start, stop: block / norms[start:stop])

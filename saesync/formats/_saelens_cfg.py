"""SAELens's cfg.json in all its generations, read as SAELens 6.54 reads it, except that what it drops or guesses
silently is refused by name. No torch.

Generations: *v6* keeps what is known of the model under ``metadata``; *legacy* (v2 to v5) is flat, with ``activation_fn_str``
and boolean ``normalize_activations``. Training checkpoints are v6 with a training architecture.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from saesync.errors import Inexpressible, Refused
from saesync.formats._checks import unknown_value
from saesync.measure.loaders import PROCESSING

CFG = "cfg.json"
# SAELens's whitelist of legacy keys that describe the model (pretrained_sae_loaders.LLM_METADATA_KEYS), without versions.
LEGACY_METADATA = (
    "model_name", "hook_name", "model_class_name", "hook_head_index", "model_from_pretrained_kwargs", "prepend_bos",
    "exclude_special_tokens", "neuronpedia_id", "context_size", "seqpos_slice", "dataset_path", "hook_name_out",
    "hook_head_index_out", "hf_hook_name", "hf_hook_name_out", "sae_lens_training_version",
)  # fmt: skip
_RENAMED = {"hook_point": "hook_name", "hook_point_head_index": "hook_head_index", "activation_fn_str": "activation_fn"}
BATCH = ("batchtopk", "matryoshka_batchtopk")
TRANSCODERS = ("transcoder", "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder")
TOPK = ("topk", "abstopk")
KNOWN = ("standard", "jumprelu", "gated", *TOPK, *BATCH, *TRANSCODERS)
_UNPROVABLE = {
    "temporal": "a temporal SAE is proved against its authors' files; convert those, with `format: temporal`",
    "matching_pursuit": "its greedy encoder has no closed form to prove against",
}
_SAME_FACTOR = 1e-3  # a number that somebody copied by hand
# What multiplies features in decode after fine-tuning: before v3, and as v3 to v5 save it.
FINE_TUNED = ("scaling_factor", "finetuning_scaling_factor")
_RESCALE, _RESCALING = "rescale_acts_by_decoder_norm", (6, 14)
_VERSION = re.compile(r"(\d{1,9})\.(\d{1,9})(?!\d)")
SCALED = "expected_average_only_in"
_NORMS = ("none", "layer_norm", "constant_norm_rescale", SCALED)


@dataclass(frozen=True, slots=True)
class Config:
    """What the function depends on, plus ``metadata``. ``rescale``: pre-activations are multiplied by decoder norms first.

    ``fine_tuned`` says that a ``FINE_TUNED`` tensor is part of the function.
    """

    architecture: str
    d_in: int
    d_sae: int
    d_out: int
    apply_b_dec_to_input: bool
    norm: str
    reshape: str
    k: int | None
    rescale: bool
    fine_tuned: bool
    metadata: Mapping[str, Any]
    legacy: bool

    @property
    def target(self) -> str:
        """The architecture SAELens loads it as."""
        return "jumprelu" if self.architecture in BATCH else self.architecture

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Tensors the source must hold, by name."""
        wide = (self.d_sae,)
        shapes: dict[str, tuple[int, ...]] = {
            "W_enc": (self.d_in, self.d_sae),
            "W_dec": (self.d_sae, self.d_out),
            "b_dec": (self.d_out,),
        }
        names = ("b_gate", "b_mag", "r_mag") if self.architecture == "gated" else ("b_enc",)
        shapes |= dict.fromkeys(names, wide)
        if "jumprelu" in self.architecture:
            shapes["threshold"] = wide
        if "skip" in self.architecture:
            shapes["W_skip"] = (self.d_out, self.d_in)
        if self.architecture in BATCH:
            shapes["topk_threshold"] = ()
        return shapes

    def cfg(self) -> dict[str, Any]:
        """Top-level cfg.json fields of the converted SAE."""
        cfg: dict[str, Any] = {
            "architecture": self.target,
            "d_in": self.d_in,
            "d_sae": self.d_sae,
            "apply_b_dec_to_input": self.apply_b_dec_to_input,
            "normalize_activations": "none" if self.norm == SCALED else self.norm,
            "reshape_activations": self.reshape,
        }
        if self.architecture in TRANSCODERS:
            cfg["d_out"] = self.d_out
        if self.architecture in TOPK:
            cfg |= {"k": self.k, "rescale_acts_by_decoder_norm": self.rescale}
        return cfg


def parse_cfg(raw: Mapping[str, Any]) -> Config:
    """Read a cfg.json of any generation.

    Raises:
        Refused: an architecture, activation or normalisation SAELens cannot load or saesync cannot prove, or a
            field that SAELens would replace by a silent default.
    """
    legacy = not isinstance(raw.get("metadata"), dict)
    flat = {_RENAMED.get(key, key): value for key, value in raw.items()} if legacy else dict(raw)
    metadata = {key: flat[key] for key in LEGACY_METADATA if key in flat} if legacy else dict(raw["metadata"])
    architecture = _architecture(flat, legacy)
    d_in, d_sae = _count(flat, "d_in"), _count(flat, "d_sae")
    transcoder = architecture in TRANSCODERS
    norm = _norm(flat.get("normalize_activations"))
    if transcoder and norm != "none":
        raise Inexpressible.by("normalize_activations", f"{CFG}: SAELens does not undo {norm!r} in a transcoder's output.")
    reshape = _reshape(flat, metadata, legacy)
    if transcoder and reshape != "none":
        raise Inexpressible.by("reshape_activations", f"{CFG}: SAELens does not join attention heads for a transcoder.")
    subtract = _flag(flat, "apply_b_dec_to_input", default=not transcoder)
    if transcoder and subtract:
        raise Inexpressible.by("apply_b_dec_to_input", f"{CFG}: a transcoder cannot subtract b_dec from its input.")
    return Config(
        architecture=architecture,
        d_in=d_in,
        d_sae=d_sae,
        d_out=_count(flat, "d_out") if transcoder else d_in,
        apply_b_dec_to_input=subtract,
        norm=norm,
        reshape=reshape,
        k=_k(flat, architecture, d_sae),
        rescale=_rescale(flat, metadata, architecture),
        fine_tuned=_flag(flat, "finetuning_scaling_factor", default=False),
        metadata=metadata,
        legacy=legacy,
    )


def processing(metadata: Mapping[str, Any]) -> str | None:
    """How the model's weights were processed, as a manifest's ``model.kwargs`` says it; None where they were left alone."""
    said = metadata.get("model_from_pretrained_kwargs")
    flags = [f"{name}: true" for name in PROCESSING if isinstance(said, Mapping) and said.get(name) is True]
    return f"{{{', '.join(flags)}}}" if flags else None


def require_factor(config: Config, factor: float | None, hint: Any = None) -> float:
    """The declared input scale: 1 where none is needed.

    Raises:
        Refused: the cfg needs a factor that nobody declared, or one is declared that it does not need, or it is no scale, or
            not the one of ``hint`` (activation_scaler.json's).
    """
    if config.norm != SCALED:
        if factor is not None:
            raise Refused(
                "Factor is not needed",
                f"norm_scaling_factor is declared, but {CFG} says normalize_activations: {config.norm}. Remove the option.",
            )
        return 1.0
    if factor is None:
        found = f" activation_scaler.json beside it says {hint!r}." if hint is not None else ""
        raise Refused(
            "Needs a declared factor",
            f"{CFG} says normalize_activations: {SCALED}, which does nothing at run time: inputs must be multiplied by a factor "
            f"that the file does not hold.{found} Declare it as norm_scaling_factor beside format, and it is folded in.",
        )
    if isinstance(factor, bool) or not isinstance(factor, int | float) or not (math.isfinite(factor) and factor > 0):
        raise Refused("Factor is no scale", f"norm_scaling_factor must be a positive number, not {factor!r}.")
    known = type(hint) is float or (type(hint) is int and abs(hint) < 1 << 53)
    if known and not math.isclose(factor, hint, rel_tol=_SAME_FACTOR):
        raise Refused(
            "Factor is another one",
            f"norm_scaling_factor is declared as {factor:g}, but activation_scaler.json, which SAELens's trainer wrote beside "
            f"the weights, says {hint:g}: features would be wrong with one of them. Correct the option, or remove the file.",
        )
    return float(factor)


def _architecture(flat: Mapping[str, Any], legacy: bool) -> str:
    found = flat.get("architecture", "standard" if legacy else None)
    if not isinstance(found, str):
        raise Refused("Damaged config", f"{CFG} has no architecture.")
    if found in _UNPROVABLE:
        raise Refused("Cannot be proved", f"{CFG}: architecture {found} is not converted: {_UNPROVABLE[found]}.")
    if legacy:
        activation = flat.get("activation_fn", "topk" if found == "topk" else "relu")
        if activation == "topk":
            if found not in ("standard", "topk"):
                raise Inexpressible.by("architecture", f"{CFG}: architecture {found[:50]} with activation topk.")
            found = "topk"
        elif activation != "relu":
            raise Inexpressible.by(
                "activation_fn",
                f"{CFG}: activation {str(activation)[:50]!r}. SAELens would load everything but relu and topk as relu.",
            )
        elif found == "topk":
            raise Inexpressible.by(
                "activation_fn",
                f"{CFG}: architecture topk with activation relu. SAELens before 6.0 used ReLU there, later ones TopK.",
            )
    if found not in KNOWN:
        raise Inexpressible.by(
            "architecture",
            f"{CFG}: architecture {found[:50]!r} is not one SAELens loads. Known: {', '.join(KNOWN)}.",
        )
    return found


def _k(flat: Mapping[str, Any], architecture: str, d_sae: int) -> int | None:
    if architecture not in TOPK:
        return None
    kwargs = flat.get("activation_fn_kwargs")
    k = flat.get("k", kwargs.get("k") if isinstance(kwargs, dict) else None)
    if isinstance(k, float) and k.is_integer():
        k = int(k)
    if type(k) is not int or not 0 < k <= d_sae:
        raise Refused(
            "Missing k",
            f"{CFG} says topk but no whole k from 1 to d_sae (found {str(k)[:50]}). SAELens would use ReLU or 100.",
        )
    return k


def _rescale(flat: Mapping[str, Any], metadata: Mapping[str, Any], architecture: str) -> bool:
    """Whether pre-activations are multiplied by decoder norms. SAELens does so since 6.14, whose configs always say it."""
    if architecture in BATCH and _RESCALE not in flat:
        found = _VERSION.match(str(metadata.get("sae_lens_version")))
        if found is None or tuple(map(int, found.groups())) >= _RESCALING:
            raise Refused(
                "Damaged config",
                f"{CFG} does not say {_RESCALE}, which SAELens writes since 6.14: whether decoder norms choose features is "
                "not known. Add it (true, unless the training config said false).",
            )
    return _flag(flat, _RESCALE, default=False)


def _norm(found: Any) -> str:
    if found is None or isinstance(found, bool):
        return SCALED if found else "none"
    if found == "covariance_whitening":
        raise Refused(
            "Needs folding",
            f"{CFG} says normalize_activations: covariance_whitening, which does nothing at run time. Fold it first.",
        )
    if found not in _NORMS:
        raise unknown_value(CFG, "normalize_activations", found, ", ".join(_NORMS))
    return str(found)


def _reshape(flat: Mapping[str, Any], metadata: Mapping[str, Any], legacy: bool) -> str:
    default = "hook_z" if legacy and "hook_z" in str(metadata.get("hook_name", "")) else "none"
    found = flat.get("reshape_activations", default)
    if found not in ("none", "hook_z"):
        raise unknown_value(CFG, "reshape_activations", found, "none, hook_z")
    return str(found)


def _count(flat: Mapping[str, Any], name: str) -> int:
    found = flat.get(name)
    if type(found) is not int or not 0 < found < 1 << 31:
        raise Refused("Damaged config", f"{CFG}: {name} must be a positive whole number, not {str(found)[:50]!r}.")
    return found


def _flag(flat: Mapping[str, Any], name: str, default: bool) -> bool:
    found = flat.get(name, default)
    if type(found) is not bool:
        raise Refused("Damaged config", f"{CFG}: {name} must be true or false, not {str(found)[:50]!r}.")
    return found

"""dictionary_learning (saprmarks/dictionary_learning): ``ae.pt``, a state dict, with the trainer's config.json beside it.

Its seven classes (dictionary_learning 0.1.0: dictionary.py, trainers/top_k.py, batch_top_k.py, matryoshka_batch_top_k.py):

- ``AutoEncoder``: ``f = relu(encoder(x - bias))``, output ``decoder(f) + bias``.
- ``AutoEncoderNew``: ``f = relu(encoder(x))``, output ``decoder(f)`` with the decoder's own bias.
- ``GatedAutoEncoder``: gate and magnitude from one ``encoder(x - decoder_bias)``: SAELens's gated.
- ``AutoEncoderTopK``: the k largest of ``relu(encoder(x - b_dec))`` of each row.
- ``BatchTopKSAE``, ``MatryoshkaBatchTopKSAE``: those of ``relu((x - b_dec) W + b)`` above a threshold learned in training.
- ``JumpReluAutoEncoder``: ``relu(pre (pre > threshold))``; ``b_dec`` is not subtracted from the input.

Classes built on torch's Linear store their matrices as ``[out, in]``; the last two as SAELens does. A run with normalised
activations folds its ``norm_factor`` into the biases when it saves, so the factor in config.json must not be used again.

Which class a checkpoint has is decided by its tensors where these can tell: ``StandardTrainerAprilUpdate`` writes
``dict_class: AutoEncoder`` also when it trained an AutoEncoderNew.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from saesync.errors import Inexpressible, Refused
from saesync.formats._checks import read_json, require_only, require_tensors, widest
from saesync.formats._lazy import Filled, Stored, Transposed, whole
from saesync.formats._open import TORCH, beside, choose, open_tensors
from saesync.formats._pickle import ALLOWED
from saesync.formats._torchzip import unsafe_detail
from saesync.formats.base import Candidate, Headers, LazyTensor, SourceFiles, TensorInfo, Weights

if TYPE_CHECKING:
    import torch

AE, CONFIG = "ae.pt", "config.json"
SUFFIXES = (*TORCH, ".safetensors")
_WHOLE = ("int64", "int32", "int16", "uint8")


@dataclass(frozen=True, slots=True)
class Kind:
    """One class. ``names`` maps SAELens's tensor names to the stored ones; ``linear``: matrices are stored transposed."""

    architecture: str
    subtracts: bool
    linear: bool
    names: Mapping[str, str]


_LINEAR = {"W_enc": "encoder.weight", "W_dec": "decoder.weight"}
_PLAIN = {name: name for name in ("W_enc", "W_dec", "b_enc", "b_dec")}
_GATED = {"b_gate": "gate_bias", "b_mag": "mag_bias", "r_mag": "r_mag", "b_dec": "decoder_bias"}
_TOPK = {**_LINEAR, "b_enc": "encoder.bias", "b_dec": "b_dec"}
CLASSES: Mapping[str, Kind] = {
    "AutoEncoder": Kind("standard", True, True, {**_LINEAR, "b_enc": "encoder.bias", "b_dec": "bias"}),
    "AutoEncoderNew": Kind("standard", False, True, {**_LINEAR, "b_enc": "encoder.bias", "b_dec": "decoder.bias"}),
    "GatedAutoEncoder": Kind("gated", True, True, {**_LINEAR, **_GATED}),
    "AutoEncoderTopK": Kind("topk", True, True, _TOPK),
    "BatchTopKSAE": Kind("jumprelu", True, True, _TOPK),
    "MatryoshkaBatchTopKSAE": Kind("jumprelu", True, False, _PLAIN),
    "JumpReluAutoEncoder": Kind("jumprelu", False, False, {**_PLAIN, "threshold": "threshold"}),
}
BATCH = {"BatchTopKSAE": "batchtopk", "MatryoshkaBatchTopKSAE": "matryoshka_batchtopk"}
# Numbers of the training run that are saved as tensors.
_BUFFERS: Mapping[str, tuple[str, ...]] = {
    "AutoEncoderTopK": ("k", "threshold"),
    "BatchTopKSAE": ("k", "threshold"),
    "MatryoshkaBatchTopKSAE": ("k", "threshold", "group_sizes"),
}
_UNTRAINED = (
    "this checkpoint has not learned its inference threshold; without one every positive feature would fire. Use a later "
    "checkpoint, or calibrate the threshold on data."
)
_SITES = {"resid_post": "hook_resid_post", "mlp_out": "hook_mlp_out", "attention_out": "hook_attn_out"}
_SUBMODULE = re.compile(rf"({'|'.join(_SITES)})_layer_(\d+)", re.ASCII)


@dataclass(frozen=True, slots=True)
class DictionaryLearningOptions:
    """What the files may fail to say."""

    dict_class: (
        Literal[
            "AutoEncoder",
            "AutoEncoderNew",
            "GatedAutoEncoder",
            "AutoEncoderTopK",
            "BatchTopKSAE",
            "MatryoshkaBatchTopKSAE",
            "JumpReluAutoEncoder",
        ]
        | None
    ) = field(default=None, metadata={"help": "The class that was trained; needed when there is no config.json beside ae.pt."})
    k: int | None = field(
        default=None, metadata={"help": "Active features per token; needed for an AutoEncoderTopK whose files do not say it."}
    )


class DictionaryLearning:
    """See the module's docstring."""

    name = "dictionary_learning"
    version = 1
    summary = "dictionary_learning: ae.pt with config.json, all seven classes"
    Options: type[Any] = DictionaryLearningOptions
    variants = (*CLASSES, "undeclared")
    conversion_func = "dictionary_learning_1"

    def files(self, names: Sequence[str], path: str) -> Mapping[str, str]:
        """The file ``path``, or ae.pt in folder ``path``, with config.json beside it."""
        return beside(names, choose(names, path, (AE,), SUFFIXES, "A dictionary_learning SAE"), CONFIG)

    def sniff(self, headers: Headers) -> Candidate | None:
        """Certain with config.json; less so from tensors alone, which several classes and formats share."""
        trainer = _trainer(headers.json.get(CONFIG), strict=False)
        for file, tensors in headers.tensors.items():
            fitting = _fitting(tensors)
            if not fitting or (trainer is None and not file.endswith(TORCH)):
                continue
            if unsafe := tuple(name for name in headers.globals.get(file, ()) if name not in ALLOWED):
                return Candidate(self.name, 0.9, refusal=f"{file} {unsafe_detail(unsafe)}")
            try:
                require_only(file, headers.others.get(file, ()))
            except Refused as refusal:
                return Candidate(self.name, 1.0 if trainer is not None else 0.3, refusal=refusal.diagnostics[0].detail)
            return self._candidate(file, tensors, trainer, headers.json.get(CONFIG), fitting)
        return None

    def _candidate(
        self,
        file: str,
        tensors: Mapping[str, TensorInfo],
        trainer: Mapping[str, Any] | None,
        config: Any,
        fitting: Sequence[str],
    ) -> Candidate:
        own = not set(fitting) & {"AutoEncoderNew", "JumpReluAutoEncoder"}  # tensor names that others do not use
        score = 1.0 if trainer is not None else 0.8 if own else 0.3
        if trainer is None and (len(fitting) > 1 or not own):
            return Candidate(self.name, score, needs=("dict_class",))
        try:
            chosen = _class(tensors, trainer, None, file)
            d_in, d_sae = _dimensions(file, chosen, tensors, trainer)
        except Refused as refusal:
            return Candidate(self.name, score, refusal=refusal.diagnostics[0].detail)
        if chosen in BATCH and "threshold" not in tensors:
            return Candidate(self.name, score if trainer is not None else 0.2, refusal=_no_threshold(file, chosen, trainer))
        kind = CLASSES[chosen]
        facts = {"architecture": kind.architecture, "dict_class": chosen, "d_in": d_in, "d_sae": d_sae}
        facts |= {"dtype": widest(tensors), **_said(config)}
        needs = ("k",) if chosen == "AutoEncoderTopK" and "k" not in tensors and "k" not in (trainer or {}) else ()
        return Candidate(self.name, score, facts, needs=needs)

    def read(self, files: SourceFiles, options: DictionaryLearningOptions) -> Weights:
        """See ``Format.read``."""
        chosen, trainer, config = resolve(files, options)
        file, path = weights_file(files)
        opened = open_tensors(path, file)
        require_only(file, opened.others)
        d_in, d_sae = _dimensions(file, chosen, opened.infos, trainer)
        kind = CLASSES[chosen]
        turned = {"W_enc", "W_dec"} if kind.linear else set()
        tensors: dict[str, LazyTensor] = {
            name: Transposed(opened.tensors[stored]) if name in turned else opened.tensors[stored]
            for name, stored in kind.names.items()
        }
        cfg: dict[str, Any] = {
            "architecture": kind.architecture,
            "d_in": d_in,
            "d_sae": d_sae,
            "apply_b_dec_to_input": kind.subtracts,
            "normalize_activations": "none",
            "reshape_activations": "none",
        }
        if chosen == "AutoEncoderTopK":
            cfg |= {"k": _k(opened.tensors, trainer, options, d_sae), "rescale_acts_by_decoder_norm": False}
        if chosen in BATCH:
            if "threshold" not in opened.tensors:
                raise Refused("Untrained threshold", _no_threshold(file, chosen, trainer))
            tensors["threshold"] = Filled(_threshold(file, opened.tensors), (d_sae,))
        return Weights(cfg, tensors, _metadata(chosen, config, opened.tensors))

    def reference(
        self, files: SourceFiles, options: DictionaryLearningOptions, x: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See ``Format.reference``."""
        from saesync.formats._dictionary_learning_reference import forward

        chosen, trainer, _ = resolve(files, options)
        k = (trainer or {}).get("k") if options.k is None else options.k
        return forward(chosen, weights_file(files)[1], x, k)

    def example(self, folder: Path, seed: int, variant: str = "BatchTopKSAE") -> DictionaryLearningOptions:
        """A tiny ``ae.pt`` of one class; "undeclared" is an AutoEncoderTopK without config.json."""
        from saesync.formats._dictionary_learning_reference import write_example

        write_example(folder, seed, "AutoEncoderTopK" if variant == "undeclared" else variant)
        if variant != "undeclared":
            return DictionaryLearningOptions()
        (folder / CONFIG).unlink()
        return DictionaryLearningOptions("AutoEncoderTopK")


FORMAT = DictionaryLearning()


def weights_file(files: SourceFiles) -> tuple[str, Path]:
    """Name and place of the checkpoint."""
    ((name, path),) = ((name, path) for name, path in files.paths.items() if name != CONFIG)
    return name, path


def resolve(files: SourceFiles, options: DictionaryLearningOptions) -> tuple[str, Mapping[str, Any] | None, Any]:
    """The class, the trainer's part of config.json and config.json, as far as it is there.

    Raises:
        Refused: nothing says the class, or two things say different ones.
    """
    config = read_json(files.paths[CONFIG], CONFIG) if CONFIG in files.paths else None
    trainer = _trainer(config, strict=True)
    name, path = weights_file(files)
    return _class(open_tensors(path, name).infos, trainer, options.dict_class, name), trainer, config


def _trainer(config: Any, strict: bool) -> Mapping[str, Any] | None:
    if config is None:
        return None
    trainer = config.get("trainer") if isinstance(config, Mapping) else None
    if isinstance(trainer, Mapping) and isinstance(trainer.get("dict_class"), str):
        return trainer
    if strict:
        raise Refused("Damaged config", f"{CONFIG} has no trainer.dict_class, which dictionary_learning always writes.")
    return None


def _fitting(tensors: Mapping[str, TensorInfo]) -> list[str]:
    """Classes that have these very tensors; numbers of the training run may be missing (early versions did not save them)."""
    present = set(tensors)
    found = []
    for name, kind in CLASSES.items():
        needed, optional = set(kind.names.values()), set(_BUFFERS.get(name, ()))
        if needed <= present <= needed | optional:
            found.append(name)
    return found


def _class(tensors: Mapping[str, TensorInfo], trainer: Mapping[str, Any] | None, declared: str | None, file: str) -> str:
    """The class, by the tensors, then by config.json or the manifest.

    Raises:
        Refused: unknown, undeclared or contradictory.
    """
    said = None if trainer is None else str(trainer["dict_class"])
    for where, name in (("dict_class", declared), (f"{CONFIG}: trainer.dict_class", said)):
        if name is not None and name not in CLASSES:
            raise Inexpressible.by("dict_class", f"{where} is {name[:50]!r}. Known: {', '.join(CLASSES)}.")
    if said == "AutoEncoder" and "decoder.bias" in tensors:
        said = "AutoEncoderNew"  # what StandardTrainerAprilUpdate trains, under the other name
    if said is not None and declared not in (None, said):
        raise Refused("Classes contradict", f"dict_class is declared as {declared}, but {CONFIG} says {said}. Remove the option.")
    chosen = said or declared
    fitting = _fitting(tensors)
    if chosen is None:
        if len(fitting) == 1 and not set(fitting) & {"AutoEncoderNew", "JumpReluAutoEncoder"}:
            return fitting[0]
        fits = f"Its tensors are those of {' or '.join(fitting)}. " if fitting else ""
        raise Refused("Needs a declared class", f"There is no {CONFIG} beside {file}. {fits}Declare `dict_class` beside format.")
    return chosen


def _dimensions(file: str, chosen: str, tensors: Mapping[str, TensorInfo], trainer: Mapping[str, Any] | None) -> tuple[int, int]:
    """d_in and d_sae as the biases say; matrices and config.json must agree.

    Raises:
        Refused: missing or unknown tensors, wrong shapes or dtypes, or other dimensions in config.json.
    """
    kind = CLASSES[chosen]
    wide = kind.names["b_mag" if kind.architecture == "gated" else "b_enc"]
    lengths = [tensors[name].shape if name in tensors else () for name in (kind.names["b_dec"], wide)]
    d_in, d_sae = (shape[0] if len(shape) == 1 else 0 for shape in lengths)
    shapes: dict[str, tuple[int, ...]] = {
        stored: (d_in,) if name == "b_dec" else (d_sae,) for name, stored in kind.names.items() if not name.startswith("W_")
    }
    shapes[kind.names["W_enc"]] = (d_sae, d_in) if kind.linear else (d_in, d_sae)
    shapes[kind.names["W_dec"]] = (d_in, d_sae) if kind.linear else (d_sae, d_in)
    buffers = _BUFFERS.get(chosen, ())
    if "threshold" in buffers and "threshold" in tensors:
        shapes["threshold"] = ()
    floats = {name: info for name, info in tensors.items() if not (name in buffers and info.dtype in _WHOLE)}
    require_tensors(file, floats, shapes)
    if 0 in (d_in, d_sae):
        raise Refused("Wrong shape", f"{file}: an axis has length 0.")
    for key, length in (("activation_dim", d_in), ("dict_size", d_sae)):
        said = (trainer or {}).get(key, length)
        if said != length:
            raise Refused("Config contradicts tensors", f"{CONFIG}: trainer.{key} is {str(said)[:50]}, the tensors say {length}.")
    return d_in, d_sae


def _k(tensors: Mapping[str, Stored], trainer: Mapping[str, Any] | None, options: DictionaryLearningOptions, d_sae: int) -> int:
    """k, from the checkpoint, config.json and the manifest; those that say it must agree."""
    said = {"k in the manifest": options.k, f"{CONFIG}: trainer.k": (trainer or {}).get("k")}
    if "k" in tensors:
        said["k in the checkpoint"] = whole(tensors["k"]).item()
    known = {where: value for where, value in said.items() if value is not None}
    if not known:
        raise Refused("Missing k", f"Neither the checkpoint nor {CONFIG} says k. Declare `k` beside format.")
    if len(set(known.values())) > 1:
        shown = ", ".join(f"{where} is {str(value)[:50]}" for where, value in known.items())
        raise Refused("Different k", f"{shown}: these must be equal.")
    k = next(iter(known.values()))
    if type(k) is not int or not 0 < k <= d_sae:
        raise Refused("Missing k", f"k must be a whole number from 1 to {d_sae}, not {str(k)[:50]!r}.")
    return k


def _threshold(file: str, tensors: Mapping[str, Stored]) -> float:
    """The inference threshold of a BatchTopK SAE."""
    threshold = float(whole(tensors["threshold"]).item())
    if not 0 <= threshold < math.inf:
        raise Refused("Untrained threshold", f"{file}: threshold is {threshold:g}: {_UNTRAINED}")
    return threshold


def _no_threshold(file: str, chosen: str, trainer: Mapping[str, Any] | None) -> str:
    """Why a BatchTopK SAE without one is refused. Without a config, the same names may be somebody else's SAE."""
    if trainer is not None:
        return f"{file}: threshold is missing: {_UNTRAINED}"
    return (
        f"{file}: threshold is missing, and no {CONFIG} beside it says that it is a {chosen}. Perhaps another config file "
        f"belongs to it ({CONFIG} of another trainer, NAME_cfg.json ...): put that beside it, as these tensors alone do not say "
        f"what they compute. If it is a {chosen}, {_UNTRAINED}"
    )


def _said(config: Any) -> dict[str, Any]:
    """Model, hook and context as config.json names them. The hook is that of ``submodule_name``, not always the residual
    stream."""
    trainer, buffer = (config.get(part) if isinstance(config, Mapping) else None for part in ("trainer", "buffer"))
    trainer, buffer = ({} if not isinstance(part, Mapping) else part for part in (trainer, buffer))
    facts: dict[str, Any] = {}
    if isinstance(trainer.get("lm_name"), str) and trainer["lm_name"]:
        facts["model"] = trainer["lm_name"]
    match = _SUBMODULE.fullmatch(str(trainer.get("submodule_name")))
    if match is not None:
        facts["hook"] = f"blocks.{int(match[2])}.{_SITES[match[1]]}"
    if type(buffer.get("ctx_len")) is int:
        facts["context"] = buffer["ctx_len"]
    return facts


def _metadata(chosen: str, config: Any, tensors: Mapping[str, Stored]) -> dict[str, Any]:
    said = _said(config)
    named = {"model_name": "model", "hook_name": "hook", "context_size": "context"}
    metadata = {key: said[fact] for key, fact in named.items() if fact in said}
    if chosen in BATCH:
        metadata["training_architecture"] = BATCH[chosen]
    if "group_sizes" in tensors:
        metadata["group_sizes"] = whole(tensors["group_sizes"]).tolist()
    return metadata

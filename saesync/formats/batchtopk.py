"""bartbussmann/BatchTopK: ``sae.pt``, a state dict in SAELens's orientation, with config.json beside it.

Authors' forward passes (sae.py, whose classes share ``input_unit_norm``: the mean of each token subtracted, divided by the
unbiased standard deviation + 1e-5, undone at the end with the standard deviation and mean: SAELens's layer_norm):

- vanilla: ``f = relu((x - b_dec) W_enc + b_enc)``.
- topk: the k largest of ``relu((x - b_dec) W_enc)`` of each row. ``b_enc`` is stored but never used.
- batchtopk: the ``k * batch`` largest of a whole batch, which no single token has; ``b_enc`` unused. The checkpoint holds no
  threshold, so one calibrated on data must be declared; then ``f = relu(pre) (pre > threshold)``.
- globaltopk: as that, with a learned ``threshold`` in the checkpoint.
- jumprelu: ``f = relu(pre) (relu(pre) > exp(jumprelu.log_threshold))`` with ``pre = x W_enc + b_enc``: b_dec is not subtracted.

Output ``f W_dec + b_dec``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saesync.errors import Refused
from saesync.formats._checks import read_json, require_only, unknown_value, widest
from saesync.formats._layout import Layout, cfg, look, require_k
from saesync.formats._lazy import Filled, Mapped, whole
from saesync.formats._open import TORCH, Opened, beside, choose, open_tensors
from saesync.formats.base import Candidate, Headers, SourceFiles, TensorInfo, Weights

if TYPE_CHECKING:
    import torch

SAE, CONFIG = "sae.pt", "config.json"
_NAMES = {name: name for name in ("W_enc", "W_dec", "b_enc", "b_dec")}
LOG = "jumprelu.log_threshold"
PLAIN, JUMP = Layout(_NAMES), Layout({**_NAMES, "threshold": LOG})
ARCHITECTURES = {
    "vanilla": "standard",
    "topk": "topk",
    "batchtopk": "jumprelu",
    "globaltopk": "jumprelu",
    "jumprelu": "jumprelu",
}
# Settings of the repository's first version, whose classes compute something else; today's config.json has none of them.
_FIRST_VERSION = ("tied_weights", "activation", "use_encoder_bias")


@dataclass(frozen=True, slots=True)
class BatchTopKOptions:
    """What the files do not say."""

    threshold: float | None = field(
        default=None,
        metadata={
            "help": "Inference threshold of a batchtopk SAE, calibrated on data (the mean over batches of the smallest kept "
            "activation). Needed for sae_type batchtopk, whose files hold none."
        },
    )


class BatchTopK:
    """See the module's docstring."""

    name = "batchtopk"
    version = 1
    summary = "bartbussmann/BatchTopK: sae.pt with config.json (vanilla, topk, batchtopk, globaltopk, jumprelu)"
    Options: type[Any] = BatchTopKOptions
    variants = (*ARCHITECTURES, "unnormalised")

    def files(self, names: Sequence[str], path: str) -> Mapping[str, str]:
        """The file ``path``, or sae.pt in folder ``path``, with config.json beside it."""
        found = beside(names, choose(names, path, (SAE,), TORCH, "A BatchTopK SAE"), CONFIG)
        if CONFIG not in found:
            raise Refused("Missing file", f"A BatchTopK SAE has {CONFIG} beside it; {path or 'the root'} has none.")
        return found

    def sniff(self, headers: Headers) -> Candidate | None:
        """Certain by config.json's sae_type and sizes."""
        config = headers.json.get(CONFIG)
        seen = look(headers, ("W_enc", "W_dec", "b_dec"), TORCH)
        if seen is None or not isinstance(config, Mapping) or not {"sae_type", "act_size", "dict_size"} <= set(config):
            return None
        if seen.unsafe is not None:
            return Candidate(self.name, 0.9, refusal=seen.unsafe)
        try:
            kind = _kind(config)
            d_in, d_sae = _dimensions(seen.file, kind, seen.tensors, config)
            _unit_norm(config)
        except Refused as refusal:
            return Candidate(self.name, 0.9, refusal=refusal.diagnostics[0].detail)
        facts = {"architecture": ARCHITECTURES[kind], "sae_type": kind, "d_in": d_in, "d_sae": d_sae}
        facts |= {"dtype": widest(seen.tensors), **_said(config)}
        return Candidate(self.name, 1.0, facts, needs=("threshold",) if kind == "batchtopk" else ())

    def read(self, files: SourceFiles, options: BatchTopKOptions) -> Weights:
        """See ``Format.read``."""
        config = read_json(files.paths[CONFIG], CONFIG)
        kind = _kind(config)
        file, path = _weights(files)
        opened = open_tensors(path, file)
        require_only(file, opened.others)
        d_in, d_sae = _dimensions(file, kind, opened.infos, config)
        tensors = (JUMP if kind == "jumprelu" else PLAIN).tensors(opened, d_in, d_sae)
        if kind not in ("vanilla", "jumprelu"):
            tensors["b_enc"] = Filled(0.0, (d_sae,))  # never used in training
        norm = "layer_norm" if _unit_norm(config) else "none"
        fields = cfg(ARCHITECTURES[kind], d_in, d_sae, subtracts=kind != "jumprelu", norm=norm)
        if kind == "topk":
            fields |= {"k": require_k(config.get("top_k"), d_sae, f"{CONFIG}: top_k"), "rescale_acts_by_decoder_norm": False}
        threshold = _threshold(file, kind, opened, options)
        if kind == "jumprelu":
            tensors["threshold"] = Mapped(tensors["threshold"], lambda block, *_: block.exp())
        elif threshold is not None:
            tensors["threshold"] = Filled(threshold, (d_sae,))
        named = {"model_name": "model", "hook_name": "hook", "context_size": "context", "dataset_path": "dataset"}
        said = _said(config)
        metadata: dict[str, Any] = {key: said[fact] for key, fact in named.items() if fact in said}
        if kind in ("batchtopk", "globaltopk"):
            metadata["training_architecture"] = kind
        return Weights(fields, tensors, metadata)

    def reference(self, files: SourceFiles, options: BatchTopKOptions, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See ``Format.reference``. Written out from the authors' ``forward``; batchtopk with the declared threshold."""
        from saesync.formats._authors import decode, encode, load, top_k

        config = read_json(files.paths[CONFIG], CONFIG)
        kind, t = config["sae_type"], load(_weights(files)[1])
        x = x.double()
        mean, deviation = x.mean(dim=-1, keepdim=True), x.std(dim=-1, keepdim=True)
        unit = config.get("input_unit_norm", False)
        z = (x - mean) / (deviation + 1e-5) if unit else x
        b_enc = t["b_enc"].double() if kind in ("vanilla", "jumprelu") else 0.0
        acts = (encode(z if kind == "jumprelu" else z - t["b_dec"].double(), t["W_enc"], linear=False) + b_enc).relu()
        if kind == "topk":
            acts = top_k(acts, config["top_k"])
        elif kind == "jumprelu":
            acts = acts * (acts > t[LOG].double().exp())
        elif kind != "vanilla":
            acts = acts * (acts > float(t["threshold"] if options.threshold is None else options.threshold))
        output = decode(acts, t["W_dec"], t["b_dec"], linear=False)
        return acts, output * deviation + mean if unit else output

    def example(self, folder: Path, seed: int, variant: str = "topk") -> BatchTopKOptions:
        """A tiny one; "unnormalised" is a vanilla SAE of plain inputs."""
        import json

        import torch

        kind = "vanilla" if variant == "unnormalised" else variant
        generator = torch.Generator().manual_seed(seed)
        shapes = {"W_enc": (12, 40), "W_dec": (40, 12), "b_enc": (40,), "b_dec": (12,)}
        state = {name: torch.randn(shape, generator=generator) / 4 for name, shape in shapes.items()}
        if kind == "jumprelu":
            state[LOG] = torch.randn(40, generator=generator) - 1
        if kind == "globaltopk":
            state |= {"threshold": torch.tensor(0.3), "aux_threshold": torch.tensor(0.004)}
        config = {"sae_type": kind, "top_k": 6, "act_size": 12, "dict_size": 40, "dtype": "torch.float32", "seq_len": 128}
        config |= {"model_name": "gpt2-small", "hook_point": "blocks.8.hook_resid_pre", "layer": 8, "seed": 49}
        config |= {"input_unit_norm": variant != "unnormalised", "dataset_path": "Skylion007/openwebtext"}
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(state, folder / SAE)
        (folder / CONFIG).write_text(json.dumps(config))
        return BatchTopKOptions(threshold=0.3 if kind == "batchtopk" else None)


FORMAT = BatchTopK()


def _weights(files: SourceFiles) -> tuple[str, Path]:
    ((name, path),) = ((name, path) for name, path in files.paths.items() if name != CONFIG)
    return name, path


def _kind(config: Mapping[str, Any]) -> str:
    """config.json's sae_type.

    Raises:
        Refused: it is unknown, or config.json is of the repository's first version.
    """
    kind = config.get("sae_type")
    if not isinstance(kind, str) or kind not in ARCHITECTURES:
        raise unknown_value(CONFIG, "sae_type", kind, ", ".join(ARCHITECTURES))
    if old := [name for name in _FIRST_VERSION if name in config]:
        raise Refused(
            "Unknown version",
            f"{CONFIG} has {old[0]!r}, a setting of the repository's first version: its classes have other activations, tied "
            "decoders and another way back from normalised inputs, which saesync does not convert.",
        )
    return kind


def _unit_norm(config: Mapping[str, Any]) -> bool:
    found = config.get("input_unit_norm", False)
    if type(found) is not bool:
        raise Refused("Damaged config", f"{CONFIG}: input_unit_norm must be true or false, not {str(found)[:50]!r}.")
    return found


def _dimensions(file: str, kind: str, found: Mapping[str, TensorInfo], config: Mapping[str, Any]) -> tuple[int, int]:
    """d_in and d_sae as the tensors say; config.json must agree.

    Raises:
        Refused: missing or unknown tensors, wrong shapes, or other sizes in config.json.
    """
    extra = dict.fromkeys(("threshold", "aux_threshold"), ()) if kind == "globaltopk" else {}
    if any(found[name].shape == (0,) for name in extra if name in found):
        raise Refused("Untrained threshold", f"{file}: threshold is empty: this checkpoint was saved before any training step.")
    d_in, d_sae = (JUMP if kind == "jumprelu" else PLAIN).dimensions(file, found, extra=extra)
    for key, length in (("act_size", d_in), ("dict_size", d_sae)):
        said = config.get(key, length)
        if said != length:
            raise Refused("Config contradicts tensors", f"{CONFIG}: {key} is {str(said)[:50]}, the tensors say {length}.")
    return d_in, d_sae


def _threshold(file: str, kind: str, opened: Opened, options: BatchTopKOptions) -> float | None:
    """The one threshold of a batchtopk (declared) or globaltopk (stored); None for the others.

    Raises:
        Refused: it is not declared, declared without need, or no threshold.
    """
    if kind != "batchtopk" and options.threshold is not None:
        raise Refused("Threshold is not needed", f"threshold is declared, but {CONFIG} says sae_type {kind}. Remove the option.")
    if kind == "globaltopk":
        found = float(whole(opened.tensors["threshold"]).item())
        if not 0 < found < math.inf:
            raise Refused("Untrained threshold", f"{file}: threshold is {found:g}; every positive feature would fire.")
        return found
    if kind != "batchtopk":
        return None
    if options.threshold is None:
        raise Refused(
            "Needs a declared threshold",
            f"{CONFIG} says sae_type batchtopk, which keeps the largest of a whole batch, and {file} holds no threshold for "
            "single tokens. Calibrate one on data (the mean over batches of the smallest kept activation) and declare it as "
            "`threshold` beside format.",
        )
    if isinstance(options.threshold, bool) or not 0 < options.threshold < math.inf:
        raise Refused("Untrained threshold", f"threshold must be a positive number, not {options.threshold!r}.")
    return float(options.threshold)


def _said(config: Mapping[str, Any]) -> dict[str, Any]:
    """Model, hook, context and data as config.json names them."""
    named = {"model_name": "model", "hook_point": "hook", "dataset_path": "dataset"}
    facts: dict[str, Any] = {fact: config[key] for key, fact in named.items() if isinstance(config.get(key), str) and config[key]}
    if type(config.get("seq_len")) is int:
        facts["context"] = config["seq_len"]
    return facts

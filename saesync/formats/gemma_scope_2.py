"""Gemma Scope 2 (Google DeepMind, 2025): JumpReLU SAEs and transcoders of Gemma 3, in ``params.safetensors`` with a small
config.json.

Authors' forward pass (as SAELens 6.54's gemma_3 loader and circuit-tracer read the files): ``pre = x w_enc + b_enc``, ``f =
relu(pre) * (pre > threshold)``, output ``f w_dec + b_dec``, for affine transcoders ``+ x affine_skip_connection``
(``[d_in, d_out]``; SAELens's ``W_skip`` is its transpose). Nothing is subtracted from the input.

config.json names the Hugging Face modules read and predicted: they differ in a transcoder. Some releases lack it; then the kind
must be declared. Whether a transcoder is affine is seen from its tensors: folder names were wrong about it (SAELens#624).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from saesync.errors import Inexpressible, Refused
from saesync.formats import _jumprelu
from saesync.formats._checks import read_json, unknown_value
from saesync.formats._jumprelu import Shape
from saesync.formats._lazy import Transposed
from saesync.formats._open import beside, choose, open_tensors
from saesync.formats.base import Candidate, Headers, LazyTensor, SourceFiles, TensorInfo, Weights

if TYPE_CHECKING:
    import torch

PARAMS, CONFIG = "params.safetensors", "config.json"
SKIP = "affine_skip_connection"
KINDS = ("sae", "attention", "transcoder")
_LAYER_FILE = re.compile(r"params_layer_\d+\.safetensors")
_MODULE = re.compile(r"model\.layers\.(\d+)\.(.+)")
# The authors' names of modules, as TransformerLens names the same tensor where it surely is the same.
_HOOKS = {
    "output": "hook_resid_post",
    "self_attn.o_proj.input": "attn.hook_z",
    "pre_feedforward_layernorm.output": "mlp.hook_in",
    "post_feedforward_layernorm.output": "hook_mlp_out",
}


@dataclass(frozen=True, slots=True)
class GemmaScope2Options:
    """What a release without config.json does not say."""

    kind: Literal["sae", "attention", "transcoder"] | None = field(
        default=None,
        metadata={
            "help": "What the tensors are: sae, attention (heads at hook_z, joined) or transcoder (needs hook_out). "
            "Needed exactly when there is no config.json beside them."
        },
    )


class GemmaScope2:
    """See the module's docstring."""

    name = "gemma_scope_2"
    version = 1
    summary = "Gemma Scope 2: JumpReLU SAEs and transcoders in params.safetensors, with config.json"
    Options: type[Any] = GemmaScope2Options
    variants = ("sae", "attention", "transcoder", "affine", "undeclared")
    conversion_func = "gemma_3"

    def files(self, names: Sequence[str], path: str) -> Mapping[str, str]:
        """The file ``path``, or params.safetensors in folder ``path``, with config.json beside it."""
        file = choose(names, path, (PARAMS,), (".safetensors",), "A Gemma Scope 2 SAE")
        return beside(names, file, CONFIG)

    def sniff(self, headers: Headers) -> Candidate | None:
        """Certain when the tensors are there and fit each other; recognised and refused when they span layers."""
        for file, tensors in headers.tensors.items():
            if not {"w_enc", "w_dec", "threshold"} <= set(tensors) or len(tensors["w_dec"].shape) == 3:
                continue  # three axes: gemma_scope_2_clt
            config = headers.json.get(CONFIG)
            try:
                kind = _kind(config, None) if config is not None else None
                shape = _shape(file, tensors, kind)
                _check_skip(config, SKIP in tensors)
            except Refused as refusal:
                return Candidate(self.name, 0.9, refusal=refusal.diagnostics[0].detail)
            cfg = _jumprelu.cfg(shape, kind == "transcoder" or SKIP in tensors, skip=SKIP in tensors)
            facts = {"architecture": cfg["architecture"], "d_in": shape.d_in, "d_sae": shape.d_sae, "dtype": shape.dtype}
            facts |= _said(config) if isinstance(config, Mapping) else {}
            return Candidate(self.name, 1.0, facts, needs=("kind",) if kind is None else ())
        return None

    def read(self, files: SourceFiles, options: GemmaScope2Options) -> Weights:
        """See ``Format.read``."""
        config = read_json(files.paths[CONFIG], CONFIG) if CONFIG in files.paths else None
        kind = _kind(config, options.kind)
        name, path = _weights(files)
        opened = open_tensors(path, name)
        shape = _shape(name, opened.infos, kind)
        _check_skip(config, SKIP in opened.tensors)
        tensors: dict[str, LazyTensor] = {
            (f"W_{tensor[2:]}" if tensor.startswith("w_") else tensor): stored for tensor, stored in opened.tensors.items()
        }
        skip = tensors.pop(SKIP, None)
        if skip is not None:
            tensors["W_skip"] = Transposed(skip)
        said = _said(config) if config is not None else {}
        named = {"hf_hook_name": "hf_hook", "hf_hook_name_out": "hf_hook_out", "hook_name": "hook", "hook_name_out": "hook_out"}
        metadata = {key: said[fact] for key, fact in {**named, "model_name": "model"}.items() if fact in said}
        return Weights(_jumprelu.cfg(shape, kind == "transcoder", kind == "attention", skip is not None), tensors, metadata)

    def reference(self, files: SourceFiles, options: GemmaScope2Options, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See ``Format.reference``. Tensors come through the safetensors library, not through ``read``."""
        from safetensors import safe_open

        _, path = _weights(files)
        with safe_open(path, framework="pt") as stored:
            skip = SKIP if SKIP in stored.keys() else None  # noqa: SIM118  not a dict
        return _jumprelu.forward(_jumprelu.SafetensorsArrays(path), x.double(), skip)

    def example(self, folder: Path, seed: int, variant: str = "sae") -> GemmaScope2Options:
        """A tiny one; "affine" is a transcoder with a skip connection, "undeclared" an SAE without config.json."""
        import json

        import torch
        from safetensors.torch import save_file

        transcoder = variant in ("transcoder", "affine")
        d_out = 9 if transcoder else 12
        t = {name.lower(): value for name, value in _jumprelu.random_parameters(seed, d_out).items()}
        if variant == "affine":
            t[SKIP] = torch.randn((12, d_out), generator=torch.Generator().manual_seed(seed + 1)) / 4
        folder.mkdir(parents=True, exist_ok=True)
        save_file(t, folder / PARAMS)
        if variant == "undeclared":
            return GemmaScope2Options("sae")
        module = {"sae": "output", "attention": "self_attn.o_proj.input"}.get(variant, "pre_feedforward_layernorm.output")
        config: dict[str, Any] = {
            "architecture": "jump_relu",
            "model_name": "gemma-v3-1b-pt",
            "hf_hook_point_in": f"model.layers.0.{module}",
        }
        if transcoder:
            out = {"hf_hook_point_out": "model.layers.0.post_feedforward_layernorm.output"}
            config |= out | {"affine_connection": variant == "affine"}
        (folder / CONFIG).write_text(json.dumps(config))
        return GemmaScope2Options()


FORMAT = GemmaScope2()


def _weights(files: SourceFiles) -> tuple[str, Path]:
    ((name, path),) = ((name, path) for name, path in files.paths.items() if name != CONFIG)
    return name, path


def _kind(config: Mapping[str, Any] | None, declared: str | None) -> str:
    """What it is, as config.json says, else as the manifest does.

    Raises:
        Refused: neither says it, they contradict each other, or it is something else than a JumpReLU SAE or transcoder.
    """
    if declared is not None and declared not in KINDS:
        raise Refused("Unknown kind", f"kind must be one of {', '.join(KINDS)}, not {declared[:50]!r}.")
    if config is None:
        if declared is None:
            detail = f"There is no {CONFIG} beside the weights, and an SAE and a transcoder have the same tensors. "
            raise Refused("Needs a declared kind", detail + f"Declare `kind` beside format: {', '.join(KINDS)}.")
        return declared
    if config.get("architecture") != "jump_relu":
        raise unknown_value(CONFIG, "architecture", config.get("architecture"), "jump_relu")
    inside, out = (config.get(key) for key in ("hf_hook_point_in", "hf_hook_point_out"))
    if not isinstance(inside, str) or not isinstance(out, str | None):
        detail = (
            f"{CONFIG}: hf_hook_point_in is {str(inside)[:100]!r}, hf_hook_point_out {str(out)[:100]!r}. SAELens has no SAE that "
            "reads or predicts several hooks at once (crosscoders, cross-layer transcoders)."
        )
        several = [key for key, value in (("hf_hook_point_in", inside), ("hf_hook_point_out", out)) if isinstance(value, list)]
        raise Inexpressible("Several hooks", detail, said_by=several[0]) if several else Refused("Several hooks", detail)
    found = "transcoder" if out not in (None, inside) else "attention" if inside.endswith("o_proj.input") else "sae"
    if declared not in (None, found):
        raise Refused("Kinds contradict", f"kind is declared as {declared}, but {CONFIG} says {found}. Remove the option.")
    return found


def _shape(file: str, tensors: Mapping[str, TensorInfo], kind: str | None) -> Shape:
    """Dimensions, checked against each other. ``kind`` None accepts what any of them may have.

    Raises:
        Refused: missing or unknown tensors, wrong shapes, or one layer of something that spans several.
    """
    axes = {name: list(info.shape) for name, info in tensors.items()}
    if len(axes.get("w_dec", ())) == 3 or _LAYER_FILE.fullmatch(file):
        raise Inexpressible.by(
            "w_dec",
            f"{file}: w_dec has shape {axes.get('w_dec')}, one slice per layer: it is one layer of a cross-layer transcoder, "
            "whose output depends on all layers. `format: gemma_scope_2_clt` converts its encoder.",
        )
    if len(axes.get("w_enc", ())) == 3:
        raise Inexpressible.by(
            "w_enc",
            f"{file}: w_enc has shape {axes['w_enc']}: it is a crosscoder, which reads several layers at once.",
        )
    if SKIP in tensors and kind in ("sae", "attention"):
        raise Refused(
            "Unexpected tensor", f"{file} holds {SKIP}, which only a transcoder has, but it is said to be of kind {kind}."
        )
    found = {(f"W_{name[2:]}" if name.startswith("w_") else name): info for name, info in tensors.items()}
    widths = [*axes.get("w_enc", [])[:1], *axes.get("b_dec", [])[:1]]
    return _jumprelu.shape_of(file, found, kind in ("sae", "attention"), {SKIP: tuple(widths)} if SKIP in tensors else None)


def _check_skip(config: Mapping[str, Any] | None, present: bool) -> None:
    """Whether a transcoder is affine is seen from its tensors; config.json must not say otherwise."""
    said = None if config is None else config.get("affine_connection")
    if said is not None and said is not present:
        holds = "hold" if present else "do not hold"
        raise Refused("Config contradicts tensors", f"{CONFIG}: affine_connection is {said}, but the weights {holds} {SKIP}.")


def _said(config: Mapping[str, Any]) -> dict[str, Any]:
    """Model and hooks as config.json names them, and as TransformerLens does where that is known."""
    facts: dict[str, Any] = {}
    for key, fact in (("hf_hook_point_in", "hook"), ("hf_hook_point_out", "hook_out")):
        module = config.get(key)
        if not isinstance(module, str) or (key.endswith("out") and module == config.get("hf_hook_point_in")):
            continue
        if module.endswith(".output"):  # the input of a module has no module's name
            facts[f"hf_{fact}"] = module.removesuffix(".output")
        match = _MODULE.fullmatch(module)
        if match is not None and match[2] in _HOOKS:
            facts[fact] = f"blocks.{match[1]}.{_HOOKS[match[2]]}"
    model = config.get("model_name")
    if isinstance(model, str) and model:
        # The authors write gemma-v3-...; the 270m base model has no suffix on the Hub.
        model = model.replace("gemma-v3-", "gemma-3-").replace("270m-pt", "270m")
        facts["model"] = model if "/" in model else f"google/{model}"
    return facts

"""sparsify (EleutherAI; once called sae): per hookpoint a folder with ``sae.safetensors`` and cfg.json.

Authors' forward pass (sparsify/sparse_coder.py and fused_encoder.py, eai-sparsify 1.3): ``pre = relu(encoder(x - b_dec))``, of
which the k largest are kept, output ``f W_dec + b_dec``, with a skip connection ``+ x W_skip^T``. Transcoders (``transcode``)
subtract nothing from the input. With ``signed`` (versions of 2024) there is no relu, and the k largest by absolute value are kept
with their sign: SAELens's abstopk. ``W_dec`` is stored ``[num_latents, d_in]``, as SAELens has it; only the encoder, a Linear, is
transposed. ``num_latents: 0`` means expansion_factor x d_in; normalize_decoder and multi_topk concern training alone
(with the latter, ``forward`` returns the output of a second loss, from 4 k latents; ``encode`` and ``decode`` are the function).

SAELens has no TopK transcoder and no TopK with a skip connection: these can be expressed only where k is the number of latents,
so that it chooses nothing. Nor has it groupmax.

SAELens's own loader (6.54) transposes W_dec, takes num_latents 0 at its word, ignores signed, derives from normalize_decoder
whether b_dec is subtracted, and calls ``layers.N.mlp`` the residual stream.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saesync.errors import Inexpressible, Refused
from saesync.formats._checks import read_json, unknown_value, widest
from saesync.formats._layout import Layout, cfg, look, require_k
from saesync.formats._lazy import Mapped, spans, whole
from saesync.formats._open import beside, choose, open_tensors
from saesync.formats.base import Candidate, Headers, LazyTensor, SourceFiles, TensorInfo, Weights

if TYPE_CHECKING:
    import torch

SAE, CFG = "sae.safetensors", "cfg.json"
_NAMES = {"W_enc": "encoder.weight", "b_enc": "encoder.bias", "W_dec": "W_dec", "b_dec": "b_dec"}
PLAIN = Layout(_NAMES, frozenset(("W_enc",)))
SKIP = Layout({**_NAMES, "W_skip": "W_skip"}, frozenset(("W_enc",)))
_BIASES = ("b_enc", "b_dec")
_PLACE = re.compile(r"(?:^|[./])(?:layers?|h)[._](?P<layer>\d+)(?:\.(?P<module>mlp|attn|self_attn|attention))?/?$", re.ASCII)


@dataclass(frozen=True, slots=True)
class SparsifyOptions:
    """What an incomplete file fails to say."""

    zero_biases: bool = field(
        default=False,
        metadata={
            "help": "Take a bias that the file lacks as zero. The authors' class always saves both, so its absence is otherwise "
            "refused."
        },
    )


@dataclass(frozen=True, slots=True)
class Settings:
    """What cfg.json and the tensors say of the function."""

    d_in: int
    d_sae: int
    k: int
    signed: bool
    transcode: bool
    skip: bool

    @property
    def architecture(self) -> str:
        """SAELens's name."""
        if self.skip:
            return "skip_transcoder"
        return "transcoder" if self.transcode else "abstopk" if self.signed else "topk"


class Sparsify:
    """See the module's docstring."""

    name = "sparsify"
    version = 1
    summary = "sparsify (EleutherAI): sae.safetensors with cfg.json, one folder per hookpoint"
    Options: type[Any] = SparsifyOptions
    variants = ("topk", "signed", "transcoder", "skip transcoder", "skip", "no encoder bias")
    conversion_func = "sparsify"

    def files(self, names: Sequence[str], path: str) -> Mapping[str, str]:
        """The file ``path``, or sae.safetensors in folder ``path``, with cfg.json beside it."""
        found = beside(names, choose(names, path, (SAE,), (".safetensors",), "A sparsify SAE"), CFG)
        if CFG not in found:
            raise Refused("Missing file", f"A sparsify SAE has {CFG} beside it; {path or 'the root'} has none.")
        return found

    def sniff(self, headers: Headers) -> Candidate | None:
        """Certain by cfg.json and the encoder's name; the hook is proposed where the folder's name says it."""
        config = headers.json.get(CFG)
        seen = look(headers, ("encoder.weight",), (".safetensors",))
        if seen is None or not isinstance(config, Mapping) or not {"k", "d_in", "expansion_factor"} <= set(config):
            return None
        bare = tuple(name for name in _BIASES if _NAMES[name] not in seen.tensors)
        try:
            found = _settings(seen.file, config, seen.tensors, bare)
        except Refused as refusal:
            return Candidate(self.name, 0.9, refusal=refusal.diagnostics[0].detail)
        facts = {"architecture": found.architecture, "d_in": found.d_in, "d_sae": found.d_sae, "k": found.k}
        hooks = _place(headers.place, found.transcode)
        return Candidate(self.name, 1.0, facts | {"dtype": widest(seen.tensors)} | hooks, needs=("zero_biases",) if bare else ())

    def read(self, files: SourceFiles, options: SparsifyOptions) -> Weights:
        """See ``Format.read``."""
        file, path = _weights(files)
        opened = open_tensors(path, file)
        optional = _BIASES if options.zero_biases else ()
        found = _settings(file, read_json(files.paths[CFG], CFG), opened.infos, optional)
        tensors = (SKIP if found.skip else PLAIN).tensors(opened, found.d_in, found.d_sae)
        more: dict[str, Any] = {"k": found.k, "rescale_acts_by_decoder_norm": False}
        if found.transcode or found.skip:
            more = {"d_out": found.d_in}
            if not found.transcode:
                tensors["b_enc"] = _shifted(tensors)
        subtracts = not (found.transcode or found.skip)
        return Weights(cfg(found.architecture, found.d_in, found.d_sae, subtracts, **more), tensors)

    def reference(self, files: SourceFiles, options: SparsifyOptions, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See ``Format.reference``."""
        import torch

        from saesync.formats import _authors

        config = read_json(files.paths[CFG], CFG)
        t = _authors.load(_weights(files)[1])
        x = x.double()
        b_dec = t["b_dec"].double() if "b_dec" in t else torch.zeros(x.shape[1], dtype=torch.float64)
        z = x if config.get("transcode", False) else x - b_dec
        pre = _authors.encode(z, t["encoder.weight"], linear=True)
        if "encoder.bias" in t:
            pre += t["encoder.bias"].double()
        if config.get("signed", False):
            chosen = pre.abs().topk(config["k"], dim=-1).indices
            features = torch.zeros_like(pre).scatter_(-1, chosen, pre.gather(-1, chosen))
        else:
            features = _authors.top_k(pre.relu(), config["k"])
        output = _authors.decode(features, t["W_dec"], b_dec, linear=False)
        if "W_skip" in t:
            output += x @ t["W_skip"].double().T
        return features, output

    def example(self, folder: Path, seed: int, variant: str = "topk") -> SparsifyOptions:
        """A tiny one with d_in 12 and 48 latents; transcoders and skip connections with a k that chooses nothing."""
        import json

        import torch
        from safetensors.torch import save_file

        generator = torch.Generator().manual_seed(seed)
        shapes = {"encoder.weight": (48, 12), "encoder.bias": (48,), "W_dec": (48, 12), "b_dec": (12,), "W_skip": (12, 12)}
        t = {name: torch.randn(shape, generator=generator) / 4 for name, shape in shapes.items()}
        skip = variant.startswith("skip")
        if not skip:
            del t["W_skip"]
        if variant == "no encoder bias":
            del t["encoder.bias"]
        config = {"activation": "topk", "expansion_factor": 4, "normalize_decoder": True, "num_latents": 0, "multi_topk": False}
        config |= {"k": 48 if skip or variant == "transcoder" else 6, "d_in": 12}
        config |= {"skip_connection": skip, "transcode": variant.endswith("transcoder")}
        folder.mkdir(parents=True, exist_ok=True)
        (folder / CFG).write_text(json.dumps(config | ({"signed": True} if variant == "signed" else {})))
        save_file(t, folder / SAE)
        return SparsifyOptions(zero_biases=variant == "no encoder bias")


FORMAT = Sparsify()


def _weights(files: SourceFiles) -> tuple[str, Path]:
    ((name, path),) = ((name, path) for name, path in files.paths.items() if name != CFG)
    return name, path


def _settings(file: str, config: Mapping[str, Any], found: Mapping[str, TensorInfo], optional: tuple[str, ...]) -> Settings:
    """What cfg.json says, checked against the tensors. Biases in ``optional`` may be missing.

    Raises:
        Refused: they do not fit, a setting is damaged, or SAELens cannot express it.
    """
    activation = config.get("activation", "topk")
    if activation != "topk":
        raise unknown_value(CFG, "activation", activation, "topk alone")
    signed, transcode, skip = (_flag(config, name) for name in ("signed", "transcode", "skip_connection"))
    d_in, d_sae = (SKIP if skip else PLAIN).dimensions(file, found, optional)
    if config.get("d_in") != d_in:
        said = str(config.get("d_in"))[:50]
        raise Refused("Config contradicts tensors", f"{CFG}: d_in is {said}, the tensors say {d_in}.")
    latents, factor = config.get("num_latents", 0), config.get("expansion_factor")
    wide = latents or (int(d_in * factor) if isinstance(factor, int | float) and math.isfinite(factor) else None)
    if wide != d_sae:
        said = f"num_latents {str(latents)[:50]} and expansion_factor {str(factor)[:50]}"
        raise Refused("Config contradicts tensors", f"{CFG}: {said} do not give the {d_sae} latents of the tensors.")
    k = require_k(config.get("k"), d_sae, f"{CFG}: k")
    what = "transcode" if transcode else "skip_connection"
    if (transcode or skip) and (signed or k < d_sae):
        how = "signed" if signed else f"k is {k} of {d_sae} latents"
        raise Inexpressible.by(
            what,
            f"{CFG}: {what} is true and {how}: SAELens's transcoders and skip connections have no TopK.",
        )
    return Settings(d_in, d_sae, k, signed, transcode, skip)


def _flag(config: Mapping[str, Any], name: str) -> bool:
    found = config.get(name, False)
    if type(found) is not bool:
        raise Refused("Damaged config", f"{CFG}: {name} must be true or false, not {str(found)[:50]!r}.")
    return found


def _shifted(tensors: Mapping[str, LazyTensor]) -> Mapped:
    """The encoder's bias with the subtraction of b_dec from the input in it: ``b_enc - b_dec W_enc``."""
    import torch

    W_enc, b_dec = tensors["W_enc"], whole(tensors["b_dec"]).double()
    shift = torch.zeros(W_enc.shape[1], dtype=torch.float64)
    for start, stop in spans(W_enc.shape[0], W_enc.shape[1] * 8):
        shift += b_dec[start:stop] @ W_enc.rows(start, stop).double()
    return Mapped(tensors["b_enc"], lambda block, start, stop: block - shift[start:stop])


def _place(place: str, transcode: bool) -> dict[str, str]:
    """The hook, by the hookpoint's name: a module of the model, which is read at its output; a transcoder's, at both ends."""
    if place.rstrip("/").rpartition("/")[2] == "embed_tokens":
        return {"hook": "hook_embed"}
    match = _PLACE.search(place.rstrip("/"))
    if match is None:
        return {}
    module = {None: "hook_resid_post", "mlp": "hook_mlp_out"}.get(match["module"], "hook_attn_out")
    out = f"blocks.{int(match['layer'])}.{module}"
    if not transcode:
        return {"hook": out}
    return {"hook": f"blocks.{int(match['layer'])}.mlp.hook_in", "hook_out": out} if match["module"] == "mlp" else {}

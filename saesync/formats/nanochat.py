"""nanochat's SAEs: a training checkpoint (``best_model.pt``, ``checkpoint_step{N}.pt``) with ``sae_state_dict``, and config.json.

Authors' forward pass (karpathy/nanochat, SAE pull request, commit 558e949): ``h = x W_enc + b_enc``, output ``f W_dec + b_dec``;
``b_dec`` is never subtracted and nothing is normalised. By ``activation``:

- ``relu``: ``f = relu(h)``.
- ``topk``: the k largest of ``h`` itself, *without* relu: with fewer than k positive ones, negative features stay. SAELens has no
  such SAE; the two agree where every row has k positive pre-activations, which the proof demands of real activations.
- ``gated``: ``f = h (x W_gate + b_gate > 0)``: a gate of its own and no relu, which SAELens's gated SAE cannot express.

nanochat's loader takes the last checkpoint of a folder that it happens to find; here a folder means its best_model.pt, and any
other one is named.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from saesync.errors import Inexpressible, Refused
from saesync.formats import _dense
from saesync.formats._authors import decode, encode, load, random_state, top_k
from saesync.formats._checks import read_json
from saesync.formats._dense import PLAIN, Layout, Size
from saesync.formats._open import TORCH, beside, choose, open_tensors
from saesync.formats.base import Candidate, Headers, LazyTensor, SourceFiles, TensorInfo, Weights

if TYPE_CHECKING:
    import torch

BEST, CONFIG = "best_model.pt", "config.json"
STATE = "sae_state_dict."
_LAYOUT = Layout(PLAIN)
_HOOK = re.compile(r"blocks\.(\d+)\.hook_(resid|attn|mlp)\w*", re.ASCII)
# hook_attn and hook_mlp are nanochat's own words; all its residual hooks sit on the block's output.
_SITES = {"resid": "hook_resid_post", "attn": "hook_attn_out", "mlp": "hook_mlp_out"}


@dataclass(frozen=True, slots=True)
class NanochatOptions:
    """What a checkpoint without config.json does not say."""

    activation: Literal["topk", "relu"] | None = field(
        default=None, metadata={"help": "topk or relu; needed exactly when there is no config.json beside the checkpoint."}
    )
    k: int | None = field(
        default=None,
        metadata={
            "help": "Active features per token of a topk SAE; needed when there is no config.json.",
            "only_for": ("activation", ("topk",)),
        },
    )


class Nanochat:
    """See the module's docstring."""

    name = "nanochat"
    version = 1
    summary = "nanochat SAEs: a checkpoint with sae_state_dict, and config.json"
    Options: type[Any] = NanochatOptions
    variants = ("relu", "undeclared")

    def files(self, names: Sequence[str], path: str) -> Mapping[str, str]:
        """The file ``path``, or best_model.pt in folder ``path``, with config.json beside it."""
        return beside(names, choose(names, path, (BEST,), TORCH, "A nanochat SAE"), CONFIG)

    def sniff(self, headers: Headers) -> Candidate | None:
        """Certain when ``sae_state_dict`` is there."""
        config = headers.json.get(CONFIG)
        for file, tensors in headers.tensors.items():
            if f"{STATE}W_enc" not in tensors:
                continue
            if (refused := _dense.unsafe(self.name, headers, file)) is not None:
                return refused
            try:
                size = _measure(file, tensors, config)
                activation, _ = (None, None) if config is None else _said(config, NanochatOptions(), size)
            except Refused as refusal:
                return Candidate(self.name, 1.0, refusal=_dense.reason(refusal))
            facts = {"architecture": activation or "topk or relu", **size.facts}
            if isinstance(config, Mapping) and (match := _HOOK.fullmatch(str(config.get("hook_point")))):
                facts["hook"] = f"blocks.{int(match[1])}.{_SITES[match[2]]}"
            return Candidate(self.name, 1.0, facts, needs=("activation", "k") if config is None else ())
        return None

    def read(self, files: SourceFiles, options: NanochatOptions) -> Weights:
        """See ``Format.read``."""
        config = _config(files)
        file, path = _checkpoint(files)
        tensors = {
            name.removeprefix(STATE): tensor
            for name, tensor in open_tensors(path, file).tensors.items()
            if name.startswith(STATE)
        }
        infos = {STATE + name: tensor.extent.info for name, tensor in tensors.items()}
        size = _measure(file, infos, config)
        activation, k = _said(config, options, size)
        cfg = _dense.cfg("standard" if activation == "relu" else "topk", size, k=k or 0)
        found: dict[str, LazyTensor] = _dense.pick(tensors, _LAYOUT)
        return Weights(cfg, found, positive_k=k)

    def reference(self, files: SourceFiles, options: NanochatOptions, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See ``Format.reference``."""
        config = _config(files)
        t = load(_checkpoint(files)[1])["sae_state_dict"]
        h = encode(x.double(), t["W_enc"], linear=False) + t["b_enc"].double()
        activation, k = (options.activation, options.k) if config is None else (config["activation"], config["k"])
        features = h.relu() if activation == "relu" else top_k(h, int(k or 0))
        return features, decode(features, t["W_dec"], linear=False) + t["b_dec"].double()

    def example(self, folder: Path, seed: int, variant: str = "relu") -> NanochatOptions:
        """A tiny ReLU checkpoint with its training's state; "undeclared" has no config.json."""
        import json

        import torch

        t = random_state(seed, {"W_enc": (12, 40), "b_enc": (40,), "W_dec": (40, 12), "b_dec": (12,)})
        folder.mkdir(parents=True, exist_ok=True)
        config = {"d_in": 12, "d_sae": 40, "activation": "relu", "k": 14}
        config |= {"normalize_decoder": True, "dtype": "bfloat16", "hook_point": "blocks.10.hook_resid_post"}
        checkpoint: dict[str, Any] = {"step": 500, "epoch": 1, "sae_state_dict": t, "config": config, "best_val_loss": 0.5}
        checkpoint |= {"optimizer_state_dict": {"state": {0: {"exp_avg": torch.zeros(3)}}}, "feature_counts": torch.ones(40)}
        torch.save(checkpoint, folder / BEST)
        if variant == "undeclared":
            return NanochatOptions("relu")
        (folder / CONFIG).write_text(json.dumps(config))
        return NanochatOptions()


FORMAT = Nanochat()


def _checkpoint(files: SourceFiles) -> tuple[str, Path]:
    ((name, path),) = ((name, path) for name, path in files.paths.items() if name != CONFIG)
    return name, path


def _config(files: SourceFiles) -> Mapping[str, Any] | None:
    return read_json(files.paths[CONFIG], CONFIG) if CONFIG in files.paths else None


def _measure(file: str, found: Mapping[str, TensorInfo], config: Any) -> Size:
    """Dimensions of the SAE in a checkpoint; what else training saved is left out.

    Raises:
        Refused: the SAE is gated, has unknown tensors or wrong shapes, or config.json contradicts it.
    """
    own = {name.removeprefix(STATE): info for name, info in found.items() if name.startswith(STATE)}
    if gate := sorted({"W_gate", "b_gate"} & set(own)):
        raise _gated(gate[0], f"{file} holds {STATE}{gate[0]}")
    size = _dense.measure(file, own, _LAYOUT)
    for key, length in (("d_in", size.d_in), ("d_sae", size.d_sae)):
        said = config.get(key, length) if isinstance(config, Mapping) else length
        if said != length:
            raise Refused("Config contradicts tensors", f"{CONFIG}: {key} is {str(said)[:50]}, the tensors say {length}.")
    return size


def _said(config: Mapping[str, Any] | None, options: NanochatOptions, size: Size) -> tuple[str, int | None]:
    """Activation and k, as config.json says, else as the manifest does.

    Raises:
        Refused: neither does, or both do, or SAELens has no such SAE.
    """
    if config is not None and (options.activation is not None or options.k is not None):
        raise Refused("Option does not fit", f"{CONFIG} says activation and k. Remove the options.")
    activation, k = (options.activation, options.k) if config is None else (config.get("activation"), config.get("k"))
    if activation is None:
        detail = "Nothing says which activation it has. Declare `activation` beside format, and `k` if it is topk."
        raise Refused("Needs a declared activation", detail)
    if activation == "gated":
        raise _gated("activation", f"{CONFIG}: activation is gated")
    if activation == "relu":
        return "relu", None
    if activation != "topk":
        raise Inexpressible.by("activation", f"activation is {str(activation)[:50]!r}; known are topk and relu.")
    return "topk", _dense.checked_k(k, size.d_sae)


def _gated(said_by: str, where: str) -> Inexpressible:
    return Inexpressible.by(
        said_by,
        f"{where}: nanochat's gated SAE has an encoder of its own for the gate and keeps negative features. SAELens's ties gate "
        "and magnitude to one encoder, and clips at zero.",
    )

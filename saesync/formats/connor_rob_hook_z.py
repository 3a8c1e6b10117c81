"""SAEs of attention heads by Connor Kissane and Rob Krzyzanowski, in Neel Nanda's layout: ``NAME.pt`` with ``NAME_cfg.json``.

Authors' forward pass (the notebook linked from ckkissane/attn-saes-gpt2-small-all-layers, after neelnanda-io's
1L-Sparse-Autoencoder): ``f = relu((x - b_dec) W_enc + b_enc)``, output ``f W_dec + b_dec``. Heads at a ``hook_z`` are joined.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saesync.errors import Refused
from saesync.formats import _dense
from saesync.formats._authors import decode, encode, load, random_state
from saesync.formats._checks import read_json
from saesync.formats._dense import PLAIN, Layout, Size
from saesync.formats._open import beside, only, open_tensors
from saesync.formats.base import Candidate, Headers, SourceFiles, TensorInfo, Weights

if TYPE_CHECKING:
    import torch

_SUFFIX = ".pt"
_LAYOUT = Layout(PLAIN)


@dataclass(frozen=True, slots=True)
class ConnorRobOptions:
    """The files say everything."""


class ConnorRob:
    """See the module's docstring."""

    name = "connor_rob_hook_z"
    version = 1
    summary = "Kissane and Krzyzanowski's attention SAEs: NAME.pt with NAME_cfg.json"
    Options: type[Any] = ConnorRobOptions
    conversion_func = "connor_rob_hook_z"

    def files(self, names: Sequence[str], path: str) -> Mapping[str, str]:
        """The file ``path``, or the only .pt file in folder ``path``, with its cfg, which must be there."""
        found = only(names, path, lambda name: name.endswith(_SUFFIX), "The SAE is one file NAME.pt with NAME_cfg.json")
        both = beside(names, found, _cfg_name(found.rsplit("/", 1)[-1]))
        if len(both) != 2:
            raise Refused("Missing file", f"{_cfg_name(found)} is not in the source; the SAE is NAME.pt with NAME_cfg.json.")
        return both

    def sniff(self, headers: Headers) -> Candidate | None:
        """Certain with its cfg."""
        for file, tensors in headers.tensors.items():
            cfg = headers.json.get(_cfg_name(file)) if file.endswith(_SUFFIX) else None
            if not isinstance(cfg, Mapping) or not {"act_size", "dict_size", "act_name"} <= set(cfg):
                continue
            if "W_enc" not in tensors or len(tensors["W_enc"].shape) != 2:
                continue  # with three axes: a crosscoder
            if (refused := _dense.more_than_tensors(self.name, headers, file)) is not None:
                return refused
            try:
                size = _measure(file, tensors, cfg)
            except Refused as refusal:
                return Candidate(self.name, 0.9, refusal=_dense.reason(refusal))
            return Candidate(self.name, 1.0, {"architecture": "standard", **size.facts, "hook": cfg["act_name"]})
        return None

    def read(self, files: SourceFiles, options: ConnorRobOptions) -> Weights:
        """See ``Format.read``."""
        file, path, cfg = _resolve(files)
        opened = open_tensors(path, file)
        found = _dense.no_others(file, opened)
        size = _measure(file, opened.infos, cfg)
        metadata = {"hook_name": cfg["act_name"]}
        if isinstance(cfg.get("model_name"), str):
            metadata["model_name"] = cfg["model_name"]
        heads = cfg["act_name"].endswith("hook_z")
        return Weights(_dense.cfg("standard", size, subtracts=True, heads=heads), _dense.pick(found, _LAYOUT), metadata)

    def reference(self, files: SourceFiles, options: ConnorRobOptions, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See ``Format.reference``."""
        t = load(_resolve(files)[1])
        b_dec = t["b_dec"].double()
        features = (encode(x.double() - b_dec, t["W_enc"], linear=False) + t["b_enc"].double()).relu()
        return features, decode(features, t["W_dec"], linear=False) + b_dec

    def example(self, folder: Path, seed: int) -> ConnorRobOptions:
        """A tiny one at hook_z."""
        import json

        import torch

        folder.mkdir(parents=True, exist_ok=True)
        state = random_state(seed, {"W_enc": (12, 40), "b_enc": (40,), "W_dec": (40, 12), "b_dec": (12,)})
        torch.save(state, folder / "gpt2-small_L5_Hcat_z.pt")
        cfg = {"act_size": 12, "dict_size": 40, "act_name": "blocks.5.attn.hook_z", "model_name": "gpt2-small"}
        (folder / "gpt2-small_L5_Hcat_z_cfg.json").write_text(json.dumps(cfg))
        return ConnorRobOptions()


FORMAT = ConnorRob()


def _cfg_name(file: str) -> str:
    return f"{file.removesuffix(_SUFFIX)}_cfg.json"


def _resolve(files: SourceFiles) -> tuple[str, Path, dict[str, Any]]:
    ((file, path),) = ((name, path) for name, path in files.paths.items() if name.endswith(_SUFFIX))
    return file, path, read_json(files.paths[_cfg_name(file)], _cfg_name(file))


def _measure(file: str, found: Mapping[str, TensorInfo], cfg: Mapping[str, Any]) -> Size:
    """Dimensions, as the tensors say; the cfg must agree, and name its hook.

    Raises:
        Refused: wrong tensors, or a cfg of something else.
    """
    size = _dense.measure(file, found, _LAYOUT)
    for key, length in (("act_size", size.d_in), ("dict_size", size.d_sae)):
        if cfg.get(key) != length:
            detail = f"{_cfg_name(file)}: {key} is {str(cfg.get(key))[:50]}, the tensors say {length}."
            raise Refused("Config contradicts tensors", detail)
    if not isinstance(cfg.get("act_name"), str) or not cfg["act_name"]:
        raise Refused("Damaged config", f"{_cfg_name(file)} does not say act_name, the hook.")
    return size

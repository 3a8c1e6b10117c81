"""Crosscoders of several models at one place (ckkissane, neelnanda-io): ``cc_weights.pt`` with cfg.json, or ``N.pt`` with
N_cfg.json.

Authors' forward pass (ckkissane/crosscoder-model-diff-replication, commit e221e8d): ``f = relu(sum_m x_m W_enc[m] + b_enc)``,
output ``y_m = f W_dec[:, m] + b_dec[m]``. ``x_m`` are the activations of model m, multiplied beforehand by a factor of its own
that no file holds. On the joined vector ``[x_0, x_1, ...]`` this is exactly an ordinary SAE, and as that it is converted; the
factors are folded, so that input and output are raw activations.

No hook of any one model yields that joined vector: what is published is marked ``unhookable`` and can be used for its weights
and directions, but neither measured nor shown on dashboards.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saesync.errors import Refused
from saesync.formats import _dense
from saesync.formats._authors import load, random_state
from saesync.formats._checks import read_json, require_tensors, widest
from saesync.formats._dense import Size
from saesync.formats._lazy import Extent, Mapped, Stored, spans
from saesync.formats._open import TORCH, beside, only, open_tensors
from saesync.formats.base import Candidate, Headers, LazyTensor, SourceFiles, TensorInfo, Weights

if TYPE_CHECKING:
    import torch

MAIN, CFG = "cc_weights.pt", "cfg.json"


@dataclass(frozen=True, slots=True)
class CrosscoderOptions:
    """What no file says."""

    input_scales: tuple[float, ...] = field(
        metadata={
            "help": "Factor that each model's activations were multiplied by before the crosscoder, in order; 1.0 for raw ones."
        }
    )


class Crosscoder:
    """See the module's docstring."""

    name = "crosscoder"
    version = 1
    summary = "Crosscoders of several models (cc_weights.pt, N.pt), as one SAE on their joined activations; no hook yields these"
    Options: type[Any] = CrosscoderOptions

    def files(self, names: Sequence[str], path: str) -> Mapping[str, str]:
        """The file ``path``, or cc_weights.pt in folder ``path``, with its cfg if there is one."""
        named = path.rstrip("/") in names
        found = only(names, path, lambda name: name.endswith(TORCH) if named else name == MAIN, f"A crosscoder is {MAIN} or N.pt")
        last = found.rsplit("/", 1)[-1]
        return beside(names, found, CFG if last == MAIN else f"{last.rpartition('.')[0]}_cfg.json")

    def sniff(self, headers: Headers) -> Candidate | None:
        """Certain when encoder and decoder have three axes that fit each other."""
        for file, tensors in headers.tensors.items():
            if any(len(tensors[name].shape) != 3 if name in tensors else True for name in ("W_enc", "W_dec")):
                continue
            if (refused := _dense.more_than_tensors(self.name, headers, file)) is not None:
                return refused
            try:
                models, size = _measure(file, tensors)
            except Refused as refusal:
                return Candidate(self.name, 0.8, refusal=_dense.reason(refusal))
            facts = {"architecture": "standard", "models": models, "unhookable": True, **size.facts}
            return Candidate(self.name, 1.0, facts, needs=("input_scales",))
        return None

    def read(self, files: SourceFiles, options: CrosscoderOptions) -> Weights:
        """See ``Format.read``."""
        import torch

        file, path = _weights(files)
        opened = open_tensors(path, file)
        _dense.no_others(file, opened)
        models, size = _measure(file, opened.infos)
        for name, cfg in files.paths.items():
            said = size.d_sae if cfg == path else read_json(cfg, name).get("dict_size", size.d_sae)
            if said != size.d_sae:
                detail = f"{name}: dict_size is {str(said)[:50]}, the tensors say {size.d_sae}."
                raise Refused("Config contradicts tensors", detail)
        scales = _scales(options, models)
        factors = torch.tensor(scales, dtype=torch.float64).repeat_interleave(size.d_in // models)
        flat = {"W_enc": (size.d_in, size.d_sae), "W_dec": (size.d_sae, size.d_in), "b_dec": (size.d_in,)}
        joined = {name: _reshaped(file, name, opened.tensors[name], shape) for name, shape in flat.items()}
        tensors: dict[str, LazyTensor] = {**joined, "b_enc": opened.tensors["b_enc"]}
        if set(scales) != {1.0}:
            tensors["W_enc"] = Mapped(joined["W_enc"], lambda block, start, stop: block * factors[start:stop, None])
            tensors["W_dec"] = Mapped(joined["W_dec"], lambda block, *_: block / factors)
            tensors["b_dec"] = Mapped(joined["b_dec"], lambda block, start, stop: block / factors[start:stop])
        return Weights(_dense.cfg("standard", size), tensors, {"unhookable": True, "joined_models": models})

    def reference(self, files: SourceFiles, options: CrosscoderOptions, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See ``Format.reference``. ``x`` and the output are raw activations, joined."""
        import torch

        t = load(_weights(files)[1])
        models, d, d_sae = t["W_enc"].shape
        scales = torch.tensor(list(options.input_scales), dtype=torch.float64)[:, None]
        scaled = x.double().reshape(len(x), models, d) * scales
        pre = t["b_enc"].double().repeat(len(x), 1)
        output = t["b_dec"].double().repeat(len(x), 1, 1)
        for start, stop in spans(d_sae, 8 * models * d):
            pre[:, start:stop] += torch.einsum("nmd,mds->ns", scaled, t["W_enc"][:, :, start:stop].double())
        features = pre.relu()
        for start, stop in spans(d_sae, 8 * models * d):
            output += torch.einsum("ns,smd->nmd", features[:, start:stop], t["W_dec"][start:stop].double())
        return features, (output / scales).reshape(len(x), -1)

    def example(self, folder: Path, seed: int) -> CrosscoderOptions:
        """A tiny one of two models, each 6 wide."""
        import json

        import torch

        folder.mkdir(parents=True, exist_ok=True)
        state = random_state(seed, {"W_enc": (2, 6, 40), "b_enc": (40,), "W_dec": (40, 2, 6), "b_dec": (2, 6)})
        torch.save(state, folder / MAIN)
        (folder / CFG).write_text(json.dumps({"dict_size": 40, "enc_dtype": "fp32", "d_in": 6}))
        return CrosscoderOptions((0.5, 0.25))


FORMAT = Crosscoder()


def _weights(files: SourceFiles) -> tuple[str, Path]:
    ((name, path),) = ((name, path) for name, path in files.paths.items() if name.endswith(TORCH))
    return name, path


def _measure(file: str, found: Mapping[str, TensorInfo]) -> tuple[int, Size]:
    """How many models, and dimensions of the joined SAE.

    Raises:
        Refused: missing or unknown tensors, wrong shapes.
    """
    encoder = found["W_enc"].shape if "W_enc" in found else ()
    models, d, d_sae = encoder if len(encoder) == 3 else (0, 0, 0)
    shapes = {"W_enc": (models, d, d_sae), "W_dec": (d_sae, models, d), "b_enc": (d_sae,), "b_dec": (models, d)}
    require_tensors(file, found, shapes)
    if 0 in (models, d, d_sae):
        raise Refused("Wrong shape", f"{file}: an axis has length 0.")
    return models, Size(models * d, d_sae, models * d, widest(found))


def _scales(options: CrosscoderOptions, models: int) -> tuple[float, ...]:
    scales = tuple(options.input_scales)
    good = all(isinstance(each, int | float) and not isinstance(each, bool) and 0 < each < math.inf for each in scales)
    if len(scales) != models or not good:
        detail = f"input_scales must be {models} positive numbers, one for each model, not {str(list(scales))[:100]}."
        raise Refused("Scales do not fit", detail)
    return tuple(float(each) for each in scales)


def _reshaped(file: str, name: str, stored: Stored, shape: tuple[int, ...]) -> Stored:
    """The same numbers with two axes joined.

    Raises:
        Refused: they do not lie in that order in the file.
    """
    extent = stored.extent
    if extent.strides != Extent.contiguous(extent.info, extent.start, extent.width).strides:
        raise Refused("Cannot be read in parts", f"{file}: {name} is stored as a strided view. Save it again, contiguous.")
    return Stored(stored.buffer, Extent.contiguous(TensorInfo(shape, extent.info.dtype), extent.start, extent.width))

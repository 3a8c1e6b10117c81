"""Goodfire's tied SAE of Evo 2 (``sae-layer26-mixed-expansion_8-k_64.pt``): ``W``, ``b_enc`` and ``b_dec``, with torch.compile's
prefix ``_orig_mod.`` or without.

Authors' forward pass (as several third-party loaders write it): ``h = (x - b_dec) W + b_enc``, output ``f Wᵀ + b_dec``; training
kept the k x batch largest of a batch. One token alone has no batch: as for other BatchTopK SAEs the inference form is ``f =
relu(h) (h > threshold)``. The file holds no threshold. It must be declared, as calibrated on data: the mean over batches of the
smallest feature kept. Keeping k features per token instead is another function, and is not offered.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saesync.errors import Refused
from saesync.formats import _dense
from saesync.formats._authors import decode, encode, load, random_state
from saesync.formats._dense import Layout, Size
from saesync.formats._lazy import Filled
from saesync.formats._open import TORCH, beside, only, open_tensors
from saesync.formats.base import Candidate, Headers, LazyTensor, SourceFiles, TensorInfo, Weights

if TYPE_CHECKING:
    import torch

_PREFIX = "_orig_mod."  # torch.compile's
_LAYOUT = Layout({"W_enc": "W", "b_enc": "b_enc", "W_dec": "W", "b_dec": "b_dec"}, frozenset(("W_dec",)))


@dataclass(frozen=True, slots=True)
class GoodfireTiedOptions:
    """What the file does not say."""

    threshold: float = field(
        metadata={"help": "Pre-activation above which a feature fires, calibrated on data; the file does not hold it."}
    )


class GoodfireTied:
    """See the module's docstring."""

    name = "goodfire_tied"
    version = 1
    summary = "Goodfire's tied BatchTopK SAE of Evo 2: W, b_enc, b_dec; its threshold must be declared"
    Options: type[Any] = GoodfireTiedOptions
    variants = ("compiled", "plain")

    def files(self, names: Sequence[str], path: str) -> Mapping[str, str]:
        """The file ``path``, or the only .pt file in folder ``path``."""
        return beside(names, only(names, path, lambda name: name.endswith(TORCH), "A tied Goodfire SAE is one .pt file"))

    def sniff(self, headers: Headers) -> Candidate | None:
        """Certain when its three tensors are there and no decoder is."""
        for file, tensors in headers.tensors.items():
            own = _own(tensors)
            if set(own) != {"W", "b_enc", "b_dec"}:
                continue
            if (refused := _dense.more_than_tensors(self.name, headers, file)) is not None:
                return refused
            try:
                size = _measure(file, own)
            except Refused as refusal:
                return Candidate(self.name, 0.9, refusal=_dense.reason(refusal))
            return Candidate(self.name, 1.0, {"architecture": "jumprelu", "tied": True, **size.facts}, needs=("threshold",))
        return None

    def read(self, files: SourceFiles, options: GoodfireTiedOptions) -> Weights:
        """See ``Format.read``."""
        ((file, path),) = files.paths.items()
        opened = open_tensors(path, file)
        _dense.no_others(file, opened)
        size = _measure(file, _own(opened.infos))
        threshold = options.threshold
        if isinstance(threshold, bool) or not isinstance(threshold, int | float) or not 0 <= threshold < math.inf:
            raise Refused("Threshold is no threshold", f"threshold must be a number from 0 on, not {threshold!r}.")
        own: dict[str, LazyTensor] = {name.removeprefix(_PREFIX): tensor for name, tensor in opened.tensors.items()}
        tensors = _dense.pick(own, _LAYOUT) | {"threshold": Filled(float(threshold), (size.d_sae,))}
        return Weights(_dense.cfg("jumprelu", size, subtracts=True), tensors, {"training_architecture": "batchtopk"})

    def reference(self, files: SourceFiles, options: GoodfireTiedOptions, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See ``Format.reference``."""
        ((_, path),) = files.paths.items()
        t = {name.removeprefix(_PREFIX): value for name, value in load(path).items()}
        b_dec = t["b_dec"].double()
        h = encode(x.double() - b_dec, t["W"], linear=False) + t["b_enc"].double()
        features = h.relu() * (h > options.threshold)
        return features, decode(features, t["W"], linear=True) + b_dec

    def example(self, folder: Path, seed: int, variant: str = "compiled") -> GoodfireTiedOptions:
        """A tiny one; "compiled" has torch.compile's prefix."""
        import torch

        folder.mkdir(parents=True, exist_ok=True)
        state = random_state(seed, {"W": (12, 40), "b_enc": (40,), "b_dec": (12,)})
        prefix = _PREFIX if variant == "compiled" else ""
        torch.save({prefix + name: value for name, value in state.items()}, folder / "sae-layer26-mixed-expansion_8-k_64.pt")
        return GoodfireTiedOptions(0.3)


FORMAT = GoodfireTied()


def _own(found: Mapping[str, TensorInfo]) -> dict[str, TensorInfo]:
    return {name.removeprefix(_PREFIX): info for name, info in found.items()}


def _measure(file: str, own: Mapping[str, TensorInfo]) -> Size:
    """Dimensions; ``W`` is the encoder, and turned the decoder.

    Raises:
        Refused: missing or unknown tensors, wrong shapes.
    """
    return _dense.measure(file, own, _LAYOUT)

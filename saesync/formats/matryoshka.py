"""noanabeshima's Matryoshka SAEs: one state dict with ``normalizer.running_avg``.

Authors' forward pass (noanabeshima/matryoshka-saes, commit 7b80f5f), with ``s = sqrt(d) / running_avg`` and ``n`` the norms of
the decoder's rows: ``h = (s x) W_enc + b_enc``, reconstruction ``(relu(h) W_dec + b_dec) / s``; ``get_acts`` reports ``relu(h) n
/ s``. b_dec is not subtracted. Both scales are folded, so that SAELens's features are those that ``get_acts`` reports. The
prefixes that were trained are gone with the training; the whole dictionary is what is converted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saesync.errors import Refused
from saesync.formats import _dense
from saesync.formats._authors import decode, encode, load, random_state
from saesync.formats._dense import PLAIN, Layout
from saesync.formats._lazy import Mapped, spans, whole
from saesync.formats._open import TORCH, beside, only, open_tensors
from saesync.formats.base import Candidate, Headers, LazyTensor, SourceFiles, Weights

if TYPE_CHECKING:
    import torch

AVERAGE = "normalizer.running_avg"
_SUFFIXES = (*TORCH, ".safetensors")
_LAYOUT = Layout(PLAIN, extra={AVERAGE: ""})


@dataclass(frozen=True, slots=True)
class MatryoshkaOptions:
    """The file says everything."""


class Matryoshka:
    """See the module's docstring."""

    name = "matryoshka"
    version = 1
    summary = "noanabeshima's Matryoshka SAEs: one state dict with normalizer.running_avg"
    Options: type[Any] = MatryoshkaOptions

    def files(self, names: Sequence[str], path: str) -> Mapping[str, str]:
        """The file ``path``, or the only weights file in folder ``path``."""
        what = f"A Matryoshka SAE is one {', '.join(_SUFFIXES)} file"
        return beside(names, only(names, path, lambda name: name.endswith(_SUFFIXES), what))

    def sniff(self, headers: Headers) -> Candidate | None:
        """Certain by its normalizer."""
        for file, tensors in headers.tensors.items():
            if AVERAGE not in tensors:
                continue
            if (refused := _dense.more_than_tensors(self.name, headers, file)) is not None:
                return refused
            try:
                size = _dense.measure(file, tensors, _LAYOUT)
            except Refused as refusal:
                return Candidate(self.name, 0.9, refusal=_dense.reason(refusal))
            return Candidate(self.name, 1.0, {"architecture": "standard", **size.facts})
        return None

    def read(self, files: SourceFiles, options: MatryoshkaOptions) -> Weights:
        """See ``Format.read``."""
        ((file, path),) = files.paths.items()
        opened = open_tensors(path, file)
        found = _dense.no_others(file, opened)
        size = _dense.measure(file, opened.infos, _LAYOUT)
        average = whole(found[AVERAGE]).double().item()
        if not 0 < average < math.inf:
            detail = f"{file}: {AVERAGE} is {average:g}: this SAE was not trained, or its training diverged."
            raise Refused("Untrained normalizer", detail)
        scale = math.sqrt(size.d_in) / average
        norms = _norms(found["W_dec"])
        safe = norms.where(norms > 0, norms.new_ones(()))  # a row of zeros stays one
        tensors: dict[str, LazyTensor] = {
            "W_enc": Mapped(found["W_enc"], lambda block, *_: block * norms),
            "b_enc": Mapped(found["b_enc"], lambda block, start, stop: block * norms[start:stop] / scale),
            "W_dec": Mapped(found["W_dec"], lambda block, start, stop: block / safe[start:stop, None]),
            "b_dec": Mapped(found["b_dec"], lambda block, *_: block / scale),
        }
        return Weights(_dense.cfg("standard", size), tensors)

    def reference(self, files: SourceFiles, options: MatryoshkaOptions, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See ``Format.reference``."""
        ((_, path),) = files.paths.items()
        t, x = load(path), x.double()
        s = x.shape[1] ** 0.5 / t[AVERAGE].double()
        acts = (encode(s * x, t["W_enc"], linear=False) + t["b_enc"].double()).relu()
        norms = t["W_dec"].double().norm(dim=1)
        return acts * norms / s, (decode(acts, t["W_dec"], linear=False) + t["b_dec"].double()) / s

    def example(self, folder: Path, seed: int) -> MatryoshkaOptions:
        """A tiny one with d_in 12 and d_sae 40."""
        import torch

        folder.mkdir(parents=True, exist_ok=True)
        state = random_state(seed, {"W_enc": (12, 40), "b_enc": (40,), "W_dec": (40, 12), "b_dec": (12,)})
        torch.save(state | {AVERAGE: torch.tensor(5.0)}, folder / "matryoshka.pt")
        return MatryoshkaOptions()


FORMAT = Matryoshka()


def _norms(W_dec: LazyTensor) -> torch.Tensor:
    """L2 norm of each feature's decoder row. ``[d_sae]``, float64."""
    import torch

    rows, columns = W_dec.shape
    return torch.cat([W_dec.rows(start, stop).double().norm(dim=1) for start, stop in spans(rows, columns * 8)])

"""ApolloResearch/e2e_sae: ``samples_*.pt``, one state dict with the SAEs of one or more sites under ``saes.SITE.``.

Authors' forward pass (commit 83b4add, e2e_sae/models/sparsifiers.py): ``f = relu(encoder(x))``, output ``decoder(f)``, where the
decoder's columns are divided by their norms at run time: what is stored is not what is used. Nothing is subtracted from the
input.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saesync.errors import Refused
from saesync.formats import _dense
from saesync.formats._authors import encode, load, random_state
from saesync.formats._dense import LINEAR, Layout, Size
from saesync.formats._lazy import Mapped, spans
from saesync.formats._open import TORCH, beside, only, open_tensors
from saesync.formats.base import Candidate, Headers, LazyTensor, SourceFiles, TensorInfo, Weights

if TYPE_CHECKING:
    import torch

_ENCODER = re.compile(r"saes\.([^.]+)\.encoder\.0\.weight")
_SITE = re.compile(r"blocks-(\d+)-(hook_\w+)", re.ASCII)
_LAYOUT = Layout(
    {"W_enc": "encoder.0.weight", "b_enc": "encoder.0.bias", "W_dec": "decoder.weight", "b_dec": "decoder.bias"}, LINEAR
)
_EPS = 1e-12  # torch.nn.functional.normalize's


@dataclass(frozen=True, slots=True)
class E2eSaeOptions:
    """Which of a file's SAEs is meant."""

    site: str | None = field(
        default=None, metadata={"help": "Site as the file names it, such as blocks-6-hook_resid_pre; needed when it has several."}
    )


class E2eSae:
    """See the module's docstring."""

    name = "e2e_sae"
    version = 1
    summary = "ApolloResearch/e2e_sae: samples_*.pt with saes.SITE.encoder.0 and decoder"
    Options: type[Any] = E2eSaeOptions
    variants = ("one", "two")

    def files(self, names: Sequence[str], path: str) -> Mapping[str, str]:
        """The file ``path``, or the only .pt file in folder ``path``."""
        return beside(names, only(names, path, lambda name: name.endswith(TORCH), "An e2e_sae checkpoint is one .pt file"))

    def sniff(self, headers: Headers) -> Candidate | None:
        """Certain by its names; with several sites, one must be declared."""
        for file, tensors in headers.tensors.items():
            sites = _sites(tensors)
            if not sites:
                continue
            if (refused := _dense.more_than_tensors(self.name, headers, file)) is not None:
                return refused
            try:
                size = _measure(file, tensors, sites[0])
            except Refused as refusal:
                return Candidate(self.name, 0.9, refusal=_dense.reason(refusal))
            facts = {"architecture": "standard", **size.facts, "sites": ", ".join(sites)}
            if len(sites) > 1:
                return Candidate(self.name, 1.0, facts, needs=("site",))
            return Candidate(self.name, 1.0, facts | _hook(sites[0]))
        return None

    def read(self, files: SourceFiles, options: E2eSaeOptions) -> Weights:
        """See ``Format.read``."""
        ((file, path),) = files.paths.items()
        opened = open_tensors(path, file)
        site = _site(file, _sites(_dense.no_others(file, opened)), options.site)
        size = _measure(file, opened.infos, site)
        own: dict[str, LazyTensor] = {name: opened.tensors[f"saes.{site}.{name}"] for name in _LAYOUT.names.values()}
        tensors = _dense.pick(own, _LAYOUT)
        tensors["W_dec"] = Mapped(tensors["W_dec"], lambda block, *_: block / block.norm(dim=1, keepdim=True).clamp(min=_EPS))
        hook = _hook(site).get("hook")
        return Weights(_dense.cfg("standard", size), tensors, {} if hook is None else {"hook_name": hook})

    def reference(self, files: SourceFiles, options: E2eSaeOptions, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See ``Format.reference``."""
        import torch

        ((file, path),) = files.paths.items()
        t = load(path)
        prefix = f"saes.{_site(file, _sites(t), options.site)}."
        pre = encode(x.double(), t[f"{prefix}encoder.0.weight"], linear=True)
        features = (pre + t[f"{prefix}encoder.0.bias"].double()).relu()
        output = t[f"{prefix}decoder.bias"].double().repeat(len(x), 1)
        decoder = t[f"{prefix}decoder.weight"]
        for start, stop in spans(decoder.shape[1], 8 * decoder.shape[0]):
            columns = torch.nn.functional.normalize(decoder[:, start:stop].double(), dim=0)
            output += features[:, start:stop] @ columns.T
        return features, output

    def example(self, folder: Path, seed: int, variant: str = "one") -> E2eSaeOptions:
        """A tiny checkpoint of one or two sites."""
        import torch

        shapes = {"encoder.0.weight": (40, 12), "encoder.0.bias": (40,), "decoder.weight": (12, 40), "decoder.bias": (12,)}
        sites = ("blocks-6-hook_resid_pre", "blocks-2-hook_resid_pre")[: 1 if variant == "one" else 2]
        state: dict[str, torch.Tensor] = {}
        for number, site in enumerate(sites):
            state |= {f"saes.{site}.{name}": value for name, value in random_state(seed + number, shapes).items()}
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(state, folder / "samples_400000.pt")
        return E2eSaeOptions(None if variant == "one" else sites[1])


FORMAT = E2eSae()


def _sites(found: Mapping[str, Any]) -> list[str]:
    return sorted(match[1] for name in found if (match := _ENCODER.fullmatch(name)))


def _site(file: str, sites: Sequence[str], declared: str | None) -> str:
    if declared is None and len(sites) == 1:
        return sites[0]
    if declared not in sites:
        shown = ", ".join(sites)[:500] or "none"
        raise Refused("Needs a declared site", f"{file} holds SAEs at {shown}. Declare one of them as `site` beside format.")
    return str(declared)


def _measure(file: str, found: Mapping[str, TensorInfo], site: str) -> Size:
    """Dimensions of one site. Other sites may be there, and nothing else.

    Raises:
        Refused: missing or unknown tensors, wrong shapes.
    """
    if other := sorted(name for name in found if not name.startswith("saes.")):
        raise Refused("Unknown tensor", f"{file} holds {other[0][:100]!r}, which belongs to no site. Is the format right?")
    prefix = f"saes.{site}."
    own = {name.removeprefix(prefix): info for name, info in found.items() if name.startswith(prefix)}
    return _dense.measure(file, own, _LAYOUT)


def _hook(site: str) -> dict[str, str]:
    match = _SITE.fullmatch(site)
    return {} if match is None else {"hook": f"blocks.{int(match[1])}.{match[2]}"}

"""Qwen-Scope (Qwen, 2026): TopK SAEs of the residual stream, one ``layer{n}.sae.pt`` per layer, a dict of four tensors.

Authors' forward pass (the model cards; SAELens 6.54's qwen_scope loader reads them the same way): ``pre = W_enc x + b_enc`` with
``W_enc [d_sae, d_in]``, of which the k largest are kept, output ``W_dec f + b_dec`` with ``W_dec [d_in, d_sae]``. Nothing is
subtracted from the input. Both matrices are therefore transposed. The cards name no activation after TopK and say that exactly k
are not zero; what is kept is taken as relu, as that loader does, which changes nothing while at least k pre-activations are
positive: real activations, where there are any, must show that.

k, width and model are in the repo's name alone (``Qwen/SAE-Res-Qwen3-8B-Base-W64K-L0_50``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saesync.errors import Refused
from saesync.formats._checks import require_only, widest
from saesync.formats._layout import LINEAR, Layout, cfg, look, require_k
from saesync.formats._open import TORCH, beside, choose, open_tensors
from saesync.formats.base import Candidate, Headers, SourceFiles, Weights

if TYPE_CHECKING:
    import torch

LAYOUT = Layout({name: name for name in ("W_enc", "W_dec", "b_enc", "b_dec")}, LINEAR)
_NAME = re.compile(r"layer(\d+)\.sae\.pt", re.ASCII)
_REPO = re.compile(r"SAE-Res-(?P<model>[A-Za-z0-9.-]+?)-W(?P<width>\d+)K-L0_(?P<k>\d+)(?:/|$)", re.ASCII)


@dataclass(frozen=True, slots=True)
class QwenScopeOptions:
    """What the file does not say."""

    k: int = field(metadata={"help": "Active features per token: the number after L0_ in the repo's name."})


class QwenScope:
    """See the module's docstring."""

    name = "qwen_scope"
    version = 1
    summary = "Qwen-Scope: TopK SAEs, one layer{n}.sae.pt per layer"
    Options: type[Any] = QwenScopeOptions
    conversion_func = "qwen_scope"

    def files(self, names: Sequence[str], path: str) -> Mapping[str, str]:
        """The file ``path``, or the only layer{n}.sae.pt directly in folder ``path``."""
        folder = f"{path.rstrip('/')}/" if path else ""
        main = [name[len(folder) :] for name in names if name.startswith(folder) and _NAME.fullmatch(name[len(folder) :])]
        return beside(names, choose(names, path, main or ("layer{n}.sae.pt",), TORCH, "A Qwen-Scope SAE"))

    def sniff(self, headers: Headers) -> Candidate | None:
        """Certain by the authors' file name; without it, these tensors in this orientation are only a hint."""
        seen = look(headers, LAYOUT.names.values(), TORCH)
        if seen is None or not LAYOUT.fits(seen.tensors):
            return None
        named = _NAME.fullmatch(seen.file)
        if seen.unsafe is not None:
            return Candidate(self.name, 0.9, refusal=seen.unsafe) if named else None
        try:
            d_in, d_sae = LAYOUT.dimensions(seen.file, seen.tensors)
        except Refused as refusal:  # not this orientation: then only the file's name speaks for it
            return Candidate(self.name, 0.9, refusal=refusal.diagnostics[0].detail) if named else None
        facts = {"architecture": "topk", "d_in": d_in, "d_sae": d_sae, "dtype": widest(seen.tensors)}
        if named:
            facts["hook"] = f"blocks.{int(named[1])}.hook_resid_post"
        repo = _REPO.search(headers.place)
        if repo is None or int(repo["width"]) * 1024 != d_sae:
            return Candidate(self.name, 1.0 if named else 0.3, facts, needs=("k",))
        return Candidate(self.name, 1.0 if named else 0.6, facts | {"model": f"Qwen/{repo['model']}"}, {"k": int(repo["k"])})

    def read(self, files: SourceFiles, options: QwenScopeOptions) -> Weights:
        """See ``Format.read``."""
        ((name, path),) = files.paths.items()
        opened = open_tensors(path, name)
        require_only(name, opened.others)
        d_in, d_sae = LAYOUT.dimensions(name, opened.infos)
        k = require_k(options.k, d_sae, "k")
        fields = cfg("topk", d_in, d_sae, k=k, rescale_acts_by_decoder_norm=False)
        return Weights(fields, LAYOUT.tensors(opened, d_in, d_sae), positive_k=k, signed=False)

    def reference(self, files: SourceFiles, options: QwenScopeOptions, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See ``Format.reference``."""
        from saesync.formats._authors import decode, encode, load, top_k

        ((_, path),) = files.paths.items()
        t = load(path)
        pre = encode(x.double(), t["W_enc"], linear=True) + t["b_enc"].double()
        features = top_k(pre, options.k).relu()
        return features, decode(features, t["W_dec"], t["b_dec"], linear=True)

    def example(self, folder: Path, seed: int) -> QwenScopeOptions:
        """A tiny ``layer3.sae.pt`` with d_in 12 and d_sae 40."""
        import torch

        generator = torch.Generator().manual_seed(seed)
        shapes = {"W_enc": (40, 12), "W_dec": (12, 40), "b_enc": (40,), "b_dec": (12,)}
        folder.mkdir(parents=True, exist_ok=True)
        torch.save({name: torch.randn(s, generator=generator) / 4 for name, s in shapes.items()}, folder / "layer3.sae.pt")
        return QwenScopeOptions(k=5)


FORMAT = QwenScope()

"""SAEs of DeepSeek-R1-Distill (qresearch, 2025): one ``.pt`` with a Linear encoder and a Linear decoder.

Authors' forward pass (as SAELens 6.54's deepseek_r1 loader reads the file): ``f = relu(encoder(x))``, output ``decoder(f)`` with
the decoder's own bias; nothing is subtracted from the input and nothing is normalised. Linear stores its matrix as ``[out, in]``,
so both are transposed.

At least five incompatible formats have these four tensor names (AutoEncoderNew of dictionary_learning, the same function; Llama
Scope, JumpReLU with its threshold in a json; e2e_sae, whose decoder is normalised at run time ...). Only the authors' file name
speaks for this one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saesync.errors import Refused
from saesync.formats._checks import require_only, widest
from saesync.formats._layout import LINEARS, cfg, look
from saesync.formats._open import TORCH, beside, choose, open_tensors
from saesync.formats.base import Candidate, Headers, SourceFiles, Weights

if TYPE_CHECKING:
    import torch

_NAME = re.compile(r"(?P<model>DeepSeek-R1-Distill-[\w.-]+?)-SAE-l(?P<layer>\d+)\.pt", re.ASCII)


@dataclass(frozen=True, slots=True)
class DeepseekR1Options:
    """The file says everything."""


class DeepseekR1:
    """See the module's docstring."""

    name = "deepseek_r1"
    version = 1
    summary = "DeepSeek-R1-Distill SAEs (qresearch): ReLU, encoder and decoder in one .pt"
    Options: type[Any] = DeepseekR1Options
    conversion_func = "deepseek_r1"

    def files(self, names: Sequence[str], path: str) -> Mapping[str, str]:
        """The file ``path``, or the only DeepSeek-R1-Distill-...-SAE-l{n}.pt directly in folder ``path``."""
        folder = f"{path.rstrip('/')}/" if path else ""
        main = [name[len(folder) :] for name in names if name.startswith(folder) and _NAME.fullmatch(name[len(folder) :])]
        file = choose(names, path, main or ("DeepSeek-R1-Distill-{model}-SAE-l{n}.pt",), TORCH, "A DeepSeek-R1 SAE")
        return beside(names, file)

    def sniff(self, headers: Headers) -> Candidate | None:
        """Sure by the authors' file name only."""
        seen = look(headers, LINEARS.names.values(), TORCH)
        named = None if seen is None else _NAME.fullmatch(seen.file)
        if seen is None or named is None or not LINEARS.fits(seen.tensors):
            return None
        if seen.unsafe is not None:
            return Candidate(self.name, 0.9, refusal=seen.unsafe)
        try:
            d_in, d_sae = LINEARS.dimensions(seen.file, seen.tensors)
        except Refused as refusal:
            return Candidate(self.name, 0.9, refusal=refusal.diagnostics[0].detail)
        facts = {"architecture": "standard", "d_in": d_in, "d_sae": d_sae, "dtype": widest(seen.tensors)}
        facts |= {"model": f"deepseek-ai/{named['model']}", "hook": f"blocks.{int(named['layer'])}.hook_resid_post"}
        return Candidate(self.name, 0.95, facts)

    def read(self, files: SourceFiles, options: DeepseekR1Options) -> Weights:
        """See ``Format.read``."""
        ((name, path),) = files.paths.items()
        opened = open_tensors(path, name)
        require_only(name, opened.others)
        d_in, d_sae = LINEARS.dimensions(name, opened.infos)
        return Weights(cfg("standard", d_in, d_sae), LINEARS.tensors(opened, d_in, d_sae))

    def reference(self, files: SourceFiles, options: DeepseekR1Options, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See ``Format.reference``."""
        from saesync.formats._authors import decode, encode, load

        ((_, path),) = files.paths.items()
        t = load(path)
        features = (encode(x.double(), t["encoder.weight"], linear=True) + t["encoder.bias"].double()).relu()
        return features, decode(features, t["decoder.weight"], t["decoder.bias"], linear=True)

    def example(self, folder: Path, seed: int) -> DeepseekR1Options:
        """A tiny checkpoint with d_in 12 and d_sae 40."""
        import torch

        generator = torch.Generator().manual_seed(seed)
        shapes = {"encoder.weight": (40, 12), "encoder.bias": (40,), "decoder.weight": (12, 40), "decoder.bias": (12,)}
        folder.mkdir(parents=True, exist_ok=True)
        state = {name: torch.randn(shape, generator=generator) / 4 for name, shape in shapes.items()}
        torch.save(state, folder / "DeepSeek-R1-Distill-Tiny-1B-SAE-l1.pt")
        return DeepseekR1Options()


FORMAT = DeepseekR1()

"""SAEs of mats_sae_training, which became SAELens: ``final_sparse_autoencoder_*.pt`` or ``.pkl.gz``, a pickle of ``state_dict``
and a config object.

Authors' forward pass (mats_sae_training, sparse_autoencoder.py): ``f = relu((x - b_dec) W_enc + b_enc)``, output ``f W_dec +
b_dec``. Heads at a ``hook_z`` were joined when no one head was chosen. A ``scaling_factor`` of all ones does nothing.

The config is pickled as an object of a class, so loading the file runs code: see ``trust``. Configs that ask for another
function than this one are refused by the field that says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from saesync.errors import Refused
from saesync.formats import _dense, _trusted
from saesync.formats._authors import decode, encode, random_state
from saesync.formats._dense import PLAIN, Layout
from saesync.formats._lazy import whole
from saesync.formats.base import Candidate, Headers, SourceFiles, Weights

if TYPE_CHECKING:
    import torch

_SCALE = "scaling_factor"
_LAYOUT = Layout(PLAIN)
_SCALED = Layout(PLAIN, extra={_SCALE: "d_sae"})


@dataclass(frozen=True, slots=True)
class SaelensPickleOptions:
    """Whether the pickle may be read at all."""

    trust: Literal["pickle"] | None = field(default=None, metadata={"help": _trusted.TRUST_HELP})


class SaelensPickle:
    """See the module's docstring."""

    name = "saelens_pickle"
    version = 1
    summary = "mats_sae_training, SAELens's first form: a pickle with a config object, read only with `trust: pickle`"
    Options: type[Any] = SaelensPickleOptions
    variants = ("zip", "gzip", "heads")

    def files(self, names: Sequence[str], path: str) -> Mapping[str, str]:
        """The file ``path``, or the only final_sparse_autoencoder file in folder ``path``."""
        return _trusted.one_file(names, path)

    def sniff(self, headers: Headers) -> Candidate | None:
        """Likely by the tensors in ``state_dict``; an unsafe pickle needs trust."""
        if _trusted.compressed(headers) is not None:
            return Candidate(self.name, 0.5, {"architecture": "standard"}, needs=("trust",))
        found = _trusted.recognised(headers, set(PLAIN))
        if found is None or "b_dec_out" in found.tensors:
            return None
        try:
            size = _dense.measure(found.file, found.tensors, _layout(found.tensors))
        except Refused as refusal:
            return Candidate(self.name, 0.9 * found.score, refusal=_dense.reason(refusal))
        facts = {"architecture": "standard", **size.facts}
        return Candidate(self.name, found.score, facts, needs=("trust",), refusal=found.refusal)

    def read(self, files: SourceFiles, options: SaelensPickleOptions) -> Weights:
        """See ``Format.read``."""
        (name,) = files.paths
        found = _trusted.open_trusted(files, options.trust)
        size = _dense.measure(name, found.infos, _layout(found.infos))
        _trusted.require_width(found, name, size.d_in)
        if _SCALE in found.tensors and not bool((whole(found.tensors[_SCALE]) == 1).all()):
            raise Refused("Unexplained scaling factor", f"{name} holds a scaling_factor that is not all ones.")
        hook, head = _trusted.text(found.cfg, "hook_point"), found.cfg.get("hook_point_head_index")
        named = {"hook_name": "hook_point", "model_name": "model_name", "dataset_path": "dataset_path"}
        metadata: dict[str, Any] = {key: said for key, field_ in named.items() if (said := _trusted.text(found.cfg, field_))}
        metadata |= {"hook_head_index": head} if type(head) is int else {}
        heads = hook is not None and hook.endswith("hook_z") and head is None
        cfg = _dense.cfg("standard", size, subtracts=True, heads=heads)
        tensors = _dense.pick(found.tensors, _LAYOUT)
        return Weights(cfg, tensors, metadata | {"rewritten": dict(found.provenance)})

    def reference(self, files: SourceFiles, options: SaelensPickleOptions, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See ``Format.reference``."""
        t = _trusted.reference_state(files)
        b_dec = t["b_dec"].double()
        features = (encode(x.double() - b_dec, t["W_enc"], linear=False) + t["b_enc"].double()).relu()
        return features, decode(features, t["W_dec"], linear=False) + b_dec

    def example(self, folder: Path, seed: int, variant: str = "zip") -> SaelensPickleOptions:
        """A tiny SAE with a config object of a class that nobody has; "heads" reads a hook_z."""
        from saesync.formats._pickled_example import write

        shapes = {"W_enc": (12, 40), "b_enc": (40,), "W_dec": (40, 12), "b_dec": (12,)}
        hook = "blocks.3.attn.hook_z" if variant == "heads" else "blocks.3.hook_resid_pre"
        cfg = {"hook_point": hook, "hook_point_head_index": None, "model_name": "gpt2-small", "d_in": 12}
        state = random_state(seed, shapes)
        write(folder, f"{_trusted.START}gpt2-small_{hook}_40", "sae_training.config", state, cfg, variant)
        return SaelensPickleOptions("pickle")


FORMAT = SaelensPickle()


def _layout(found: Mapping[str, Any]) -> Layout:
    return _SCALED if _SCALE in found else _LAYOUT

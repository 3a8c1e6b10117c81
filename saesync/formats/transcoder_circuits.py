"""transcoder_circuits (jacobdunefsky): ``final_sparse_autoencoder_*.pt`` or ``.pkl.gz``, a pickle of ``state_dict`` and a config
object.

Authors' forward pass (commit 8721ff0, transcoder_training/sparse_autoencoder.py, is_transcoder): ``f = relu((x - b_dec) W_enc +
b_enc)``, output ``f W_dec + b_dec_out``. SAELens's transcoders subtract nothing from their input, so ``b_dec`` is folded into
the encoder's bias: ``b_enc - b_dec W_enc``.

The config is pickled as an object of a class, so loading the file runs code: see ``trust``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from saesync.errors import Refused
from saesync.formats import _dense, _trusted
from saesync.formats._authors import decode, encode, random_state
from saesync.formats._dense import Layout
from saesync.formats._lazy import Mapped, spans, whole
from saesync.formats.base import Candidate, Headers, LazyTensor, SourceFiles, Weights

if TYPE_CHECKING:
    import torch

_LAYOUT = Layout({"W_enc": "W_enc", "b_enc": "b_enc", "W_dec": "W_dec", "b_dec": "b_dec_out"}, extra={"b_dec": "d_in"})


@dataclass(frozen=True, slots=True)
class TranscoderCircuitsOptions:
    """Whether the pickle may be read at all."""

    trust: Literal["pickle"] | None = field(default=None, metadata={"help": _trusted.TRUST_HELP})


class TranscoderCircuits:
    """See the module's docstring."""

    name = "transcoder_circuits"
    version = 1
    summary = "transcoder_circuits: pickled transcoders with b_dec_out, read only with `trust: pickle`"
    Options: type[Any] = TranscoderCircuitsOptions
    variants = ("zip", "gzip")

    def files(self, names: Sequence[str], path: str) -> Mapping[str, str]:
        """The file ``path``, or the only final_sparse_autoencoder file in folder ``path``."""
        return _trusted.one_file(names, path)

    def sniff(self, headers: Headers) -> Candidate | None:
        """Certain by ``b_dec_out`` and a config object; an unsafe pickle needs trust."""
        if (packed := _trusted.compressed(headers)) is not None:  # the authors' names say which hook they read
            return Candidate(
                self.name, 0.6 if "hook_normalized" in packed else 0.4, {"architecture": "transcoder"}, needs=("trust",)
            )
        found = _trusted.recognised(headers, {"W_enc", "W_dec", "b_dec_out"})
        if found is None:
            return None
        try:
            size = _dense.measure(found.file, found.tensors, _LAYOUT, transcoder=True)
        except Refused as refusal:
            return Candidate(self.name, found.score, refusal=_dense.reason(refusal))
        facts = {"architecture": "transcoder", **size.facts}
        return Candidate(self.name, found.score, facts, needs=("trust",), refusal=found.refusal)

    def read(self, files: SourceFiles, options: TranscoderCircuitsOptions) -> Weights:
        """See ``Format.read``."""
        (name,) = files.paths
        found = _trusted.open_trusted(files, options.trust, transcoder=True)
        size = _dense.measure(name, found.infos, _LAYOUT, transcoder=True)
        _trusted.require_width(found, name, size.d_in)
        tensors = _dense.pick(found.tensors, _LAYOUT)
        shift = _through(found.tensors["b_dec"], found.tensors["W_enc"])
        tensors["b_enc"] = Mapped(tensors["b_enc"], lambda block, start, stop: block - shift[start:stop])
        named = {"hook_name": "hook_point", "hook_name_out": "out_hook_point", "model_name": "model_name"}
        metadata: dict[str, Any] = {key: said for key, field_ in named.items() if (said := _trusted.text(found.cfg, field_))}
        return Weights(_dense.cfg("transcoder", size), tensors, metadata | {"rewritten": dict(found.provenance)})

    def reference(
        self, files: SourceFiles, options: TranscoderCircuitsOptions, x: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See ``Format.reference``."""
        t = _trusted.reference_state(files)
        features = (encode(x.double() - t["b_dec"].double(), t["W_enc"], linear=False) + t["b_enc"].double()).relu()
        return features, decode(features, t["W_dec"], linear=False) + t["b_dec_out"].double()

    def example(self, folder: Path, seed: int, variant: str = "zip") -> TranscoderCircuitsOptions:
        """A tiny transcoder from 12 to 9, with a config object of a class that nobody has."""
        from saesync.formats._pickled_example import write

        shapes = {"W_enc": (12, 40), "b_enc": (40,), "W_dec": (40, 9), "b_dec": (12,), "b_dec_out": (9,)}
        cfg = {"hook_point": "blocks.3.ln2.hook_normalized", "out_hook_point": "blocks.3.hook_mlp_out", "d_in": 12}
        cfg |= {"model_name": "gpt2-small", "is_transcoder": True}
        name = f"{_trusted.START}gpt2-small_blocks.3.ln2.hook_normalized_40"
        write(folder, name, "transcoder_training.config", random_state(seed, shapes), cfg, variant)
        return TranscoderCircuitsOptions("pickle")


FORMAT = TranscoderCircuits()


def _through(b_dec: LazyTensor, W_enc: LazyTensor) -> torch.Tensor:
    """``b_dec W_enc``, block by block of rows. ``[d_sae]``, float64."""
    import torch

    bias = whole(b_dec).double()
    found = torch.zeros(W_enc.shape[1], dtype=torch.float64)
    for start, stop in spans(W_enc.shape[0], 8 * W_enc.shape[1]):
        found += bias[start:stop] @ W_enc.rows(start, stop).double()
    return found

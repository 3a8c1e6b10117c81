"""miStudio (hitsainet/miStudio), its own ``checkpoint.safetensors``: weights under ``model.``, Adam's state under ``optimizer.``.

The four classes of its ``sparse_autoencoder.py`` (commit cc5eed0), with ``c = sqrt(d) / max(|x|, 1e-6)`` or 1:

- ``SparseAutoencoder``: ``f = relu(encoder(c x))``, then maybe the k largest; output ``(decoder(f) + decoder_bias) / c``. decoder
  has a bias of its own: there are two, and both count. Tied, it has no decoder and uses the encoder's matrix.
- ``SkipAutoencoder``: the same with ``skip_scale c x`` added before the division.
- ``Transcoder``: ``f = relu(encoder(x))``, output ``decoder(f)``; nothing is normalised.
- ``JumpReLUSAE``: ``f = z (z > exp(log_threshold))`` with ``z = (c x) W_encᵀ + b_enc``; output ``(f W_decᵀ + b_dec) / c``.

The class stands in the file's ``__metadata__``. Nowhere stand the normalisation, ``skip_scale`` and k, which the training
hyperparameters give as a percentage: ``k = max(1, int(top_k_sparsity / 100 * d_sae))``. They must be declared. Nor does the
checkpoint say its hook: hook_type "residual" is the *normalised input of the MLP* (``blocks.L.mlp.hook_in`` of
TransformerBridge), not ``hook_resid_post`` as miStudio's exporters write; "mlp" is the MLP's output, "attention" attention's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from saesync.errors import Inexpressible, Refused
from saesync.formats import _dense, _safetensors
from saesync.formats._bytes import LocalBytes
from saesync.formats._dense import LINEAR, Layout, Size
from saesync.formats._lazy import Mapped, whole
from saesync.formats._open import choose, open_tensors
from saesync.formats.base import Candidate, Headers, LazyTensor, SourceFiles, TensorInfo, Weights

if TYPE_CHECKING:
    import torch

CHECKPOINT = "checkpoint.safetensors"
# miStudio's ZIP for Neuronpedia holds the checkpoint, unconverted, under the name of SAELens's weights.
MISNAMED = "sae_weights.safetensors"
KINDS: Mapping[str, str] = {
    "SparseAutoencoder": "standard",
    "SkipAutoencoder": "skip",
    "Transcoder": "transcoder",
    "JumpReLUSAE": "jumprelu",
}
RESCALE: Literal["constant_norm_rescale"] = "constant_norm_rescale"
_MODEL, _OPTIMIZER = "model.", "optimizer."
_TWO = Layout(
    {"W_enc": "encoder.weight", "b_enc": "encoder.bias", "W_dec": "decoder.weight", "b_dec": "decoder.bias"},
    LINEAR,
    {"decoder_bias": "d_out"},
)
_TIED = Layout(
    {"W_enc": "encoder.weight", "b_enc": "encoder.bias", "W_dec": "encoder.weight", "b_dec": "decoder_bias"},
    frozenset(("W_enc",)),
)
_JUMP = Layout({**{name: name for name in ("W_enc", "W_dec", "b_enc", "b_dec")}, "threshold": "activation.log_threshold"}, LINEAR)
_NEEDS: Mapping[str, tuple[str, ...]] = {
    "standard": ("k", "normalize_activations"),
    "skip": ("k", "normalize_activations", "skip_scale"),
    "transcoder": ("k",),
    "jumprelu": ("normalize_activations",),
}


@dataclass(frozen=True, slots=True)
class MiStudioOptions:
    """What a checkpoint does not say, and the training's hyperparameters do."""

    k: int | None = field(
        default=None,
        metadata={
            "help": "Active features per token: max(1, int(top_k_sparsity / 100 * d_sae)) of the training's hyperparameters, or "
            "0 if it had no top_k_sparsity. Needed, except for jumprelu.",
            "only_for": ("kind", ("standard", "skip", "transcoder")),
        },
    )
    normalize_activations: Literal["constant_norm_rescale", "none"] | None = field(
        default=None,
        metadata={
            "help": "How the training normalised activations (miStudio's default is constant_norm_rescale). Needed, except for a "
            "transcoder.",
            "only_for": ("kind", ("standard", "skip", "jumprelu")),
        },
    )
    skip_scale: float | None = field(
        default=None,
        metadata={
            "help": "The factor of a skip autoencoder's skip connection (miStudio's default is 1.0).",
            "only_for": ("kind", ("skip",)),
        },
    )
    kind: Literal["standard", "skip", "transcoder", "jumprelu"] | None = field(
        default=None, metadata={"help": "The class that was trained; needed when the checkpoint's header does not name it."}
    )


class MiStudio:
    """See the module's docstring."""

    name = "mistudio"
    version = 1
    summary = "miStudio checkpoints (checkpoint.safetensors): standard, tied, skip, transcoder and jumprelu"
    Options: type[Any] = MiStudioOptions
    variants = ("standard", "topk", "plain", "tied", "skip", "transcoder", "jumprelu")

    def files(self, names: Sequence[str], path: str) -> Mapping[str, str]:
        """The file ``path``, or the checkpoint in folder ``path``."""
        found = choose(names, path, (CHECKPOINT, MISNAMED), (".safetensors",), "A miStudio checkpoint")
        return {found.rsplit("/", 1)[-1]: found}

    def sniff(self, headers: Headers) -> Candidate | None:
        """Certain when the tensors under ``model.`` are those of the class that the header names."""
        for file, tensors in headers.tensors.items():
            if not file.endswith(".safetensors") or not _is_checkpoint(tensors):
                continue
            try:
                kind = _kind(headers.notes.get(file, {}), None, file)
                if kind is None:
                    return Candidate(self.name, 0.9, needs=("kind", *_NEEDS["skip"]))
                size = _measure(file, kind, _own(file, tensors))
            except Refused as refusal:
                return Candidate(self.name, 0.9, refusal=_dense.reason(refusal))
            return Candidate(self.name, 1.0, {"architecture": kind, **size.facts}, needs=_NEEDS[kind])
        return None

    def read(self, files: SourceFiles, options: MiStudioOptions) -> Weights:
        """See ``Format.read``."""
        ((file, path),) = files.paths.items()
        kind = _required_kind(file, path, options)
        opened = open_tensors(path, file)
        infos = _own(file, opened.infos)
        size = _measure(file, kind, infos)
        norm, k = _norm(kind, options), _k(kind, options, size)
        own: dict[str, LazyTensor] = {name: opened.tensors[_MODEL + name] for name in infos}
        tensors = _dense.pick(own, _layout(kind, infos))
        if kind != "transcoder" and "decoder.bias" in own:
            second = whole(own["decoder_bias"]).double()
            tensors["b_dec"] = Mapped(own["decoder.bias"], lambda block, start, stop: block + second[start:stop])
        if kind == "jumprelu":
            tensors["threshold"] = Mapped(tensors["threshold"], lambda block, *_: block.exp())
        if kind == "skip":
            tensors["W_skip"] = Diagonal(_skip_scale(options), size.d_in)
        architecture = {"skip": "skip_transcoder", "standard": "topk" if k else "standard"}.get(kind, kind)
        return Weights(_dense.cfg(architecture, size, norm=norm, k=k), tensors)

    def reference(self, files: SourceFiles, options: MiStudioOptions, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See ``Format.reference``."""
        from saesync.formats._mistudio_reference import forward

        ((file, path),) = files.paths.items()
        return forward(_required_kind(file, path, options), path, options, x.double())

    def example(self, folder: Path, seed: int, variant: str = "topk") -> MiStudioOptions:
        """A tiny checkpoint with optimizer state, as training leaves it."""
        from saesync.formats._mistudio_reference import write_example

        write_example(folder, seed, variant)
        rescaled = {"standard": 0, "topk": 14, "tied": 0}
        if variant in rescaled:
            return MiStudioOptions(rescaled[variant], RESCALE)
        rest = {
            "plain": MiStudioOptions(5, "none"),
            "skip": MiStudioOptions(0, "none", 0.75),
            "transcoder": MiStudioOptions(0),
        }
        return rest.get(variant, MiStudioOptions(None, RESCALE))


FORMAT = MiStudio()


@dataclass(frozen=True, slots=True)
class Diagonal:
    """A square matrix with one value on its diagonal, float64."""

    value: float
    size: int
    dtype: str = "float64"

    @property
    def shape(self) -> tuple[int, ...]:
        """Square."""
        return (self.size, self.size)

    def rows(self, start: int, stop: int) -> torch.Tensor:
        """Rows ``start:stop``."""
        import torch

        return torch.diag(torch.full((self.size,), self.value, dtype=torch.float64))[start:stop]


def _is_checkpoint(tensors: Mapping[str, Any]) -> bool:
    encoders = {f"{_MODEL}encoder.weight", f"{_MODEL}W_enc"} & set(tensors)
    return bool(encoders) and all(name.startswith((_MODEL, _OPTIMIZER)) for name in tensors)


def _own(file: str, tensors: Mapping[str, TensorInfo]) -> dict[str, TensorInfo]:
    """The weights' headers without ``model.``. Adam's state is left out.

    Raises:
        Refused: something else is there.
    """
    if unknown := sorted(name for name in tensors if not name.startswith((_MODEL, _OPTIMIZER))):
        raise Refused("Unknown tensor", f"{file} holds {unknown[0][:100]!r}; a checkpoint has model.* and optimizer.* only.")
    return {name.removeprefix(_MODEL): info for name, info in tensors.items() if name.startswith(_MODEL)}


def _kind(notes: Mapping[str, str], declared: str | None, file: str) -> str | None:
    """The class, as the header or the manifest says; None if neither does.

    Raises:
        Refused: it is unknown, or they contradict each other.
    """
    said = notes.get("architecture")
    if said is not None and said not in KINDS:
        known = ", ".join(KINDS)
        raise Inexpressible.by("architecture", f"{file}: its class is {said[:50]!r}. Known: {known}.")
    named = None if said is None else KINDS[said]
    if declared is not None and declared not in KINDS.values():
        raise Refused("Unknown kind", f"kind must be one of {', '.join(KINDS.values())}, not {declared[:50]!r}.")
    if declared is not None and named not in (None, declared):
        raise Refused("Kinds contradict", f"kind is declared as {declared}, but {file} says {said}. Remove the option.")
    return named or declared


def _required_kind(file: str, path: Path, options: MiStudioOptions) -> str:
    kind = _kind(_safetensors.notes(LocalBytes(path), file), options.kind, file)
    if kind is None:
        detail = f"{file} does not name its class, and classes share tensors. Declare `kind` beside format."
        raise Refused("Needs a declared kind", detail)
    return kind


def _layout(kind: str, found: Mapping[str, Any]) -> Layout:
    if kind == "jumprelu":
        return _JUMP
    if kind == "transcoder":
        return Layout(_TWO.names, LINEAR)
    return _TWO if "decoder.weight" in found or "decoder.bias" in found else _TIED


def _measure(file: str, kind: str, found: Mapping[str, TensorInfo]) -> Size:
    return _dense.measure(file, found, _layout(kind, found), transcoder=kind == "transcoder")


def _norm(kind: str, options: MiStudioOptions) -> str:
    norm = options.normalize_activations
    if kind == "transcoder":
        if norm not in (None, "none"):
            detail = "normalize_activations is declared, but miStudio's Transcoder has none. Remove the option."
            raise Refused("Option does not fit", detail)
        return "none"
    if norm not in (RESCALE, "none"):
        found = "Nothing in the checkpoint says it" if norm is None else f"{norm[:50]!r} is unknown"
        detail = f"{found}: declare `normalize_activations` beside format, {RESCALE} (miStudio's default) or none."
        raise Refused("Needs a declared normalisation", detail)
    if kind == "skip" and norm != "none":
        raise Inexpressible.by(
            "normalize_activations",
            f"A SkipAutoencoder with {RESCALE} divides its output by the input's factor; SAELens's transcoders do not.",
        )
    return norm


def _k(kind: str, options: MiStudioOptions, size: Size) -> int:
    """k, or 0 where all positive features stay.

    Raises:
        Refused: it is needed and not declared, or SAELens has no such class.
    """
    if kind == "jumprelu":
        if options.k is not None:
            raise Refused("Option does not fit", "k is declared, but a JumpReLUSAE has none. Remove the option.")
        return 0
    if options.k is None:
        detail = (
            "Nothing in the checkpoint says k, and without it a TopK SAE would become a ReLU one. Declare `k` beside format: "
        )
        raise Refused("Missing k", detail + "max(1, int(top_k_sparsity / 100 * d_sae)), or 0 if there was no top_k_sparsity.")
    if options.k == 0:
        return 0
    k = _dense.checked_k(options.k, size.d_sae)
    if kind != "standard":
        raise Inexpressible.by("k", f"k is {k}, and SAELens has no TopK {kind}.")
    return k


def _skip_scale(options: MiStudioOptions) -> float:
    scale = options.skip_scale
    if scale is None or isinstance(scale, bool) or not abs(scale) < float("inf"):
        detail = "A SkipAutoencoder does not save skip_scale. Declare it beside format (miStudio's default is 1.0)."
        raise Refused("Needs a declared skip_scale", detail)
    return float(scale)


def is_export(cfg: Any) -> bool:
    """Whether a cfg.json was written by miStudio's exporters, which look like SAELens's own and do not hold the same function."""
    if not isinstance(cfg, Mapping):
        return False
    return "mistudio_training_id" in cfg or {"hook_point_layer", "extra_metadata", "expansion_factor"} <= set(cfg)

"""What a weight format is: one module with a ``FORMAT`` object of this shape. No torch at import time.

Orientation everywhere is SAELens's: ``W_enc [d_in, d_sae]``, ``W_dec [d_sae, d_out]``, ``b_enc [d_sae]``, ``b_dec [d_out]``,
``W_skip [d_out, d_in]``; ``d_out`` is ``d_in`` except in transcoders.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, runtime_checkable

from saesync.nothing import nothing

if TYPE_CHECKING:
    import torch

Json = Any
_Part = TypeVar("_Part")


@dataclass(frozen=True, slots=True)
class SourceFiles:
    """The files of one SAE on this disk, by their name relative to the source path ("cfg.json", "ae.pt")."""

    paths: Mapping[str, Path]


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """What a header says of one stored tensor. ``dtype`` is torch's name without the prefix ("float32")."""

    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True, slots=True)
class Headers:
    """What can be known of a source without reading weights: its file names, the JSON and YAML side files, tensor headers, the
    globals named in a pickle, the names of ``others`` beside its tensors and the plain ``values`` (numbers, strings) of these,
    and the notes (``__metadata__``) of safetensors files. Keys are file names relative to the source path.

    ``place`` is that path itself, with the repo's name before it: in some formats nothing else says model and layer. What it
    says is proposed to the user, never taken.
    """

    names: tuple[str, ...]
    json: Mapping[str, Json] = field(default_factory=nothing)
    tensors: Mapping[str, Mapping[str, TensorInfo]] = field(default_factory=nothing)
    globals: Mapping[str, tuple[str, ...]] = field(default_factory=nothing)
    place: str = ""
    values: Mapping[str, Mapping[str, Json]] = field(default_factory=nothing)
    notes: Mapping[str, Mapping[str, str]] = field(default_factory=nothing)
    others: Mapping[str, tuple[str, ...]] = field(default_factory=nothing)

    def of(self, names: Collection[str]) -> Headers:
        """What these say of the files ``names`` alone."""
        return Headers(
            tuple(name for name in self.names if name in names),
            _only(self.json, names),
            _only(self.tensors, names),
            _only(self.globals, names),
            self.place,
            _only(self.values, names),
            _only(self.notes, names),
            _only(self.others, names),
        )


def _only(parts: Mapping[str, _Part], names: Collection[str]) -> dict[str, _Part]:
    return {name: part for name, part in parts.items() if name in names}


@dataclass(frozen=True, slots=True)
class Candidate:
    """A format a source may have. ``needs`` names what a manifest must declare because the files do not say it.

    ``facts`` holds what the headers do say (architecture, d_in, d_sae, dtype, hook ...); ``refusal`` is set when the format is
    recognised but cannot be converted, and says why. ``score`` ranks candidates; 1.0 is certain.
    """

    format: str
    score: float
    facts: Mapping[str, Json] = field(default_factory=nothing)
    options: Mapping[str, Json] = field(default_factory=nothing)
    needs: tuple[str, ...] = ()
    refusal: str | None = None


@dataclass(frozen=True, slots=True)
class SetPart:
    """That a source is one layer of a set, which one, and of how many layers the set is, if the file says so.

    What the optional ``Format.part_of_set(headers)`` returns, or None."""

    layer: int
    layers: int | None = None


class LazyTensor(Protocol):
    """A tensor in target orientation that is read block by block from a memory-mapped file."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Target shape."""
        ...

    @property
    def dtype(self) -> str:
        """Stored dtype, torch's name without the prefix."""
        ...

    def rows(self, start: int, stop: int) -> torch.Tensor:
        """Rows ``start:stop`` of the first axis, as stored (no cast)."""
        ...


# What every ``Weights.cfg`` says: writers and the proof look these up.
CFG = ("architecture", "d_in", "d_sae", "apply_b_dec_to_input", "normalize_activations", "reshape_activations")

# How features of the converted SAE stand to the authors' own: equal, or each times its decoder row's norm, times the scale of
# the input, or both. Steering strengths, thresholds and dashboard values are in these units.
FEATURE_SCALES = ("raw", "decoder_norm", "input_scale", "decoder_norm*input_scale")

# SAELens architectures whose features depend on the tokens before: rows are then the tokens of a sequence, in order.
SEQUENTIAL = frozenset({"temporal"})


@dataclass(frozen=True, slots=True)
class Weights:
    """A source in canonical form. ``cfg`` holds SAELens v6 top-level fields (all of CFG, and the architecture's own: k ...)
    without dtype and device; ``metadata`` what the source itself says of model and data.

    ``feature_scale`` is one of FEATURE_SCALES; unless it is "raw", ``feature_factors [d_sae]`` are what the authors' features
    (those of ``Format.reference``) are multiplied by to give SAELens's.

    ``positive_k``: the authors' k largest may be negative, SAELens's never are. Both are the same function where at least that
    many pre-activations are positive; the proof then demands real activations and that they all are such. Without ``signed``
    nobody says that negative ones are kept: then real activations are looked at where there are any, and not demanded.
    """

    cfg: Mapping[str, Json]
    tensors: Mapping[str, LazyTensor]
    metadata: Mapping[str, Json] = field(default_factory=nothing)
    feature_scale: str = "raw"
    feature_factors: LazyTensor | None = None
    positive_k: int | None = None
    signed: bool = True


@runtime_checkable
class Format(Protocol):
    """One foreign weight format.

    ``version`` is bumped by hand when the converted bytes should change. ``Options`` is a frozen dataclass whose fields
    (with ``metadata={"help": ...}``) become manifest keys beside ``format:`` and rows in the docs.

    Two attributes are optional. ``variants``, a tuple of names (classes, layouts), says that ``example`` takes one of them as
    a third argument; the conformance suite then runs over each. ``conversion_func`` is the word of SAELens's registry for the
    loader that reads these files as they are.
    """

    name: str
    version: int
    summary: str
    Options: type[Any]

    def files(self, names: Sequence[str], path: str) -> Mapping[str, str]:
        """Which of a repo's or folder's file ``names`` make up the SAE at ``path`` ("" is the root; a file or a folder).

        Returns relative name -> name as listed. Pure; no I/O.

        Raises:
            Refused: the files the format needs are not in ``names``.
        """
        ...

    def sniff(self, headers: Headers) -> Candidate | None:
        """Whether these headers can be this format, and how surely."""
        ...

    def read(self, files: SourceFiles, options: Any) -> Weights:
        """Canonical form with lazy tensors.

        Raises:
            Refused: unknown or missing tensors, wrong shapes, or something SAELens cannot express; always by name.
        """
        ...

    def reference(self, files: SourceFiles, options: Any, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The authors' forward pass, plainly, in float64: ``x [n, d_in]`` -> (features ``[n, d_sae]``, output ``[n, d_out]``).

        Features are the authors' own; ``Weights.feature_scale`` says how SAELens's stand to them. Of an architecture in
        SEQUENTIAL, the rows are the tokens of one sequence.
        """
        ...

    def example(self, folder: Path, seed: int) -> Any:
        """Write a tiny random checkpoint into ``folder``; returns the ``Options`` to read it with."""
        ...

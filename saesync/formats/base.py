"""What a weight format is: one module with a ``FORMAT`` object of this shape. No torch at import time.

Orientation everywhere is SAELens's: ``W_enc [d_in, d_sae]``, ``W_dec [d_sae, d_in]``, ``b_enc [d_sae]``, ``b_dec [d_in]``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from saesync.model import nothing

if TYPE_CHECKING:
    import torch

Json = Any


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
    """What can be known of a source without reading weights: its file names, the JSON side files, tensor headers, and
    the globals named in a pickle. Keys are file names relative to the source path."""

    names: tuple[str, ...]
    json: Mapping[str, Json] = field(default_factory=nothing)
    tensors: Mapping[str, Mapping[str, TensorInfo]] = field(default_factory=nothing)
    globals: Mapping[str, tuple[str, ...]] = field(default_factory=nothing)


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


@dataclass(frozen=True, slots=True)
class Weights:
    """A source in canonical form. ``cfg`` holds SAELens v6 top-level fields (architecture, d_in, d_sae, apply_b_dec_to_input,
    normalize_activations, k ...) without dtype and device; ``metadata`` what the source itself says of model and data."""

    cfg: Mapping[str, Json]
    tensors: Mapping[str, LazyTensor]
    metadata: Mapping[str, Json] = field(default_factory=nothing)


@runtime_checkable
class Format(Protocol):
    """One foreign weight format.

    ``version`` is bumped by hand when the converted bytes should change. ``Options`` is a frozen dataclass whose fields
    (with ``metadata={"help": ...}``) become manifest keys beside ``format:`` and rows in the docs.
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
        """The authors' forward pass, plainly, in float64: ``x [n, d_in]`` -> (features ``[n, d_sae]``, output ``[n, d_out]``)."""
        ...

    def example(self, folder: Path, seed: int) -> Any:
        """Write a tiny random checkpoint into ``folder``; returns the ``Options`` to read it with."""
        ...

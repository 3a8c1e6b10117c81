"""What a writer is: one module with a ``WRITER`` object of this shape. No torch at import time.

A writer lays out the canonical form (``saesync.formats.base.Weights``, SAELens's own orientation) as another tool stores its
SAEs, and holds that tool's forward pass written out plainly, against which every written file is proved.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from saesync.errors import Refused
from saesync.formats.base import LazyTensor, Weights
from saesync.nothing import nothing

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Layout:
    """The files of one SAE in another tool's layout.

    ``tensors`` go into ``file``, a ``.safetensors`` file, or a ``.pt`` that ``torch.load`` reads with ``weights_only=True``;
    ``precise`` names those kept in float32 when the rest is narrower, ``numbers`` what a ``.pt`` holds beside them. ``header``
    is the safetensors ``__metadata__``; ``sides`` are JSON files by name.
    """

    file: str
    tensors: Mapping[str, LazyTensor]
    sides: Mapping[str, Any]
    header: Mapping[str, str] = field(default_factory=nothing)
    precise: frozenset[str] = frozenset()
    numbers: Mapping[str, int | float] = field(default_factory=nothing)


@runtime_checkable
class Writer(Protocol):
    """One foreign layout that can be written."""

    name: str
    summary: str

    def layout(self, weights: Weights) -> Layout:
        """``weights`` as this tool stores it; every difference of convention is folded into the numbers.

        Raises:
            Refused: the tool cannot express the function; the tensor or field that says so is named.
        """
        ...

    def reference(self, folder: Path, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The tool's own forward pass over the written files, plainly, in float64: ``x [n, d_in]`` ->
        (features ``[n, d_sae]``, output ``[n, d_out]``). It shares no code with ``layout``."""
        ...


def cannot(tool: str, what: str) -> Refused:
    """The refusal of a function that ``tool`` has no words for. ``what`` is a full sentence."""
    return Refused(f"Cannot be expressed in {tool}", what)

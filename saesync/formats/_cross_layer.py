"""What formats of cross-layer transcoders share: decoders ``[d_sae, layers, d_out]``, of which one layer is the sum."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from saesync.formats._authors import parts
from saesync.formats.base import LazyTensor

if TYPE_CHECKING:
    import torch

# In cfg.json's metadata: features are the authors' own, the output is nothing that a model computes.
INVALID: dict[str, Any] = {"reconstruction": "invalid"}


@dataclass(frozen=True, slots=True)
class Written:
    """All that each feature writes, summed over the layers from ``first`` on: ``[d_sae, d_out]``."""

    source: LazyTensor
    first: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape without the layers."""
        return (self.source.shape[0], self.source.shape[2])

    @property
    def dtype(self) -> str:
        """Sums are float64; the writer rounds once."""
        return "float64"

    def rows(self, start: int, stop: int) -> torch.Tensor:
        """Sums of features ``start:stop``, layer by layer: a float64 copy of all layers would be many times larger."""
        block = self.source.rows(start, stop)
        total = block[:, self.first].double()
        for layer in range(self.first + 1, block.shape[1]):
            total += block[:, layer]
        return total


def write_sum(features: torch.Tensor, decoder: torch.Tensor, first: int = 0) -> torch.Tensor:
    """What ``features [n, d_sae]`` write to the layers from ``first`` on, summed, in float64: ``[n, d_out]``."""
    import torch

    d_sae, layers, d_out = decoder.shape
    written = torch.zeros((len(features), layers, d_out), dtype=torch.float64)
    for part in parts(d_sae, layers * d_out):
        written += torch.einsum("ns,sld->nld", features[:, part], decoder[part].double())
    return written[:, first:].sum(dim=1)

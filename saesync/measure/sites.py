"""What an SAE reads and writes at a hook: joining and splitting attention heads, as ``sae_lens.evals`` does."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Site:
    """A hook, or one attention head of it. The raw activation is ``[batch, ctx, d]`` or ``[batch, ctx, heads, d_head]``."""

    hook: str
    head: int | None = None

    def read(self, raw: torch.Tensor) -> torch.Tensor:
        """What the SAE sees, ``[batch, ctx, d_in]``.

        Raises:
            IndexError: there is no such head.
        """
        if self.head is not None:
            return raw[:, :, self.head]
        return raw.flatten(-2, -1) if raw.ndim == 4 else raw

    def write(self, raw: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
        """``raw`` with what ``read`` gives replaced by ``new``, in raw's shape and dtype."""
        if self.head is None:
            return new.reshape(raw.shape).to(raw.dtype)
        changed = raw.clone()
        changed[:, :, self.head] = new.to(raw.dtype)
        return changed

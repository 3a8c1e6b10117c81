"""Matrix products that are right on Apple's GPUs.

On M1 and M2 the system's own kernels sum what lies behind the operands in memory into a product whose inner dimension has 32,767
numbers or more, without a word (pytorch issues 193487 and 195163; torch 2.14 avoids them for two-dimensional products only). The
inner dimension of an SAE's decoding is d_sae. So there, such products are taken in parts, and the parts are summed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

LONGEST = 1 << 14  # of the inner dimension of one part
_TOO_LONG = 32_767
aten = torch.ops.aten


def right_products(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """While it lasts, products on ``device`` are right; gradients are not recorded."""
    return _InParts() if device.type == "mps" else contextlib.nullcontext()  # type: ignore[no-untyped-call]


class _InParts(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's own
    """Below autograd: whatever a product was called above, it comes here as one of a few operations."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        if (parts := _PRODUCTS.get(func)) is not None and args[_LEFT.get(func, 0)].shape[-1] >= _TOO_LONG:
            return parts(*args, **given)
        return func(*args, **given)


def _sum(product: Callable[..., torch.Tensor], left: torch.Tensor, right: torch.Tensor, inner: int) -> torch.Tensor:
    """The product over the last dimension of ``left`` and ``inner`` of ``right``; its parts are summed in float32 at least."""
    length = left.shape[-1]
    total: torch.Tensor | None = None
    for start in range(0, length, LONGEST):
        size = min(LONGEST, length - start)
        part = product(left.narrow(-1, start, size), right.narrow(inner, start, size))
        total = part.to(torch.promote_types(part.dtype, torch.float32)) if total is None else total.add_(part)
    assert total is not None
    return total


def _plain(product: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def taken(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        return _sum(product, left, right, -2).to(left.dtype)

    return taken


def _added(product: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def taken(bias: torch.Tensor, left: torch.Tensor, right: torch.Tensor, *, beta: float = 1, alpha: float = 1) -> torch.Tensor:
        total = _sum(product, left, right, -2).mul_(alpha)
        return (total + bias * beta if beta else total).to(left.dtype)  # beta 0: a bias that is not a number does not count

    return taken


def _linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    total = _sum(aten.linear.default, x, weight, -1)
    return (total if bias is None else total + bias).to(x.dtype)


_PRODUCTS: Mapping[Any, Callable[..., torch.Tensor]] = {
    aten.mm.default: _plain(aten.mm.default),
    aten.bmm.default: _plain(aten.bmm.default),
    aten.addmm.default: _added(aten.mm.default),
    aten.baddbmm.default: _added(aten.bmm.default),
    aten.linear.default: _linear,  # on MPS an operation of its own
}
_LEFT = {aten.addmm.default: 1, aten.baddbmm.default: 1}  # which argument is the left one

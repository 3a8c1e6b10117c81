"""Matrix products and attention that are right on Apple's GPUs, where some of torch's kernels give wrong numbers without a word.

- On M1 and M2 what lies behind the operands in memory is summed into a product whose inner dimension has 32,767 numbers or more
  (pytorch issues 193487 and 195163; torch 2.14 avoids it for two-dimensional products only). The inner dimension of an SAE's
  decoding is d_sae. Such products are taken in parts, and the parts are summed.
- Linear layers of inputs with more than two dimensions are wrong with a bias on macOS 26 (188438, 189495; 192934 is open), and
  were in 16 bits (180776) and for some strides (161640). They are products of matrices here.
- The kernels for attention let tokens see later ones in bfloat16 and float16 before torch 2.13 (195910), and were wrong for some
  lengths and strides (163597, 174861, 181133). Attention is made of products here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch.nn.functional import linear, scaled_dot_product_attention
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

LONGEST = 1 << 14  # of the inner dimension of one part
_TOO_LONG = 32_767
aten = torch.ops.aten


@contextlib.contextmanager
def right_products(device: torch.device) -> Iterator[None]:
    """While it lasts, products and attention on ``device`` are right; gradients are not recorded."""
    with contextlib.ExitStack() as modes:
        if device.type == "mps":
            modes.enter_context(_InParts())  # type: ignore[no-untyped-call]
            modes.enter_context(_OfMatrices())
        yield


class _OfMatrices(TorchFunctionMode):
    """Above autograd, where torch chooses a kernel: linear layers and attention as products of matrices."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        taken = {linear: _linear, scaled_dot_product_attention: _attention}.get(func, func)
        return taken(*args, **(kwargs or {}))


def _linear(input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:  # torch's names
    flat = input.reshape(-1, input.shape[-1])
    found = flat @ weight.T if bias is None else torch.addmm(bias, flat, weight.T)
    return found.reshape(*input.shape[:-1], weight.shape[0])


def _attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    given = {"scale": scale, "enable_gqa": enable_gqa}
    if attn_mask is not None and attn_mask.dtype is torch.bool:  # the operation below adds what it is given
        attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype).masked_fill_(~attn_mask, -torch.inf)
    found: torch.Tensor = aten._scaled_dot_product_attention_math(query, key, value, attn_mask, dropout_p, is_causal, **given)[0]
    return found


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


_PRODUCTS: Mapping[Any, Callable[..., torch.Tensor]] = {
    aten.mm.default: _plain(aten.mm.default),
    aten.bmm.default: _plain(aten.bmm.default),
    aten.addmm.default: _added(aten.mm.default),
    aten.baddbmm.default: _added(aten.bmm.default),
}
_LEFT = {aten.addmm.default: 1, aten.baddbmm.default: 1}  # which argument is the left one

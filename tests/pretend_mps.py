"""What torch refuses on MPS, or takes wrongly, for some numbers and shapes only: ``tests/pretend_device.py`` asks here.

Facts of torch 2.13.0, where no other version is named: from its sources (aten/src/ATen/native/mps, and common_mps.py of
torch.testing), from the names of the Metal kernels in its macOS wheel, and from its issues where the sources know nothing of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

INT_MAX = 2**31 - 1
# OperationUtils.mm, getMPSDataType: every other dtype is refused; float64 in words of its own.
KNOWN = frozenset(
    {
        torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool,
        torch.uint16, torch.uint32, torch.uint64, torch.complex64, torch.complex32,
    }
)  # fmt: skip
_NO_FLOAT64 = "Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64."
TOO_LARGE = "Invalid buffer size: 8.00 GiB"  # MPSAllocator.mm, where one buffer exceeds MTLDevice.maxBufferLength
Found = str | None


def check_dtype(dtype: torch.dtype) -> None:
    """
    Raises:
        TypeError: MPS has no such numbers.
    """
    if dtype in (torch.float64, torch.complex128):
        raise TypeError(_NO_FLOAT64)
    if dtype not in KNOWN:
        raise TypeError(f"Trying to convert {dtype} to the MPS backend but it does not have support for that dtype.")


def check(name: str, args: Sequence[Any], given: Mapping[str, Any]) -> None:
    """
    Raises:
        RuntimeError: MPS cannot do the operation on these arguments, or not rightly.
    """
    rule = _RULES.get(name)
    found = rule(args, given) if rule is not None else None
    if found is not None:
        raise RuntimeError(f"aten::{name} on MPS: {found}")


def _argument(args: Sequence[Any], given: Mapping[str, Any], at: int, name: str, default: Any = None) -> Any:
    return args[at] if len(args) > at else given.get(name, default)


def _product(left: int, right: int) -> Callable[..., Found]:
    """On M1 and M2 products are wrong from an inner dimension of 32,767 on, where both outer ones have 16 or more: issues 193487
    (torch 2.7 to 2.13) and 195163 (later ones, with a batch dimension)."""

    def rule(args: Sequence[Any], given: Mapping[str, Any]) -> Found:
        a, b = args[left], args[right]
        wrong = a.shape[-1] >= 32_767 and a.shape[-2] >= 16 and b.shape[-1] >= 16
        return f"wrong numbers for an inner dimension of {a.shape[-1]}" if wrong else None

    return rule


def _scatter_reduce(args: Sequence[Any], given: Mapping[str, Any]) -> Found:
    """ScatterGather.mm; kernels are scatter_{set,add,prod,amin,amax}_*: prod has none for int64, amin and amax none for complex
    numbers, and the reduction of a value is no operation of its own."""
    dtype, reduce = args[0].dtype, _argument(args, given, 4, "reduce")
    kernel = {"sum": "add", "mean": "add"}.get(reduce, reduce)
    missing = (kernel == "prod" and dtype is torch.int64) or (kernel != "add" and dtype.is_complex)
    return f"no kernel scatter_{kernel} for {dtype}" if missing else None


def _index_reduce(args: Sequence[Any], given: Mapping[str, Any]) -> Found:
    return f"index_reduce does not support {args[0].dtype}" if args[0].dtype in (torch.int64, torch.complex64) else None


def _nonzero(args: Sequence[Any], given: Mapping[str, Any]) -> Found:
    return "nonzero of more than INT_MAX elements" if args[0].numel() > INT_MAX else None


def _softmax(args: Sequence[Any], given: Mapping[str, Any]) -> Found:
    return "softmax with half to float conversion" if _argument(args, given, 2, "half_to_float", False) else None


def _attention(args: Sequence[Any], given: Mapping[str, Any]) -> Found:
    """Attention.mm: no dropout, and only three dtypes. Before torch 2.13 causal attention is wrong in 16 bits: issue 195910."""
    if _argument(args, given, 4, "dropout_p", 0.0):
        return "attention with dropout"
    dtype = args[0].dtype
    if dtype in (torch.float16, torch.bfloat16) and _argument(args, given, 5, "is_causal", False):
        return "tokens see later ones in 16 bits"
    return None if dtype in (torch.float32, torch.float16, torch.bfloat16) else f"attention in {dtype}"


def _linear(args: Sequence[Any], given: Mapping[str, Any]) -> Found:
    """Linear.mm; and, on macOS 26, issues 188438, 189495 and 192934."""
    if args[0].dim() > 2 and _argument(args, given, 2, "bias") is not None:
        return f"wrong numbers for an input of {args[0].dim()} dimensions and a bias"
    return None if args[0].is_floating_point() or args[0].is_complex() else f"linear for {args[0].dtype}"


def _embedding(args: Sequence[Any], given: Mapping[str, Any]) -> Found:
    """Issue 188756, until torch 2.14."""
    return "zeros for a table of more than INT_MAX numbers" if args[0].numel() > INT_MAX else None


def _bincount(args: Sequence[Any], given: Mapping[str, Any]) -> Found:
    """SummaryOps.mm compiles a graph for every length of its input: 19 s for 2 million numbers (pull request 184779)."""
    return "bincount takes seconds for every new length"


_RULES: Mapping[str, Callable[[Sequence[Any], Mapping[str, Any]], Found]] = {
    "mm": _product(0, 1),
    "bmm": _product(0, 1),
    "addmm": _product(1, 2),
    "baddbmm": _product(1, 2),
    "linear": _linear,
    "embedding": _embedding,
    "index_select": _embedding,
    "scatter_reduce": _scatter_reduce,
    "scatter_reduce_": _scatter_reduce,
    "index_reduce": _index_reduce,
    "index_reduce_": _index_reduce,
    "nonzero": _nonzero,
    "_softmax": _softmax,
    "_log_softmax": _softmax,
    "scaled_dot_product_attention": _attention,
    "bincount": _bincount,
}

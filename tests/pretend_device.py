"""A GPU that is not there: tensors that say ``cuda:0`` or ``mps:0``, hold their numbers on the CPU, and are as strict as real
ones.

``with pretend("cuda", count=2) as machine:`` makes torch see such a machine. What a real device refuses is refused here:

- an operation whose tensors are on different devices (a CPU tensor without dimensions may take part in pointwise operations, a
  CPU tensor may index, ``copy_`` may cross; nothing else);
- numbers that MPS does not know, and operations that it refuses or takes wrongly (``pretend_mps``); an operation that torch has
  no kernel for on that device (as ATen's own list of kernels says);
- turning a tensor into a numpy array; a device number that is not there; tensors that leave the machine's memory full.

Copies between host and device and points where the host has to wait for the device are counted. The numbers themselves are those
of the CPU's kernels, so a measurement on a pretended device must equal the one on the CPU, which a wrong device cannot hide.

It does not tell how fast a device is, what its kernels round differently, or how much memory they need beside their results.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import pretend_mps
import torch
from pretend_kernels import check_kernel
from pretend_looks import looks
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

GIB = 1 << 30
aten = torch.ops.aten
_COPYING = ("tensor", "as_tensor", "asarray", "new_tensor")  # what they are given comes from the host
_INDEXING = ("index", "_unsafe_index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index_put")
_WAITING = ("_local_scalar_dense", "nonzero", "bincount", "masked_select", "_unique2", "unique_consecutive", "equal")


@dataclass
class Machine:
    """A pretended machine: what it has, and what was done on it.

    ``copies`` counts by (from, to) device type, ``waits`` by the operation that made the host wait; ``used`` are the bytes
    of tensors alive by device, ``most`` the most there were at a time, and ``refused`` counts what did not fit.
    """

    kind: str
    count: int = 1
    memory: int = 24 * GIB
    current: int = 0
    copies: Counter[tuple[str, str]] = field(default_factory=Counter)
    waits: Counter[str] = field(default_factory=Counter)
    used: Counter[torch.device] = field(default_factory=Counter)
    most: Counter[torch.device] = field(default_factory=Counter)
    refused: int = 0
    _stores: dict[int, Any] = field(default_factory=dict)

    def place(self, asked: Any) -> torch.device | None:
        """The device meant, with its number; None when it is not one of this machine's kind.

        Raises:
            RuntimeError: the machine has no device of that number.
            AssertionError: torch has no devices of that kind here.
        """
        if asked is None:
            return None
        device = torch.device(self.kind, asked) if isinstance(asked, int) else torch.device(asked)
        if device.type in ("cpu", "meta"):
            return None
        if device.type != self.kind:
            raise AssertionError(f"Torch not compiled with {device.type.upper()} enabled")
        index = self.current if device.index is None else device.index
        if index >= self.count:
            raise RuntimeError("CUDA error: invalid device ordinal")
        return torch.device(self.kind, index)

    def hold(self, held: torch.Tensor, device: torch.device) -> PretendTensor:
        """A CPU tensor's numbers as a tensor of the device.

        Raises:
            TypeError: MPS has no such numbers.
            torch.OutOfMemoryError: they do not fit (on MPS a RuntimeError, as there).
        """
        if self.kind == "mps":
            pretend_mps.check_dtype(held.dtype)
        store = held.untyped_storage()
        known, size = store._cdata, store.nbytes()
        if known not in self._stores:
            if self.used[device] + size > self.memory:
                self.refused += 1
                said = f"out of memory. Tried to allocate {size / 2**20:.2f} MiB."
                if self.kind == "mps":
                    raise RuntimeError(pretend_mps.TOO_LARGE if size >= self.memory else f"MPS backend {said}")
                raise torch.OutOfMemoryError(f"CUDA {said}")
            self.used[device] += size
            self.most[device] = max(self.most[device], self.used[device])
            self._stores[known] = weakref.finalize(store, self._gone, known, size, device)
        return PretendTensor(held, device, store)

    def _gone(self, known: int, size: int, device: torch.device) -> None:
        self.used[device] -= size
        self._stores.pop(known, None)

    def moved(self, x: torch.Tensor, device: torch.device | None, **how: Any) -> torch.Tensor:
        """A copy on another device (None: the host), counted."""
        self.copies[x.device.type, "cpu" if device is None else device.type] += 1
        copy = (x.held if isinstance(x, PretendTensor) else x).detach().to(copy=True, **how)
        return copy if device is None else self.hold(copy, device)


class PretendTensor(torch.Tensor):
    """Numbers on the CPU (``held``) under another device's name."""

    held: torch.Tensor
    store: Any

    @staticmethod
    def __new__(cls, held: torch.Tensor, device: torch.device, store: Any) -> PretendTensor:
        made: PretendTensor = torch.Tensor._make_wrapper_subclass(
            cls, held.size(), strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype, layout=held.layout,
            device=device, requires_grad=False,
        )  # fmt: skip
        made.held, made.store = held.detach(), store
        return made

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"PretendTensor({self.held}, device={self.device})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise RuntimeError(f"{func} on a pretended device after its machine is gone")


class _Kernels(TorchDispatchMode):
    """Every operation below autograd: checked as the device would check it, then done by the CPU's kernel."""

    def __init__(self, machine: Machine) -> None:
        super().__init__()
        self.machine = machine

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = dict(kwargs or {})
        tensors = [leaf for leaf in tree_leaves((args, given)) if isinstance(leaf, torch.Tensor)]
        own = [leaf for leaf in tensors if isinstance(leaf, PretendTensor)]
        name = func.overloadpacket.__name__
        asked = self.machine.place(given["device"]) if given.get("device") is not None else None
        if not own and asked is None:
            return func(*args, **given)
        if name in ("_to_copy", "copy_"):
            return self._crossing(func, args, given)
        device = self._device(func, name, tensors, own) if own else None
        if given.get("device") is not None:
            device = asked
            given["device"] = torch.device("cpu")
        if device is not None:
            check_kernel(func, self.machine.kind)
            if self.machine.kind == "mps":
                pretend_mps.check(name, args, given)
        if name in _WAITING:
            self.machine.waits[name] += 1
        return self._done(func, name, args, given, device)

    def _crossing(self, func: Any, args: Any, given: dict[str, Any]) -> Any:
        machine, x = self.machine, args[0]
        if func.overloadpacket.__name__ == "copy_":
            source = args[1]
            if source.device != x.device:
                machine.copies[source.device.type, x.device.type] += 1
            _held(x).copy_(_held(source))
            return x
        how = {name: value for name, value in given.items() if name in ("dtype", "memory_format") and value is not None}
        device = machine.place(given["device"]) if given.get("device") is not None else machine.place(x.device)
        if device is None or device != x.device:
            return machine.moved(x, device, **how)
        return machine.hold(x.held.to(copy=True, **how), device)

    def _device(self, func: Any, name: str, tensors: Sequence[torch.Tensor], own: Sequence[PretendTensor]) -> torch.device:
        device = own[0].device
        for other in tensors:
            if other.device == device:
                continue
            if name in _INDEXING and other is not tensors[0] and other.device.type == "cpu":
                self.machine.copies["cpu", device.type] += 1  # the indices
            elif not (other.device.type == "cpu" and other.dim() == 0 and torch.Tag.pointwise in func.tags):
                raise RuntimeError(
                    "Expected all tensors to be on the same device, but found at least two devices, "
                    f"{device} and {other.device}! (when checking arguments of {func})"
                )
        if name in ("index", "index_put", "index_put_", "_index_put_impl_"):
            masks = [leaf for leaf in tensors[1:] if leaf.dtype in (torch.bool, torch.uint8)]
            self.machine.waits["index by a mask"] += bool(masks)
        return device

    def _done(self, func: Any, name: str, args: Any, given: dict[str, Any], device: torch.device | None) -> Any:
        found = func(*tree_map(_held, args), **tree_map(_held, given))
        leaves = [leaf for leaf in tree_leaves((args, given)) if isinstance(leaf, PretendTensor)]
        written = {id(leaf.held): leaf for leaf in leaves}

        def outer(leaf: Any) -> Any:
            if not isinstance(leaf, torch.Tensor) or device is None:
                return leaf
            return written.get(id(leaf)) if id(leaf) in written else self.machine.hold(leaf, device)

        return tree_map(outer, found)


def _held(leaf: Any) -> Any:
    return leaf.held if isinstance(leaf, PretendTensor) else leaf


class _Calls(TorchFunctionMode):
    """What Python asks torch for before there is an operation: factories, moves, and ways out of a tensor."""

    def __init__(self, machine: Machine) -> None:
        super().__init__()
        self.machine = machine

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = dict(kwargs or {})
        given.pop("pin_memory", None)  # host memory all the same
        name = getattr(func, "__name__", "")
        own = args[0] if args and isinstance(args[0], PretendTensor) else None
        if func in (torch.Tensor.to, torch.Tensor.cuda, torch.Tensor.cpu):
            return self._to(func, args, given)
        if own is not None and func in _GUARDED:
            with self:
                return _GUARDED[func](*args, **given)
        if own is not None and func in _WAYS_OUT:
            return _WAYS_OUT[func](self.machine, own)
        if own is not None and func is torch.nn.functional.linear and self.machine.kind == "mps":
            pretend_mps.check("linear", args, given)  # where torch has an operation of its own for it
        if own is not None and func is torch.nn.functional.scaled_dot_product_attention:
            # Which kernel is taken is asked of the device itself, below where we can answer.
            if {leaf.device for leaf in tree_leaves((args, given)) if isinstance(leaf, torch.Tensor)} != {own.device}:
                raise RuntimeError("Expected query, key, value and attn_mask to be on the same device")
            if self.machine.kind == "mps":
                pretend_mps.check("scaled_dot_product_attention", args, given)
            return self.machine.hold(func(*tree_map(_held, args), **tree_map(_held, given)), own.device)
        if own is not None and func is torch.Tensor.__getitem__:
            return self.machine.hold(own.held[self._index(own, args[1], func)], own.device)
        if own is not None and func is torch.Tensor.__setitem__:
            own.held[self._index(own, args[1], func)] = self._value(own, args[2])
            return None
        if func is torch.Tensor.data.__set__:  # type: ignore[attr-defined]
            return _set_data(func, *args)
        asked = given.get("device", own.device if own is not None and name == "new_tensor" else None)
        device = self.machine.place(asked)
        if device is None or name == "_parse_to":
            return func(*args, **given)
        given["device"] = torch.device("cpu")
        made = func(*(_to_host(arg) for arg in args) if name in _COPYING else args, **given)
        if name in _COPYING:
            return self.machine.moved(made, device).requires_grad_(made.requires_grad)
        return self.machine.hold(made.detach(), device).requires_grad_(made.requires_grad)

    def _index(self, x: PretendTensor, index: Any, func: Any) -> Any:
        """An index as the host uses it; its tensors may be on the host or on the device of ``x``."""
        where = x.device
        for leaf in tree_leaves(index):
            if isinstance(leaf, torch.Tensor):
                if leaf.device != x.device and leaf.device.type != "cpu":
                    raise RuntimeError(f"indices should be either on cpu or on the same device as the indexed tensor ({where})")
                self.machine.copies["cpu", x.device.type] += leaf.device.type == "cpu"
                self.machine.waits["index by a mask"] += leaf.dtype is torch.bool
            elif isinstance(leaf, list):
                self.machine.copies["cpu", x.device.type] += 1
        return tree_map(_held, index)

    def _value(self, x: PretendTensor, value: Any) -> Any:
        if isinstance(value, torch.Tensor) and value.device != x.device and value.dim():
            raise RuntimeError(f"Expected all tensors to be on the same device, but found {x.device} and {value.device}!")
        return _held(value)

    def _to(self, func: Any, args: Any, given: dict[str, Any]) -> torch.Tensor:
        x, rest = args[0], list(args[1:])
        if func is torch.Tensor.cpu:
            given["device"] = torch.device("cpu")
        elif func is torch.Tensor.cuda:
            given["device"] = self.machine.place(rest.pop(0) if rest else given.get("device", "cuda"))
        elif rest and isinstance(rest[0], torch.Tensor):
            other = rest.pop(0)
            given |= {"device": other.device, "dtype": other.dtype}
        elif rest and isinstance(rest[0], str | torch.device | int):
            given["device"] = rest.pop(0)
        if rest and isinstance(rest[0], torch.dtype):
            given["dtype"] = rest.pop(0)
        asked, dtype = given.get("device"), given.get("dtype")
        device = self.machine.place(asked) if asked is not None else self.machine.place(x.device)
        if torch.device(asked).type == "meta" if asked is not None else x.is_meta:
            return func(*args, **given)  # type: ignore[no-any-return]
        same = (device or torch.device("cpu")) == x.device and dtype in (None, x.dtype)
        if same and not given.get("copy"):
            return x  # type: ignore[no-any-return]
        how = {"dtype": dtype} if dtype is not None else {}
        if given.get("memory_format") is not None:
            how["memory_format"] = given["memory_format"]
        return aten._to_copy.default(x, device=device or torch.device("cpu"), **how)  # type: ignore[no-any-return]


def _to_host(leaf: Any) -> Any:
    return leaf.cpu() if isinstance(leaf, PretendTensor) else leaf


def _tolist(machine: Machine, x: PretendTensor) -> Any:
    machine.copies[x.device.type, "cpu"] += 1
    return x.held.tolist()


def _nonzero(x: torch.Tensor, *, as_tuple: bool = False) -> Any:
    found = aten.nonzero.default(x)
    return found.unbind(1) if as_tuple else found


def _no_numpy(machine: Machine, x: PretendTensor) -> Any:
    raise TypeError(f"can't convert {x.device} device type tensor to numpy. Use Tensor.cpu() first.")


def _set_data(func: Any, x: torch.Tensor, value: torch.Tensor) -> None:
    if isinstance(x, PretendTensor) and isinstance(value, PretendTensor):
        func(x, value)
        x.held, x.store = value.held, value.store
    elif isinstance(x, PretendTensor) or isinstance(value, PretendTensor):
        raise RuntimeError("a pretended device cannot give a tensor to another device in place")
    else:
        func(x, value)


_GUARDED: Mapping[Any, Callable[..., Any]] = {  # methods whose C++ wants the device's driver before there is an operation
    torch.Tensor.__invert__: torch.bitwise_not,
    torch.Tensor.__bool__: lambda x: bool(x.item()),
    torch.Tensor.__int__: lambda x: int(x.item()),
    torch.Tensor.__index__: lambda x: x.item(),
    torch.Tensor.__float__: lambda x: float(x.item()),
    torch.Tensor.nonzero: _nonzero,
    torch.nonzero: _nonzero,
    torch.Tensor.contiguous: aten.contiguous.default,
    torch.Tensor.copy_: lambda x, source, non_blocking=False: aten.copy_.default(x, source, non_blocking),
}
_WAYS_OUT: Mapping[Any, Callable[[Machine, PretendTensor], Any]] = {
    torch.Tensor.data_ptr: lambda _machine, x: x.held.data_ptr(),
    torch.Tensor.tolist: _tolist,
    torch.Tensor.numpy: _no_numpy,
    torch.Tensor.__array__: _no_numpy,
}


# --------------------------------------------------------------------------------------------------- the machine


@contextmanager
def pretend(kind: str, count: int = 1, memory: int = 24 * GIB) -> Iterator[Machine]:
    """While it lasts, this thread's torch has ``count`` devices of ``kind`` ("cuda" or "mps") with ``memory`` bytes each."""
    machine = Machine(kind, count, memory)
    overwrite = torch.__future__.get_overwrite_module_params_on_conversion()
    with ExitStack() as stack:
        for look in looks(machine):
            stack.enter_context(look)
        stack.enter_context(torch.no_grad())  # autograd wants a real device
        stack.enter_context(_Kernels(machine))
        stack.enter_context(_Calls(machine))
        stack.callback(torch.__future__.set_overwrite_module_params_on_conversion, overwrite)
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        yield machine

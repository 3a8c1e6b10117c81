"""A pickle machine that builds nothing but plain containers, numbers, strings and descriptions of tensors.

It imports nothing, calls nothing the file names, and keeps memory and time proportional to the pickle: the memo is a
dictionary, keys are strings or integers (hashing nested tuples can take for ever), and opcodes are counted. Every class or
function a file names is listed; ``ALLOWED`` are the harmless ones torch.save writes for tensors.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO, cast

MAX_PICKLE = 16 << 20
_MAX_OPCODES = 1_000_000
STORAGES: Mapping[str, tuple[str, int]] = {
    "DoubleStorage": ("float64", 8),
    "FloatStorage": ("float32", 4),
    "HalfStorage": ("float16", 2),
    "BFloat16Storage": ("bfloat16", 2),
    "LongStorage": ("int64", 8),
    "IntStorage": ("int32", 4),
    "ShortStorage": ("int16", 2),
    "CharStorage": ("int8", 1),
    "ByteStorage": ("uint8", 1),
    "BoolStorage": ("bool", 1),
}


@dataclass(frozen=True, slots=True)
class Storage:
    """A run of numbers that stands outside the pickle, under ``key``."""

    dtype: str
    width: int
    key: str
    numel: int


@dataclass(frozen=True, slots=True)
class TensorRef:
    """A tensor as a view of a storage; offset and strides in elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Named:
    """A class, function or object the pickle names, or what calling it would have given. It stays a name."""

    name: str


@dataclass(slots=True)
class Inert:
    """An object of a class that nobody imported: its name, what it was to be made of, and the state it was to get."""

    name: str
    arguments: Any
    state: Any = None


def _tensor(arguments: tuple[Any, ...]) -> TensorRef:
    storage, offset, shape, strides, *_ = arguments
    if not isinstance(storage, Storage) or not isinstance(shape, tuple) or not isinstance(strides, tuple):
        raise ValueError("malformed tensor")
    if len(shape) != len(strides) or len(shape) > 8 or not all(_count(n) for n in (offset, *shape, *strides)):
        raise ValueError("malformed tensor")
    return TensorRef(storage, offset, shape, strides)


def _ordered(arguments: tuple[Any, ...]) -> dict[Any, Any]:
    found: dict[Any, Any] = {}
    for pair in arguments[0] if arguments else ():
        key, value = pair
        found[_key(key)] = value
    return found


_CALLS: Mapping[str, Callable[[tuple[Any, ...]], Any]] = {
    "collections.OrderedDict": _ordered,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": lambda arguments: arguments[0],
    "torch.Size": lambda arguments: arguments[0],
}
ALLOWED = frozenset((*_CALLS, *(f"torch.{name}" for name in STORAGES), *(f"torch.{dtype}" for dtype, _ in STORAGES.values())))


@dataclass(slots=True)
class _Machine:
    stack: list[Any] = field(default_factory=list)
    marks: list[int] = field(default_factory=list)
    memo: dict[int, Any] = field(default_factory=dict)
    globals: set[str] = field(default_factory=set)
    make: Callable[[str, tuple[Any, ...]], Any] | None = None

    def since_mark(self) -> list[Any]:
        start = self.marks.pop()
        taken = self.stack[start:]
        del self.stack[start:]
        return taken

    def take(self, count: int) -> tuple[Any, ...]:
        if len(self.stack) < count:
            raise ValueError("stack underflow")
        taken = tuple(self.stack[len(self.stack) - count :])
        del self.stack[len(self.stack) - count :]
        return taken

    def name(self, full: str) -> Named:
        self.globals.add(full)
        return Named(full)

    def call(self, function: Any, arguments: Any) -> Any:
        if not isinstance(function, Named) or not isinstance(arguments, tuple):
            raise ValueError("malformed call")
        known = _CALLS.get(function.name)
        if known is not None:
            return known(arguments)
        return function if self.make is None else self.make(function.name, arguments)

    def build(self) -> None:
        """The state of an object: kept if the object is, and never acted on."""
        state, target = self.take(1)[0], self.stack[-1]
        if isinstance(target, Inert):
            target.state = state


def _count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 48


def _key(key: Any) -> Any:
    if not isinstance(key, str | int):
        raise ValueError("a dictionary key is neither a string nor an integer")
    return key


def _store(machine: _Machine, items: list[Any]) -> None:
    target = machine.stack[-1]
    if isinstance(target, dict):
        target.update(zip(map(_key, items[::2]), items[1::2], strict=True))
    elif not isinstance(target, Named | Inert):
        raise ValueError("items set on no dictionary")


def _extend(machine: _Machine, items: list[Any]) -> None:
    target = machine.stack[-1]
    if isinstance(target, list):
        target.extend(items)
    elif not isinstance(target, Named | Inert):
        raise ValueError("items appended to no list")


def _stack_global(machine: _Machine) -> Named:
    module, name = machine.take(2)
    if not isinstance(module, str) or not isinstance(name, str):
        raise ValueError("malformed name")
    return machine.name(f"{module}.{name}")


def _storage(machine: _Machine) -> Storage:
    (pid,) = machine.take(1)
    if not isinstance(pid, tuple) or len(pid) not in (5, 6) or pid[0] != "storage" or pid[5:] not in ((), (None,)):
        raise ValueError("malformed storage")
    kind, key, numel = pid[1], pid[2], pid[4]
    known = STORAGES.get(kind.name.removeprefix("torch.")) if isinstance(kind, Named) else None
    if known is None or not isinstance(key, str) or not _count(numel):
        raise ValueError("malformed storage")
    return Storage(*known, key, numel)


def _instance(machine: _Machine, opcode: str, argument: Any) -> Any:
    """INST and OBJ: the two old ways to make an object; it stays its class's name."""
    taken = machine.since_mark()
    if opcode == "INST":
        taken.insert(0, machine.name(str(argument).replace(" ", ".", 1)))
    if not taken or not isinstance(taken[0], Named):
        raise ValueError("malformed object")
    return taken[0] if machine.make is None else machine.make(taken[0].name, tuple(taken[1:]))


_LITERALS = frozenset(
    (
        "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "STRING", "BINSTRING",
        "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE",
        "BINUNICODE8",
    )
)  # fmt: skip
_CONSTANTS: Mapping[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_SET": list,
}
_NOTHING = frozenset(("PROTO", "FRAME", "STOP"))
_PUSHING: Mapping[str, Callable[[_Machine], Any]] = {
    "TUPLE": lambda machine: tuple(machine.since_mark()),
    "LIST": lambda machine: machine.since_mark(),
    "DICT": lambda machine: _ordered((_pairs(machine.since_mark()),)),
    "FROZENSET": lambda machine: machine.since_mark(),
    "TUPLE1": lambda machine: machine.take(1),
    "TUPLE2": lambda machine: machine.take(2),
    "TUPLE3": lambda machine: machine.take(3),
    "DUP": lambda machine: machine.stack[-1],
    "STACK_GLOBAL": _stack_global,
    "BINPERSID": _storage,
    "REDUCE": lambda machine: machine.call(*machine.take(2)),
    "NEWOBJ": lambda machine: machine.call(*machine.take(2)),
    "NEWOBJ_EX": lambda machine: machine.call(*machine.take(3)[:2]),
}
_ACTING: Mapping[str, Callable[[_Machine], Any]] = {
    "MARK": lambda machine: machine.marks.append(len(machine.stack)),
    "POP": lambda machine: machine.take(1),
    "POP_MARK": lambda machine: machine.since_mark(),
    "APPEND": lambda machine: _extend(machine, list(machine.take(1))),
    "APPENDS": lambda machine: _extend(machine, machine.since_mark()),
    "ADDITEMS": lambda machine: _extend(machine, machine.since_mark()),
    "SETITEM": lambda machine: _store(machine, list(machine.take(2))),
    "SETITEMS": lambda machine: _store(machine, machine.since_mark()),
    "BUILD": lambda machine: machine.build(),
    "MEMOIZE": lambda machine: machine.memo.__setitem__(len(machine.memo), machine.stack[-1]),
}


def _pairs(items: list[Any]) -> list[tuple[Any, Any]]:
    return list(zip(items[::2], items[1::2], strict=True))


def _step(machine: _Machine, opcode: str, argument: Any) -> None:
    if opcode in _LITERALS:
        machine.stack.append(argument)
    elif opcode in _CONSTANTS:
        machine.stack.append(_CONSTANTS[opcode]())
    elif opcode in _PUSHING:
        machine.stack.append(_PUSHING[opcode](machine))
    elif opcode in _ACTING:
        _ACTING[opcode](machine)
    elif opcode in ("PUT", "BINPUT", "LONG_BINPUT"):
        machine.memo[int(argument)] = machine.stack[-1]
    elif opcode in ("GET", "BINGET", "LONG_BINGET"):
        machine.stack.append(machine.memo[int(argument)])
    elif opcode == "GLOBAL":
        machine.stack.append(machine.name(str(argument).replace(" ", ".", 1)))
    elif opcode in ("INST", "OBJ"):
        machine.stack.append(_instance(machine, opcode, argument))
    elif opcode in ("EXT1", "EXT2", "EXT4"):
        machine.stack.append(machine.name(f"copyreg.extension_{argument}"))
    elif opcode not in _NOTHING:
        raise ValueError(f"unexpected opcode {opcode}")


@dataclass(frozen=True, slots=True)
class _Bounded:
    """A stream that gives nothing longer than ``limit``: a pickle may claim any length, and reading allocates it first."""

    stream: BinaryIO
    limit: int

    def read(self, length: int) -> bytes:
        if length > self.limit:
            raise ValueError("a value in its pickle is too large")
        return self.stream.read(length)

    def readline(self) -> bytes:
        return self.stream.readline(self.limit)

    def tell(self) -> int:
        return self.stream.tell()


def load(
    stream: BinaryIO, make: Callable[[str, tuple[Any, ...]], Any] | None = None, limit: int = MAX_PICKLE
) -> tuple[Any, set[str]]:
    """The next pickle of ``stream`` as plain data, and every name in it. The stream is left behind its STOP.

    ``make`` stands in for calling what the pickle names (name, arguments); without it such an object stays its name.

    Raises:
        ValueError, IndexError, KeyError, TypeError: it is not a pickle of the kind torch.save writes.
    """
    machine = _Machine(make=make)
    start = stream.tell()
    for count, (opcode, argument, position) in enumerate(pickletools.genops(cast("BinaryIO", _Bounded(stream, limit)))):
        if count > _MAX_OPCODES or (position or 0) - start > limit:
            raise ValueError("its pickle is too large")
        _step(machine, opcode.name, argument)
    if machine.marks or len(machine.stack) != 1:
        raise ValueError("its pickle does not end with one value")
    return machine.stack[0], machine.globals

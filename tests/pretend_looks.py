"""What torch says of a machine that is only pretended: ``tests/pretend_device.py`` patches it in."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any
from unittest import mock

import torch

if TYPE_CHECKING:
    from pretend_device import Machine


def looks(machine: Machine) -> Iterator[Any]:
    """The patches."""
    cuda = machine.kind == "cuda"
    here = machine.count if cuda else 0

    def number(device: Any = None) -> int:
        placed = machine.place("cuda" if device is None else device)
        return machine.current if placed is None else placed.index

    def free(device: Any = None) -> tuple[int, int]:
        return machine.memory - machine.used[torch.device("cuda", number(device))], machine.memory

    def use(device: Any) -> None:
        machine.current = number(device)

    answers = {
        "is_available": lambda: cuda,
        "device_count": lambda: here,
        "current_device": lambda: machine.current,
        "set_device": use,
        "get_device_name": lambda device=None: f"Pretended GPU {number(device)}",
        "get_device_capability": lambda device=None: (9, 0),
        "mem_get_info": free,
        "memory_reserved": lambda device=None: machine.used[torch.device("cuda", number(device))],
        "memory_allocated": lambda device=None: machine.used[torch.device("cuda", number(device))],
        "empty_cache": lambda: None,
        "synchronize": lambda device=None: None,
    }
    for name, answer in answers.items():
        yield mock.patch.object(torch.cuda, name, answer)
    for name in ("is_available", "is_built"):
        yield mock.patch.object(torch.backends.mps, name, return_value=not cuda)
    yield mock.patch.object(torch.mps, "empty_cache")

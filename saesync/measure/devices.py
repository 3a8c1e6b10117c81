"""Devices, and how much of them one step of measuring may take.

What shapes a batch depends on the kind of device alone, never on what is free at the moment or on what else is measured:
batch shapes change the last bits of a matrix product, and a run that was stopped and resumed has to give the same numbers.
How many SAEs are held at once changes no number, so that does depend on the memory a model leaves.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from saesync.errors import Missing

MIB = 1 << 20
GIB = 1 << 30
_MATRICES = 5  # [rows, d_sae] in float32 that encoding holds at a time


@dataclass(frozen=True, slots=True)
class Limits:
    """``tokens`` and ``logits`` (bytes) bound a batch; ``dense`` bounds the elements of one ``[rows, d_sae]`` block;
    ``resident`` bounds the bytes of SAEs and cached activations that are held at once.

    With d_sae 65,536 a block has 256 rows on a CPU (64 MiB; encoding holds about five such matrices, 320 MiB) and 4,096 on a
    GPU (1 GiB; about 5 GiB), whatever the number of tokens is.
    """

    tokens: int
    logits: int
    dense: int
    resident: int


def device_for(name: str) -> torch.device:
    """The device of that name; ``auto`` takes the first CUDA GPU, else Apple's, else the CPU.

    Raises:
        Missing: there is no such device on this machine.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    here = ["cpu"]
    if torch.cuda.is_available():
        here += ["cuda", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    if torch.backends.mps.is_available():
        here.append("mps")
    if name not in here:
        raise Missing(
            "Device is not here", f"There is no device {name!r}. This machine has {', '.join(here)}; choose one of them."
        )
    return torch.device("cuda:0" if name == "cuda" else name)


def device_label(device: torch.device) -> str:
    """What is recorded of a device: ``cpu``, ``mps`` or the GPU's own name."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def limits_for(device: torch.device) -> Limits:
    """The limits of a device, asked when the model is on it."""
    if device.type == "cuda":
        found = Limits(tokens=32_768, logits=8 * GIB, dense=1 << 28, resident=GIB)
        free, total = torch.cuda.mem_get_info(device)
        free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # torch's own, and unused
        working = 2 * found.logits + _MATRICES * 4 * found.dense
        return replace(found, resident=max(GIB, min(total * 2 // 5, free - working)))
    return Limits(tokens=4_096, logits=512 * MIB, dense=1 << 24, resident=3 * GIB)


def wide(device: torch.device) -> torch.dtype:
    """What sums are taken in: float64, except on MPS, which has none (there, sums over one token only are float32)."""
    return torch.float32 if device.type == "mps" else torch.float64

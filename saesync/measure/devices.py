"""Devices, and how much of them one step of measuring may take.

What shapes a batch depends on the kind of device and the size of its memory, never on what is free at the moment or on what else
is measured: batch shapes change the last bits of a matrix product, and a run that was stopped and resumed has to give the same
numbers. Only when memory runs out all the same are batches made smaller (``Limits.smaller``). How many SAEs are held at once
changes no number, so that does depend on the memory a model leaves.
"""

from __future__ import annotations

import gc
from dataclasses import dataclass, replace

import torch

from saesync.errors import Missing, Refused

MIB = 1 << 20
GIB = 1 << 30
_MATRICES = 5  # [rows, d_sae] in float32 that encoding holds at a time
_LEAST_LOGITS, _MOST_LOGITS = 256 * MIB, 8 * GIB
_LEAST_DENSE = 1 << 20
# Before, sums, means and masks gave wrong numbers on MPS now and then, and linear layers in 2.8 (pytorch issues 178497, 181867,
# 161640). What is still wrong in it, ``products`` avoids.
_FIRST_RIGHT_ON_MPS = (2, 13)
# As the allocators say it; MPS says "Invalid buffer size" of what is larger than one buffer may be.
_NO_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "alloc_failed", "invalid buffer size")


@dataclass(frozen=True, slots=True)
class Limits:
    """``tokens`` and ``logits`` (bytes) bound a batch; ``dense`` bounds the elements of one ``[rows, d_sae]`` block;
    ``resident`` bounds the bytes of SAEs and cached activations that are held at once.

    With d_sae 65,536 a block has 256 rows on a CPU (64 MiB; encoding holds about five such matrices, 320 MiB) and 4,096 on a
    GPU of 80 GB (1 GiB; about 5 GiB), whatever the number of tokens is.
    """

    tokens: int
    logits: int
    dense: int
    resident: int

    def smaller(self) -> Limits:
        """What to try where these were too much."""
        return Limits(self.tokens // 2, self.logits // 2, max(_LEAST_DENSE, self.dense // 2), self.resident // 2)


def why_no_cuda() -> str:
    """Why there is no CUDA device, in torch's own words where it has some."""
    if torch.version.cuda is None and torch.version.hip is None:
        return f"torch {torch.__version__} is built without CUDA"
    return _refusal("cuda") or f"torch {torch.__version__} does not see it"


def why_not_mps() -> str | None:
    """Why Apple's GPU, where torch sees one, cannot be used: in some virtual machines not a byte can be allocated on it. None
    where it can be, or there is none."""
    return _refusal("mps") if torch.backends.mps.is_available() else None


def _refusal(device: str) -> str | None:
    """What torch says when asked to hold a number on a device; None where it does."""
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        said = str(error).strip() or type(error).__name__
        return f"torch {torch.__version__} says: {said.splitlines()[0][:300].rstrip('.')}"
    return None


def device_for(name: str) -> torch.device:
    """The device of that name; ``auto`` takes the first CUDA GPU, else Apple's, else the CPU.

    Raises:
        Missing: there is no such device on this machine, or it cannot be used.
    """
    if name == "cpu":
        return torch.device(name)
    here, unusable = ["cpu"], why_not_mps()
    if torch.cuda.is_available():
        here += ["cuda", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    if torch.backends.mps.is_available() and unusable is None:
        here.append("mps")
    if name == "auto":
        name = next(kind for kind in ("cuda", "mps", "cpu") if kind in here)
    if name not in here:
        why = f" ({unusable})" if name == "mps" and unusable else ""
        raise Missing(
            "Device is not here", f"There is no device {name!r}{why}. This machine has {', '.join(here)}; choose one of them."
        )
    if name == "mps" and tuple(map(int, torch.__version__.split(".")[:2])) < _FIRST_RIGHT_ON_MPS:
        first = ".".join(map(str, _FIRST_RIGHT_ON_MPS))
        raise Refused(
            "Device computes wrongly",
            f"torch {torch.__version__} gives wrong numbers on mps. Install {first} or newer, or measure with --device cpu.",
        )
    device = torch.device("cuda:0" if name == "cuda" else name)
    if device.type == "cuda":
        torch.cuda.set_device(device)  # libraries that only say "cuda" mean this one
    return device


def device_label(device: torch.device) -> str:
    """What is recorded of a device: ``cpu``, ``mps`` or the GPU's own name."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def limits_for(device: torch.device) -> Limits:
    """The limits of a device, asked when the model is on it.

    A GPU's batches take an eighth of its memory for logits (to a power of two: 8 GiB of 80 GB, 2 GiB of 24 GB, 512 MiB of
    8 GB), and the rest in proportion.
    """
    if device.type != "cuda":
        return Limits(tokens=4_096, logits=512 * MIB, dense=1 << 24, resident=3 * GIB)
    free, total = torch.cuda.mem_get_info(device)
    logits = min(_MOST_LOGITS, max(_LEAST_LOGITS, 1 << ((total // 8).bit_length() - 1)))
    part = _MOST_LOGITS // logits
    found = Limits(tokens=32_768 // part, logits=logits, dense=(1 << 28) // part, resident=GIB // part)
    free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # torch's own, and unused
    working = 2 * found.logits + _MATRICES * 4 * found.dense
    return replace(found, resident=max(found.resident, min(total * 2 // 5, free - working)))


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory did not suffice: CUDA has a class for it, MPS, the CPU and cuBLAS only words."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    said = str(error).lower()
    return isinstance(error, RuntimeError) and any(words in said for words in _NO_MEMORY)


def device_fails(error: BaseException) -> bool:
    """Whether an error is the GPU's own: nothing can be computed on it in this process any more, so the worker has to go."""
    return isinstance(error, RuntimeError) and "CUDA error" in str(error)


def give_back(device: torch.device) -> None:
    """Let go of memory that nothing holds any more."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()


def wide(device: torch.device) -> torch.dtype:
    """What sums over one token are taken in: float64, except on MPS, which has none. Sums over tokens are always float64."""
    return torch.float32 if device.type == "mps" else torch.float64

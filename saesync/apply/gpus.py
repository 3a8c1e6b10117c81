"""Which GPUs the operating system knows of, before torch is asked, and what their driver needs before workers may use it."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from pathlib import Path

NVIDIA = ("nvidia[0-9]*",)
_ALL = (*NVIDIA, "nvhost-*", "kfd", "dxg")  # Linux device files without which there is no GPU to ask torch for
_DEV, _DRIVER = Path("/dev"), Path("/proc/driver/nvidia")
_MAKER = Path("/usr/bin/nvidia-modprobe")
_PATIENCE = 60.0  # seconds: it may load a kernel module


def nodes(patterns: tuple[str, ...]) -> bool:
    """Whether there are device files of such names."""
    return any(found for pattern in patterns for found in _DEV.glob(pattern))


def may_be_here() -> bool:
    """Whether there may be a GPU. Where device files tell nothing, torch has to be asked."""
    return sys.platform != "linux" or nodes(_ALL)


def wake() -> None:
    """Make the device files of NVIDIA's driver where they are missing, as on a machine that was just started.

    The first program that uses CUDA does that, with a set-uid program; a worker cannot, having given up new privileges
    (``isolation.refuse_sockets``), and would find no GPU.
    """
    cards = len(list(_DRIVER.glob("gpus/*")))  # in a container those of the host, also where it has some of them only
    if not cards or (nodes(NVIDIA) and nodes(("nvidia-uvm",))) or not _MAKER.exists():
        return
    words = [str(_MAKER), "-u", *(f"-c={number}" for number in range(cards))]
    with contextlib.suppress(OSError, subprocess.SubprocessError):  # then torch says what it does not find
        subprocess.run(words, check=False, capture_output=True, stdin=subprocess.DEVNULL, timeout=_PATIENCE)  # noqa: S603 (fixed)

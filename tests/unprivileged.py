"""For tests of what root may not do: ``subprocess.run(..., preexec_fn=no_override)``."""

from __future__ import annotations

import ctypes
import os

_DROP, _OVERRIDE, _READ_SEARCH = 24, 1, 2  # PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH


def no_override() -> None:
    """Root reads everything, unless it gives that up."""
    if os.geteuid() == 0:
        for capability in (_OVERRIDE, _READ_SEARCH):
            ctypes.CDLL(None).prctl(_DROP, capability)


def no_privilege() -> None:
    """As an ordinary user, who has no capability that a worker would give up."""
    if os.geteuid() == 0:
        for capability in range(64):
            ctypes.CDLL(None).prctl(_DROP, capability)

"""Pausing the garbage collector while many small values are made and no cycles."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Looking for cycles among 14,000 SAEs is a quarter of the time of planning them, and a third of reading them."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()  # they stay: nobody need look through them now
        if enabled:
            gc.enable()

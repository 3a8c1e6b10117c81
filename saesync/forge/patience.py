"""How long one action of git or the GitHub API may be tried: the same setting as for the Hub."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import TypeVar

from saesync.errors import SaesyncError
from saesync.hub.trouble import Patience, Trouble

T = TypeVar("T")
PATIENCE_SECONDS = 120.0


class Stumbled(Exception):
    """An attempt failed; ``trouble`` says whether another may help. Never leaves this package."""

    def __init__(self, error: SaesyncError, retry: bool, wait: float | None = None) -> None:
        self.trouble = Trouble(error, retry, wait)
        super().__init__(error.diagnostics[0].summary)


def patience_seconds() -> float:
    """``SAESYNC_RETRY_SECONDS``, else 120."""
    chosen = os.environ.get("SAESYNC_RETRY_SECONDS", "")
    return float(chosen) if re.fullmatch(r"\d+(\.\d+)?", chosen) else PATIENCE_SECONDS


def patiently(action: Callable[[], T]) -> T:
    """Do ``action``, again and again while waiting may help.

    Raises:
        SaesyncError: what stopped it.
    """
    patience = Patience(patience_seconds())
    while True:
        try:
            return action()
        except Stumbled as error:
            trouble = error.trouble
        patience.wait(trouble)

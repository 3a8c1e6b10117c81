"""How long one action of git or the GitHub API may be tried: the same setting as for the Hub."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from saesync.errors import SaesyncError
from saesync.hub.trouble import Patience, Trouble, patience_seconds

T = TypeVar("T")


class Stumbled(Exception):
    """An attempt failed; ``trouble`` says whether another may help. Never leaves this package."""

    def __init__(self, error: SaesyncError, retry: bool, wait: float | None = None) -> None:
        self.trouble = Trouble(error, retry, wait)
        super().__init__(error.diagnostics[0].summary)


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

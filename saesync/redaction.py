"""Secrets that this process learnt while it ran: never printed, whoever quotes them."""

from __future__ import annotations

import threading

_HIDDEN = "***"
_lock = threading.Lock()
_secrets: list[str] = []


def hide(secret: str) -> None:
    """Take ``secret`` out of everything that is printed from now on."""
    with _lock:
        if secret and secret not in _secrets:
            _secrets[:] = sorted((*_secrets, secret), key=len, reverse=True)  # one may be part of another


def redacted(text: str) -> str:
    """``text`` without any of the secrets."""
    for secret in tuple(_secrets):
        text = text.replace(secret, _HIDDEN)
    return text

"""Secrets that this process learnt while it ran: never printed, whoever quotes them."""

from __future__ import annotations

import threading

_HIDDEN = "***"
_lock = threading.Lock()
_secrets: tuple[str, ...] = ()


def hide(secret: str) -> None:
    """Take ``secret`` out of everything that is printed from now on."""
    global _secrets
    with _lock:
        if secret and secret not in _secrets:
            _secrets = tuple(sorted((*_secrets, secret), key=len, reverse=True))


def redacted(text: str) -> str:
    """``text`` without any of the secrets."""
    for secret in _secrets:
        text = text.replace(secret, _HIDDEN)
    return text

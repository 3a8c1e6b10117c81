"""Secrets are never printed, whoever quotes them: those this process learnt while it ran, and those that foreign text holds."""

from __future__ import annotations

import re
import threading

_HIDDEN = "***"
_NAME = r"(?:token|secret|passw(?:or)?d|credentials?|dsn|(?:api|private|access)_?key)"
_VARIABLE = r"""(?-i:["']?[A-Z][A-Z0-9_]*(?:["'\s,}\]#]|$))"""  # what ``dsn_from`` is meant to hold
_NAMED = re.compile(
    rf"""({_NAME}(?:_from["']?\s*[:=]\s*(?!{_VARIABLE})|["']?\s*[:=]\s*))("[^"]+|'[^']+|[^\s"',}}\]#]+)""", re.IGNORECASE
)
_IN_ADDRESS = re.compile(r"(://)([^/@\s]+)(?=@)")  # user and password
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


def masked(text: str) -> str:
    """A line of YAML or prose, with asterisks for what is a secret by its name or its place in an address; as long as before."""
    for pattern in (_NAMED, _IN_ADDRESS):
        text = pattern.sub(lambda found: found[1] + "*" * len(found[2]), text)
    return text

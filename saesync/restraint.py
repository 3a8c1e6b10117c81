"""What this process does not do while it reads manifests that anybody may have written (`saesync plan --untrusted`).

No token is sent, no plugin is loaded, no other Hub than the official one is asked. A state of the whole process, because
that is what has to be restrained: threads, caches and the environment are shared by all that runs in it. Standard library only.
"""

from __future__ import annotations

import os
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager

from saesync.errors import Refused

HUB = "https://huggingface.co"
_LOOPBACK = ("127.0.0.1", "::1", "localhost")  # a Hub on this very machine, as tests have one

_restrained = False


def restrained() -> bool:
    """Whether tokens, plugins and other endpoints are off."""
    return _restrained


@contextmanager
def restraint() -> Iterator[None]:
    """Restrain this process until the block ends.

    Raises:
        Refused: ``HF_ENDPOINT`` names another Hub.
    """
    global _restrained  # noqa: PLW0603 - the process's own state, see above
    _check_endpoint(os.environ.get("HF_ENDPOINT", ""))
    before, _restrained = _restrained, True
    try:
        yield
    finally:
        _restrained = before


def _check_endpoint(address: str) -> None:
    if not address or address.rstrip("/") == HUB:
        return
    try:
        host = urllib.parse.urlsplit(address).hostname
    except ValueError:
        host = None
    if host not in _LOOPBACK:
        detail = f"HF_ENDPOINT is set, and untrusted manifests are planned against {HUB} only. Unset it."
        raise Refused("Endpoint is refused", detail)

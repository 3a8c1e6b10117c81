"""What went wrong with a GitHub request, in the words of the error tree, and whether waiting may help.

Nothing of a request but its path, and nothing of an answer but its status, its limits and its short message gets into an error.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from saesync.errors import NotVisible, Refused, SaesyncError, Unavailable
from saesync.inert import plain

_SECONDARY = 30.0
"""Seconds GitHub wants to be left alone after a secondary rate limit that names none."""


@dataclass(frozen=True, slots=True)
class Trouble:
    """``error`` is what the user sees if this is the end. ``wait``: the seconds the server asked for. ``undone``: nothing took
    effect, so that even a POST may be repeated. ``message`` is the server's own."""

    error: SaesyncError
    status: int | None = None
    message: str = ""
    retry: bool = False
    wait: float | None = None
    undone: bool = False


def trouble_of(error: Exception, host: str, path: str) -> Trouble | None:
    """What an exception of PyGithub or of the transport under it means; None for anything else."""
    import requests
    from github import GithubException

    if isinstance(error, GithubException):
        return _answered(error.status, error.headers or {}, _message(error.data), host, path)
    if isinstance(error, requests.exceptions.RequestException):
        detail = f"{host} could not be reached ({type(error).__name__}) for {path}. Run the same command again."
        return Trouble(Unavailable("GitHub cannot be reached", detail), retry=True)
    if isinstance(error, RuntimeError) and "redirected" in str(error):
        return Trouble(Refused("GitHub has moved", f"{host} sends us to another address for {path}. Set GITHUB_API_URL to it."))
    return None


def _message(data: Any) -> str:
    return plain(data.get("message") or "", 200) if isinstance(data, dict) else ""


def _answered(status: int, headers: Mapping[str, str], message: str, host: str, path: str) -> Trouble:
    if status == 429 or (status == 403 and _limited(headers, message)):
        wait = _asked_wait(headers)
        detail = f"{host} wants no more requests of this token for {wait:,.0f} s. Run the same command again after that."
        return Trouble(Unavailable("GitHub's rate limit is used up", detail), status, message, retry=True, wait=wait, undone=True)
    said = f": {message}" if message else ""
    if status == 401:
        detail = f"{host} does not accept GITHUB_TOKEN (401{said}). It may have expired, or be another server's."
        return Trouble(NotVisible("GitHub refuses the token", detail), status, message)
    if status in (403, 404):
        detail = f"{host} answers {status} for {path}{said}. The token needs a permission for it, or it is not there."
        return Trouble(NotVisible("GitHub does not show it", detail), status, message)
    if status >= 500:
        detail = f"{host} answers {status} for {path}{said}. Run the same command again."
        return Trouble(Unavailable("GitHub is in trouble", detail), status, message, retry=True)
    return Trouble(Refused("GitHub refuses the request", f"{host} answers {status} for {path}{said}."), status, message)


def _limited(headers: Mapping[str, str], message: str) -> bool:
    return "retry-after" in headers or headers.get("x-ratelimit-remaining") == "0" or "rate limit" in message.lower()


def _asked_wait(headers: Mapping[str, str]) -> float:
    after, reset = headers.get("retry-after", ""), headers.get("x-ratelimit-reset", "")
    if after.isdigit():
        return float(after)
    if headers.get("x-ratelimit-remaining") == "0" and reset.isdigit():
        return max(1.0, float(reset) - time.time() + 1)
    return _SECONDARY

"""What went wrong with a request to GitHub's API, in the words of the error tree."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from saesync.errors import Missing, NotVisible, Refused, SaesyncError, Unavailable
from saesync.forge.credentials import HOW, Credentials
from saesync.forge.patience import Stumbled
from saesync.hub.answers import asked_wait
from saesync.inert import plain

if TYPE_CHECKING:
    from github import GithubException

_AGAIN = "Run the same command again later; what is done is kept."
_SCOPE = (
    "A classic token needs the scope `repo` (`public_repo` for public repositories); a fine-grained one needs read and write "
    "access to contents and pull requests of the repository it writes to"
)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a request was for. ``what`` completes "GitHub was asked to ..."."""

    what: str
    where: str
    write: bool = False


def failures() -> tuple[type[Exception], ...]:
    """What PyGithub raises for trouble: its own, its HTTP library's, and bare ones for redirects and garbled answers. The bare
    ones are trouble only where ``is_trouble`` says so."""
    import requests
    from github import GithubException
    from github.GithubException import BadAttributeException

    bare = (RuntimeError, ValueError, AssertionError, TypeError, LookupError, AttributeError)
    return (GithubException, BadAttributeException, requests.RequestException, *bare)


def is_trouble(error: Exception) -> bool:
    """Whether the client raised it; an error raised by our own code is a bug of ours."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is None or not trace.tb_frame.f_globals.get("__name__", "").startswith("saesync.")


def stumbled(error: Exception, wanted: Wanted, credentials: Credentials) -> Stumbled:
    """The trouble behind an exception of PyGithub."""
    import requests
    from github import GithubException

    host = credentials.server.host
    if isinstance(error, GithubException):
        return _answered(error, wanted, credentials)
    if isinstance(error, requests.JSONDecodeError) or not isinstance(error, requests.RequestException | OSError):
        if isinstance(error, RuntimeError) and "redirected" in str(error):
            detail = f"The API of {host} redirects to another address. Check GITHUB_API_URL and the name {wanted.where}."
            return Stumbled(NotVisible("GitHub address may be wrong", detail), False)
        detail = f"GitHub ({host}) was asked to {wanted.what}; its answer is not what GitHub sends. Is GITHUB_API_URL right?"
        return Stumbled(Unavailable("Unexpected answer from GitHub", detail), True)
    if isinstance(error, requests.exceptions.InvalidHeader | requests.exceptions.InvalidURL):
        return Stumbled(Missing("Token is not usable", f"The token cannot be sent to {host}. {HOW}"), False)
    detail = (
        f"The connection to {host} failed when GitHub was asked to {wanted.what}. Check the network and GITHUB_API_URL. {_AGAIN}"
    )
    return Stumbled(Unavailable("GitHub cannot be reached", detail), True)


def said(data: Any, credentials: Credentials) -> str:
    """GitHub's own message with those of single errors, as one line safe to show."""
    if not isinstance(data, dict):
        return "no message"
    errors = data.get("errors")
    parts = [data.get("message")]
    for error in errors if isinstance(errors, list) else ():
        parts.append(error.get("message") or error.get("field") if isinstance(error, dict) else error)
    line = "; ".join(str(part) for part in parts if part)
    return plain(credentials.redact(line), 300).rstrip(".") or "no message"


def _answered(error: GithubException, wanted: Wanted, credentials: Credentials) -> Stumbled:
    status, words = error.status, said(error.data, credentials)
    headers: Mapping[str, str] = error.headers or {}
    limited, wait = rationed(status, headers, words)
    if limited:
        hint = "" if wait is None else f" and asks to wait {wait:.0f} s"
        more = "" if credentials.token else f" Without a token it allows few. {HOW}"
        detail = f"GitHub was asked to {wanted.what} and allows no more requests for now{hint}.{more} {_AGAIN}"
        return Stumbled(Unavailable("GitHub rations requests", detail), True, wait)
    if status in (408, 425) or status >= 500:
        detail = f"GitHub was asked to {wanted.what} and answered with error {status}, also after several attempts. {_AGAIN}"
        return Stumbled(Unavailable("GitHub is in trouble", detail), True, wait)
    return Stumbled(_refused(status, words, wanted, credentials), False)


def rationed(status: int, headers: Mapping[str, str], words: str) -> tuple[bool, float | None]:
    """Whether an answer is a rate limit, primary or secondary, and how many seconds it asks to wait (None: it does not say)."""
    wait = asked_wait(headers.get("retry-after"), None)
    used_up = headers.get("x-ratelimit-remaining") == "0"
    if not (status == 429 or (status == 403 and (wait is not None or used_up or "rate limit" in words.lower()))):
        return False, None
    reset = headers.get("x-ratelimit-reset", "")
    if wait is None and used_up and reset.isdigit():
        wait = max(0.0, int(reset) - time.time()) + 1.0  # it is not said when in that second
    return True, wait


def _refused(status: int, words: str, wanted: Wanted, credentials: Credentials) -> SaesyncError:
    if status == 401 and credentials.token is not None:
        return NotVisible("Token is not valid", f"GitHub does not accept the token: it is mistyped, expired or revoked. {HOW}")
    if status in (401, 403, 404) and wanted.write:
        if credentials.token is None:
            return Missing("No token", f"GitHub asks for a token to {wanted.what}. {HOW}")
        return Missing("Token may not do this", f"GitHub was asked to {wanted.what} and refused ({words}). {_SCOPE}.")
    if status in (401, 403, 404):
        hint = "Check the name and what the token may read." if credentials.token else f"Check the name, or give a token. {HOW}"
        return NotVisible("Registry is not visible", f"GitHub was asked to {wanted.what} and refused ({words}). {hint}")
    return Refused("GitHub refused the request", f"GitHub was asked to {wanted.what} and answered {status}: {words}.")

"""What went wrong with a Hub request, in the words of the error tree, and whether waiting may help.

Nothing of a request but repo names, status codes and the server's own short message reaches an error: URLs may be signed,
headers hold the token, and transport errors may quote either.
"""

from __future__ import annotations

import errno
import os
import random
import re
import time
import urllib.parse
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from saesync.errors import Conflict, Missing, NotVisible, Refused, SaesyncError, Unavailable, renamed
from saesync.hub.answers import reason_in, renamed_to, wait_of
from saesync.hub.reach import Reach

if TYPE_CHECKING:
    import httpx2

CONNECT_SECONDS = 15.0
PATIENCE_SECONDS = 120.0
LONGEST_WAIT = 30.0
MAX_ATTEMPTS = 12
CLIENT_WAITS = 23.0  # seconds for which huggingface_hub tries again by itself, five times
XET_WAITS = 110.0  # seconds and more for which hf_xet tries again by itself, until it tells of trouble that may pass
MISREAD = (KeyError, TypeError, AttributeError, IndexError)
"""What huggingface_hub raises when it takes an answer apart that is not of the form it expects."""

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_XET_ANSWER = re.compile(r"HTTP status (?:client|server) error \((\d{3})\b")
_UPLOAD = re.compile(r"/(?:preupload|info/lfs)/")
_XET_TRIED = re.compile(r"(?:Network|Server) error: ")
_TRY_LATER = "Run the same command again later; what is finished is kept."


@dataclass(frozen=True, slots=True)
class Asked:
    """What a request was for. ``what`` completes "The Hub was asked to ..."."""

    what: str
    repo: str
    kind: str = "model"
    write: bool = False

    @property
    def page(self) -> str:
        """Path of the repo's page under the endpoint."""
        return self.repo if self.kind == "model" else f"{self.kind}s/{self.repo}"


@dataclass(frozen=True, slots=True)
class Trouble:
    """``error`` is what the user sees if this is the end; ``wait`` is what the server asked for, in seconds; ``cost`` is time
    that a timeout, or the client's own patience, has already used up; ``unreachable``: no connection could be made to the
    endpoint."""

    error: SaesyncError
    retry: bool
    wait: float | None = None
    cost: float = 0.0
    unreachable: bool = False


class Answered(Exception):
    """The Hub answered with something that is not success. Never leaves this package."""

    def __init__(self, response: httpx2.Response) -> None:
        self.response = response
        super().__init__(f"status {response.status_code}")


class Unsettled(Exception):
    """A write may have taken effect or not, or somebody else's came first: look again, then decide.

    ``trouble.error`` is what to raise when patience is used up.
    """

    def __init__(self, trouble: Trouble) -> None:
        self.trouble = trouble
        super().__init__(trouble.error.diagnostics[0].summary)


class Garbled(Exception):
    """The answer is not of the form the Hub documents. Never leaves this package."""


def patience_seconds() -> float:
    """How long one action may be tried, on the Hub, with git and with GitHub: ``SAESYNC_RETRY_SECONDS``, else 120.

    Raises:
        Refused: the variable says no number.
    """
    chosen = os.environ.get("SAESYNC_RETRY_SECONDS", "").strip()
    if not chosen:
        return PATIENCE_SECONDS
    if not re.fullmatch(r"\d{1,9}(\.\d+)?", chosen):
        detail = "SAESYNC_RETRY_SECONDS has to be a number of seconds, such as 120. Correct it, or unset it."
        raise Refused("Environment variable is not usable", detail)
    return float(chosen)


class Patience:
    """Waits between attempts of one action, at most ``seconds`` in all, and raises the trouble's error when they are used up.

    For an endpoint that cannot be reached all actions wait together, on ``reach``.
    """

    def __init__(self, seconds: float, reach: Reach | None = None) -> None:
        self._seconds = seconds
        self._reach = reach if reach is not None else Reach()
        self._used = 0.0
        self._attempt = 0

    def renew(self) -> None:
        """Something was achieved: start counting again."""
        self._used, self._attempt = 0.0, 0

    @property
    def hopeless(self) -> bool:
        """Whether other actions have waited long enough for the endpoint to be reachable."""
        return self._reach.gone(self._seconds)

    def wait(self, trouble: Trouble) -> None:
        """Sleep before the next attempt.

        Raises:
            SaesyncError: the trouble's own, when waiting cannot help or would take too long.
        """
        backoff = min(LONGEST_WAIT, 0.5 * 2**self._attempt) * random.uniform(0.75, 1.0)  # noqa: S311 (spreads clients, no secret)
        pause = max(backoff, trouble.wait or 0.0)  # a server may ask for no wait at all, again and again
        self._attempt += 1
        self._used += pause + trouble.cost
        if not trouble.retry or self._used > self._seconds or self._attempt >= MAX_ATTEMPTS:
            raise trouble.error from None
        if trouble.unreachable and self._reach.gone(self._seconds, pause):
            raise trouble.error from None
        time.sleep(pause)


def host_of(site: str) -> str:
    """Host and port of an endpoint."""
    return urllib.parse.urlsplit(site).netloc


def diagnose(error: BaseException, asked: Asked, token: str | None, site: str) -> Trouble | None:
    """The trouble behind an exception of the Hub client; None when it is not one (a bug, an unreadable local file).

    ``site`` is the endpoint without credentials.
    """
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    host = host_of(site)
    if isinstance(error, Answered | HfHubHTTPError):
        found = answered(error.response, asked, token, site)
        return replace(found, cost=_client_waited(error.response, host)) if isinstance(error, HfHubHTTPError) else found
    if isinstance(error, OfflineModeIsEnabled):
        return Trouble(Unavailable("Offline mode is on", "HF_HUB_OFFLINE is set; unset it to reach the Hub."), False)
    if isinstance(error, Garbled) or (isinstance(error, MISREAD) and _of_the_client(error)):
        return Trouble(_unexpected(host, asked), True)
    if isinstance(error, httpx2.UnsupportedProtocol | httpx2.InvalidURL):
        detail = "HF_ENDPOINT is not a web address; it must begin with https:// (or http://), as https://huggingface.co does."
        return Trouble(Missing("Hub address is not usable", detail), False)
    if isinstance(error, httpx2.HTTPError):
        found = _transport(error, asked, host)
        return replace(found, cost=max(found.cost, CLIENT_WAITS)) if asked.write and _upload_failed(error, host) else found
    cause = error.__cause__
    if isinstance(error, RuntimeError) and cause is not None:  # the client's wrapper around a failed upload
        return diagnose(cause, asked, token, site)
    if isinstance(error, OSError) and error.errno in _DISK_FULL:
        return Trouble(Missing("Disk is full", f"No space is left to {asked.what}. Free some space and run again."), False)
    if isinstance(error, ConnectionError | TimeoutError) or _from_xet(error):
        waited = XET_WAITS if _XET_TRIED.match(str(error)) else 0.0
        return _answered_to_xet(error, asked, token, host) or Trouble(_cut(asked, host), True, cost=waited)
    return None


def _of_the_client(error: BaseException) -> bool:
    """Whether huggingface_hub raised it, not code of ours that it was called with."""
    at = error.__traceback__
    while at is not None and at.tb_next is not None:
        at = at.tb_next
    return at is not None and str(at.tb_frame.f_globals.get("__name__")).startswith("huggingface_hub.")


def _client_waited(response: httpx2.Response, host: str) -> float:
    """Seconds for which huggingface_hub has tried again by itself."""
    return CLIENT_WAITS if _uploads(response.request.url, host) and response.status_code >= 500 else 0.0


def _uploads(url: httpx2.URL, host: str) -> bool:
    """Whether the client tries such a request of a commit again by itself: before uploads and in them, never the commit."""
    return _UPLOAD.search(url.path) is not None or not _is_at(url, host)


def answered(response: httpx2.Response, asked: Asked, token: str | None, site: str) -> Trouble:
    """The trouble behind an answer that is not success."""
    host = host_of(site)
    status, code = response.status_code, response.headers.get("X-Error-Code", "")
    if not _is_at(response.request.url, host) and status in (401, 403, 404):
        # The object store: its signed address has expired or is not there yet. A new attempt gets a new one.
        return Trouble(_store_refused(status, asked, host), True)
    if status == 429:
        wait = wait_of(response)
        return Trouble(_rationed(asked, wait), True, wait)
    if status in (408, 425) or status >= 500:
        wait = wait_of(response)
        return Trouble(_broken(status, asked, host, wait), True, wait)
    if status in (409, 412) and asked.write:
        detail = f"{asked.repo} was changed by somebody else again and again while it was written to. Make a new plan."
        return Trouble(Conflict("Repository keeps changing", detail), True)
    if 300 <= status < 400:
        return Trouble(_renamed(response, asked), False)
    said = reason_in(response, token)
    if status in (401, 403, 404):
        refused = (
            _refused_write(status, asked, token, said) if asked.write else _invisible(status, code, asked, token, said, site)
        )
        return Trouble(refused, False)
    return Trouble(Refused("Hub refused the request", f"The Hub was asked to {asked.what} and answered {status}{said}."), False)


def invalid_token() -> NotVisible:
    """The Hub does not accept the token at all."""
    return NotVisible(
        "Token is not valid", "The Hub does not accept the token: it is mistyped, expired or revoked. `hf auth login`."
    )


def _invisible(status: int, code: str, asked: Asked, token: str | None, said: str, site: str) -> NotVisible:
    name = f"{asked.kind} {asked.repo}"
    if code == "GatedRepo":
        do = "" if token else " and give a token (`hf auth login` or HF_TOKEN)"
        return NotVisible("Repository is gated", f"Access to {name} has to be granted: ask for it on {site}/{asked.page}{do}.")
    if token is None:
        detail = "is private, gated or not there; without a token the Hub does not say which. Do `hf auth login` or set HF_TOKEN."
        return NotVisible("Repository needs a token", f"The {name} {detail}")
    if status == 401:
        return invalid_token()
    if status == 403:
        return NotVisible("Token may not read this", f"The token may not read {name}{said}. Use one with read access to it.")
    if code == "EntryNotFound":
        return NotVisible("File is not there", f"The Hub was asked to {asked.what}, but there is no such file at that commit.")
    if code == "RevisionNotFound":
        do = "Correct the revision, or remove it and let `saesync pin` fill it in."
        return NotVisible("Commit is not there", f"The {name} is there, but no commit of that hash. {do}")
    if code:
        detail = f"The Hub shows this token no {name}: it does not exist, or it is private. Check the name and the token."
        return NotVisible("Repository is not visible", detail)
    detail = f"{host_of(site)} answered 404 without saying what is missing. Is HF_ENDPOINT the address of a Hub?"
    return NotVisible("Hub address may be wrong", detail)


def _refused_write(status: int, asked: Asked, token: str | None, said: str) -> SaesyncError:
    if token is None:
        return Missing("No token", f"A token with write access to {asked.repo} is needed: `hf auth login` or HF_TOKEN.")
    if status == 401:
        return invalid_token()
    return Missing("Token may not write", f"The token may not write to {asked.repo}{said}. Use one with write access to it.")


def _rationed(asked: Asked, wait: float | None) -> Unavailable:
    hint = "" if wait is None else f" and asks to wait {wait:.0f} s"
    detail = f"The Hub was asked to {asked.what} and allows no more requests for now{hint}. {_TRY_LATER}"
    return Unavailable("Hub rations requests", detail)


def _renamed(response: httpx2.Response, asked: Asked) -> SaesyncError:
    now = renamed_to(response, asked.kind)
    if now is None:
        return Unavailable("Unexpected answer from the Hub", f"The Hub was asked to {asked.what} and pointed somewhere unknown.")
    return renamed(asked.repo, now)


def _transport(error: httpx2.HTTPError, asked: Asked, host: str) -> Trouble:
    import httpx2

    if isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout | httpx2.ProxyError):
        return _not_connected(error, asked, host)
    if isinstance(error, httpx2.TimeoutException):
        detail = f"{host} did not answer in time when asked to {asked.what}. {_TRY_LATER}"
        return Trouble(Unavailable("Hub does not answer", detail), True, cost=15.0)
    if isinstance(error, httpx2.LocalProtocolError):
        return Trouble(bad_token(), False)
    return Trouble(_cut(asked, host), True)


def unreachable(asked: Asked, host: str, cost: float = 0.0) -> Trouble:
    """No connection could be made to the endpoint; ``cost`` as in ``Trouble``."""
    detail = f"No connection to {host}, needed to {asked.what}. Check the network, proxy and HF_ENDPOINT. {_TRY_LATER}"
    return Trouble(Unavailable("Hub cannot be reached", detail), True, cost=cost, unreachable=True)


def bad_token() -> Missing:
    """The token cannot be put into a request header."""
    return Missing("Token is not usable", "The token holds characters no Hub token has. Log in again: `hf auth login`.")


def _cut(asked: Asked, host: str) -> Unavailable:
    detail = f"The connection to {host} broke again and again when asked to {asked.what}. {_TRY_LATER}"
    return Unavailable("Connection to the Hub was lost", detail)


def _broken(status: int, asked: Asked, host: str, wait: float | None = None) -> Unavailable:
    hint = f" and asks to wait {wait:.0f} s" if wait else ", also after several attempts"
    detail = f"The Hub ({host}) was asked to {asked.what} and answered with error {status}{hint}."
    return Unavailable("Hub is in trouble", f"{detail} {_TRY_LATER}")


def _store_refused(status: int, asked: Asked, host: str) -> Unavailable:
    detail = f"The object store behind {host} answered {status}, also after several attempts to {asked.what}. {_TRY_LATER}"
    return Unavailable("Hub is in trouble", detail)


def _unexpected(host: str, asked: Asked) -> Unavailable:
    detail = f"{host} was asked to {asked.what}; its answer is not what a Hub sends. Is HF_ENDPOINT right? {_TRY_LATER}"
    return Unavailable("Unexpected answer from the Hub", detail)


def _from_xet(error: BaseException) -> bool:
    """hf_xet raises builtin RuntimeErrors and OSErrors of its own for network trouble, without an errno."""
    return type(error) is RuntimeError or (type(error) is OSError and error.errno is None)


def _answered_to_xet(error: BaseException, asked: Asked, token: str | None, host: str) -> Trouble | None:
    """The trouble behind an answer to hf_xet, which tells of it in words, with the address; None when nothing was answered.

    The Hub itself gives out the token for the object store to those who may write; all else is between the store and hf_xet.
    """
    found = _XET_ANSWER.search(str(error))
    if found is None:
        return None
    status = int(found[1])
    if status == 429:
        return Trouble(_rationed(asked, None), True, cost=XET_WAITS)
    if status in (408, 425) or status >= 500:
        return Trouble(_broken(status, asked, host), True, cost=XET_WAITS)
    if status in (401, 403) and "xet-write-token" in str(error):
        return Trouble(_refused_write(status, asked, token, ""), False)
    return Trouble(_store_refused(status, asked, host), True)


def _upload_failed(error: httpx2.HTTPError, host: str) -> bool:
    try:
        return _uploads(error.request.url, host)
    except RuntimeError:  # raised outside of any request
        return False


def _not_connected(error: httpx2.HTTPError, asked: Asked, host: str) -> Trouble:
    import httpx2

    cost = CONNECT_SECONDS if isinstance(error, httpx2.ConnectTimeout) else 0.0
    try:
        url = error.request.url
    except RuntimeError:  # raised outside of any request
        return unreachable(asked, host, cost)
    if _is_at(url, host):
        return unreachable(asked, host, cost)
    return replace(unreachable(asked, url.host, cost), unreachable=False)  # an object store


def _is_at(url: httpx2.URL, host: str) -> bool:
    """Whether an address is at ``host`` (host and port as in HF_ENDPOINT); case and the scheme's own port do not count."""
    import httpx2

    ours = httpx2.URL(f"{url.scheme}://{host}")
    return (url.host, url.port) == (ours.host, ours.port)

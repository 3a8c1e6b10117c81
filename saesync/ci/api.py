"""GitHub's REST API through PyGithub: bounded patience, one error per kind of trouble, no token in any of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import quote, urlsplit

from saesync import __version__
from saesync.ci.trouble import Trouble, trouble_of
from saesync.errors import Missing, NotVisible, Refused, Unavailable

PATIENCE = 60.0
"""Seconds that one command waits for GitHub in all."""

_PAGE = 100
_FIRST_WAIT = 1.0
_TIMEOUT = 30
_LOOPBACK = ("127.0.0.1", "::1", "localhost")
T = TypeVar("T")


class Unsure(Unavailable):
    """A request may or may not have taken effect: look again, then decide."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What a path shows to this token: ``value``, or None with the ``status`` and ``why`` it is not shown (403, 404)."""

    value: Any
    status: int = 200
    why: str = ""


class GitHub:
    """One GitHub, asked as the owner of ``token`` (None: as nobody). ``url`` is the root of its REST API."""

    def __init__(
        self, url: str, token: str | None, patience: float = PATIENCE, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        """
        Raises:
            Refused: ``url`` would send the token in the clear.
        """
        import github

        self.host = _checked(url)
        auth = github.Auth.Token(token) if token else None
        self._requester = github.Github(
            auth=auth,
            base_url=url.rstrip("/"),
            user_agent=f"saesync/{__version__}",
            timeout=_TIMEOUT,
            retry=None,  # waits are bounded here, and a POST is never sent twice blindly
            seconds_between_requests=None,
            seconds_between_writes=None,
        ).requester
        self._left = patience
        self._sleep = sleep

    def get(self, path: str, **parameters: Any) -> Any:
        """The JSON at a path.

        Raises:
            NotVisible: 401, 403, 404.
            Unavailable: network, server or quota, after waiting.
        """
        return self._call("GET", path, parameters, None)

    def look(self, path: str, **parameters: Any) -> Seen:
        """The same where not being shown is an answer too."""
        try:
            return Seen(self._call("GET", path, parameters, None))
        except _Hidden as error:
            return Seen(None, error.status, error.why)

    def pages(self, path: str, key: str | None = None, most: int = 10_000, **parameters: Any) -> list[Mapping[str, Any]]:
        """All entries of a list, page by page; ``key`` names the list where the answer is an object.

        Raises:
            Unavailable: there are more than ``most``, or the answer is no such list.
        """
        found: list[Mapping[str, Any]] = []
        while len(found) <= most:
            number = len(found) // _PAGE + 1
            answer = self.get(path, per_page=_PAGE, page=number, **parameters)
            part = answer.get(key) if key is not None and isinstance(answer, dict) else answer
            if not isinstance(part, list) or not all(isinstance(entry, dict) for entry in part):
                raise Unavailable("GitHub's answer is not understood", f"{self.host} gave no list for {path}. Try again later.")
            found += part
            if len(part) < _PAGE:
                return found
        raise Unavailable("GitHub's list is too long", f"{path} has more than {most:,} entries.")

    def send(self, verb: str, path: str, body: Mapping[str, Any]) -> Any:
        """Change something. PATCH, PUT and DELETE say the same twice as once, and are repeated like GET.

        Raises:
            Unsure: a POST whose answer was lost.
            NotVisible, Refused, Unavailable: it was not done.
        """
        return self._call(verb, path, {}, dict(body))

    def converge(self, attempt: Callable[[], T]) -> T:
        """Run what looks first and then writes, again while the answer to its POST is lost.

        Raises:
            Unavailable: the patience is used up.
        """
        wait = _FIRST_WAIT
        while True:
            try:
                return attempt()
            except Unsure as error:
                self._wait(wait, error)
                wait *= 2

    def _call(self, verb: str, path: str, parameters: Mapping[str, Any], body: Mapping[str, Any] | None) -> Any:
        wait = _FIRST_WAIT
        while True:
            trouble = None
            try:
                return self._requester.requestJsonAndCheck(verb, path, parameters=dict(parameters), input=body)[1]
            except (
                Exception
            ) as error:  # of the client and of what it stands on, of many kinds; what is none of theirs is raised again
                trouble = trouble_of(error, self.host, path)
                if trouble is None:
                    raise
            # outside of the handler: the client's own exceptions quote headers
            self._judge(trouble, verb, wait)
            wait *= 2

    def _judge(self, trouble: Trouble, verb: str, wait: float) -> None:
        """Wait, or raise what the trouble comes to."""
        if trouble.status in (403, 404) and isinstance(trouble.error, NotVisible):
            raise _Hidden(trouble)
        if not trouble.retry:
            raise trouble.error
        if verb == "POST" and not trouble.undone:
            found = trouble.error.diagnostics[0]
            raise Unsure(found.summary, found.detail)
        self._wait(wait if trouble.wait is None else trouble.wait, trouble.error)

    def _wait(self, seconds: float, error: Exception) -> None:
        if seconds > self._left:
            raise error
        self._left -= seconds
        self._sleep(seconds)


class _Hidden(NotVisible):
    """403 or 404, with the status for those to whom it is an answer."""

    def __init__(self, trouble: Trouble) -> None:
        found = trouble.error.diagnostics[0]
        super().__init__(found.summary, found.detail)
        self.status, self.why = trouble.status or 0, trouble.message


def part(text: str) -> str:
    """One component of a path, quoted."""
    return quote(text, safe="")


def connect(url: str, variables: Mapping[str, str], needed: bool = True) -> GitHub:
    """GitHub as the owner of GITHUB_TOKEN, else of GH_TOKEN.

    Raises:
        Missing: there is no token, and one is ``needed``.
    """
    token = (variables.get("GITHUB_TOKEN") or variables.get("GH_TOKEN") or "").strip()
    if needed and not token:
        detail = "Set GITHUB_TOKEN. In a workflow: `env: {GITHUB_TOKEN: ${{ github.token }}}` on the step."
        raise Missing("No GitHub token", detail)
    return GitHub(url, token or None)


def _checked(url: str) -> str:
    """The host of an API address.

    Raises:
        Refused: it is not https, and not on this machine either.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        parts, host, port = urlsplit(""), "", None
    safe = parts.scheme == "https" or (parts.scheme == "http" and host in _LOOPBACK)
    if not host or not safe or parts.username or parts.password or parts.query or parts.fragment:
        detail = "GITHUB_API_URL is an https address such as https://api.github.com or https://ghe.example.org/api/v3."
        raise Refused("GitHub address is refused", detail)
    return host if port is None else f"{host}:{port}"

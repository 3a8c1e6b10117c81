"""Requests to one Hub: the shared HTTP session of huggingface_hub, an explicit token per call, bounded retries."""

from __future__ import annotations

import contextlib
import re
import time
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from saesync import __version__
from saesync.errors import NotVisible, Unavailable
from saesync.hub import oidc
from saesync.hub.answers import wait_of
from saesync.hub.opening import discreet, library_constants, opened
from saesync.hub.reach import Reach, reach_of
from saesync.hub.trouble import (
    CONNECT_SECONDS,
    LONGEST_WAIT,
    MISREAD,
    Answered,
    Asked,
    Garbled,
    Patience,
    Trouble,
    Unsettled,
    bad_token,
    diagnose,
    host_of,
    patience_seconds,
    unreachable,
)
from saesync.restraint import restrained

if TYPE_CHECKING:
    import httpx2
    from huggingface_hub import HfApi

T = TypeVar("T")
READ_SECONDS = 60.0
WRITE_READ_SECONDS = 600.0  # a commit of thousands of files may be answered late
_MAX_PAGES = 2_000
_REPO = re.compile(r"(?!.*(?:--|\.\.))[\w][\w.-]{0,95}(?:/[\w][\w.-]{0,95})?", re.ASCII)


class Client:
    """Talks to one endpoint (None: the one huggingface_hub is set to, ``HF_ENDPOINT``).

    ``patience`` is the most seconds spent waiting for one action to succeed (None: ``SAESYNC_RETRY_SECONDS``, else 120).
    No token is ever kept here but those that ``SAESYNC_HF_OIDC`` exchanged.

    Raises:
        Missing: ``HF_OIDC_RESOURCE`` is set.
    """

    def __init__(self, endpoint: str | None = None, patience: float | None = None) -> None:
        oidc.refuse_resource()
        self._endpoint = endpoint
        self._patience = patience
        self._exchange = oidc.Exchange()

    @property
    def endpoint(self) -> str:
        """Address of the Hub, without a slash at its end."""
        if self._endpoint is not None:
            return self._endpoint.rstrip("/")
        endpoint: str = library_constants().ENDPOINT
        return endpoint

    @property
    def host(self) -> str:
        """The endpoint as shown to people: host and port, never credentials that stand in the address."""
        return host_of(self.site)

    @property
    def site(self) -> str:
        """The endpoint as people open it: its own scheme and path, never credentials that stand in the address."""
        parts = urllib.parse.urlsplit(self.endpoint)
        return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()

    def patience(self) -> Patience:
        """A fresh allowance of waiting time."""
        if self._patience is not None:
            return Patience(self._patience, self.reach)
        return Patience(patience_seconds(), self.reach)

    @property
    def reach(self) -> Reach:
        """What is known of the endpoint's being there at all."""
        return reach_of(self.endpoint)

    def token(self) -> str | None:
        """The token from where huggingface_hub looks for it, to read with; None when there is none.

        Raises:
            Missing: there is one but it cannot be used, or ``HF_OIDC_RESOURCE`` would replace it.
        """
        from huggingface_hub import get_token

        oidc.refuse_resource()
        if library_constants().HF_HUB_DISABLE_IMPLICIT_TOKEN or restrained():
            return None
        token = get_token()
        if token is not None and not (token.isascii() and token.isprintable() and " " not in token):
            raise bad_token()
        return token

    def write_token(self, repo: str) -> str | None:
        """The token to write to ``repo`` with: exchanged for this repo alone where ``SAESYNC_HF_OIDC`` asks for that.

        Raises:
            Missing, Unavailable: there is none to be had.
        """
        return self._exchange.token(self, repo) if oidc.wanted() else self.token()

    def session(self) -> httpx2.Client:
        """huggingface_hub's own session, with timeouts: it has none by itself, and a silent server would hang it for ever.

        Nor does huggingface_hub bound how long a server may make it wait, say for the next hour's quota.
        """
        import httpx2
        from huggingface_hub import get_session

        discreet()
        session = opened(get_session)
        session.timeout = httpx2.Timeout(WRITE_READ_SECONDS, connect=CONNECT_SECONDS)
        if _refuse_long_waits not in session.event_hooks["response"]:
            session.event_hooks["response"].append(_refuse_long_waits)
        return session

    def headers(self, token: str | None, more: Mapping[str, str] | None = None) -> dict[str, str]:
        """Headers of a request to this endpoint."""
        found = {"user-agent": f"saesync/{__version__}", **(more or {})}
        if token is not None:
            found["authorization"] = f"Bearer {token}"
        return found

    def get(self, path: str, token: str | None, params: Mapping[str, Any] | None = None) -> httpx2.Response:
        """One GET of an API path, redirects not followed.

        Raises:
            Answered: any answer but 2xx.
        """
        import httpx2

        timeout = httpx2.Timeout(READ_SECONDS, connect=CONNECT_SECONDS)
        response = self.session().get(
            self.endpoint + path, params=params, headers=self.headers(token), timeout=timeout, follow_redirects=False
        )
        self.reach.answered()
        if not response.is_success:
            raise Answered(response)
        return response

    def attempt(self, asked: Asked, action: Callable[[str | None], T], token_of: Callable[[], str | None] | None = None) -> T:
        """Do ``action(token)``, again and again while waiting may help. ``token_of`` gives the token (None: ``token``).

        Raises:
            SaesyncError: what stopped it (NotVisible, Unavailable, Missing, Refused, Conflict).
        """
        patience = self.patience()
        if patience.hopeless:
            raise unreachable(asked, self.host).error
        while True:
            token, began = (self.token if token_of is None else token_of)(), time.monotonic()
            try:
                return action(token)
            except failures() as error:
                trouble = self.trouble(error, asked, token, began)
                if trouble is None:
                    raise
            patience.wait(trouble)

    @contextlib.contextmanager
    def once(self, asked: Asked, token: str | None) -> Iterator[None]:
        """One attempt at a write that must not be repeated blindly.

        Raises:
            Unsettled: the outcome is not known.
            SaesyncError: what stopped it.
        """
        try:
            yield
        except failures() as error:
            trouble = self.trouble(error, asked, token)
            if trouble is None:
                raise
            if not trouble.retry:
                raise trouble.error from None
            raise Unsettled(trouble) from None

    def api(self, token: str | None) -> HfApi:
        """huggingface_hub's own client, with this token or, where it is None, surely none."""
        from huggingface_hub import HfApi

        self.session()
        return HfApi(endpoint=self.endpoint, token=token or False, library_name="saesync")

    def trouble(self, error: BaseException, asked: Asked, token: str | None, began: float | None = None) -> Trouble | None:
        """See ``trouble.diagnose``. ``began`` is when the attempt did (monotonic seconds): name servers may be slow to say no."""
        found = diagnose(error, asked, token, self.site)
        if found is not None and found.unreachable:
            self.reach.failed(found.cost if began is None else time.monotonic() - began)
        return found

    def garbled(self, asked: Asked) -> Unavailable:
        """The error for an answer that makes no sense."""
        trouble = self.trouble(Garbled(), asked, None)
        assert trouble is not None
        assert isinstance(trouble.error, Unavailable)
        return trouble.error

    def json(self, asked: Asked, path: str, params: Mapping[str, Any] | None = None) -> Any:
        """The JSON answer to a GET, with retries."""
        return self.attempt(asked, lambda token: parsed(self.get(path, token, params)))

    def pages(self, asked: Asked, path: str, params: Mapping[str, Any] | None = None) -> Iterator[list[Any]]:
        """The pages of a list, each with retries; every address is on this endpoint, whatever the server links to."""
        for _ in range(_MAX_PAGES):
            page, path_next = self.attempt(asked, lambda token: self._page(path, token, params))  # noqa: B023 (called at once)
            yield page
            if path_next is None:
                return
            path, params = path_next, None
        raise self.garbled(asked)

    def _page(self, path: str, token: str | None, params: Mapping[str, Any] | None) -> tuple[list[Any], str | None]:
        response = self.get(path, token, params)
        page = parsed(response)
        if not isinstance(page, list):
            raise Garbled
        link = response.links.get("next", {}).get("url")
        if not link:
            return page, None
        if link.startswith(self.endpoint + "/"):
            return page, link[len(self.endpoint) :]
        url = urllib.parse.urlsplit(link)
        return page, f"{url.path}?{url.query}" if url.query else url.path


def _refuse_long_waits(response: httpx2.Response) -> None:
    """Hand answers that ask for a long wait to our own patience.

    Raises:
        Answered: this is one.
    """
    if response.is_success or response.has_redirect_location:
        return
    if (wait_of(response) or 0.0) > LONGEST_WAIT:
        raise Answered(response)


def parsed(response: httpx2.Response) -> Any:
    """The JSON body of an answer.

    Raises:
        Garbled: it is not JSON.
    """
    try:
        return response.json()
    except (ValueError, RecursionError) as error:
        raise Garbled from error


def failures() -> tuple[type[Exception], ...]:
    """What we, the Hub client and hf_xet raise; ``Client.trouble`` tells trouble from bugs."""
    import httpx2

    return (Answered, Garbled, httpx2.HTTPError, httpx2.InvalidURL, OSError, RuntimeError, *MISREAD)


def check_name(repo: str) -> str:
    """``repo`` if it is a name the Hub can have.

    Raises:
        NotVisible: it is not.
    """
    if not _REPO.fullmatch(repo):
        detail = f"{repo[:200]!r} is not a name a Hub repository can have: it looks like owner/name, letters, digits and . _ -"
        raise NotVisible("Not a repository name", f"{detail}.")
    return repo


def quoted(text: str, safe: str = "") -> str:
    """``text`` as part of an address."""
    return urllib.parse.quote(text, safe=safe)

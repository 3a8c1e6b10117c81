"""Tokens without a stored secret: a CI job's identity is exchanged for a short-lived token that may write to one repo.

Asked for with ``SAESYNC_HF_OIDC=1``. The Hub client's own ``HF_OIDC_RESOURCE`` does the same for one fixed repo, but silently
takes the place of ``HF_TOKEN`` in every call, reads of sources included; it is refused. The client's exchange is not part of its
public interface and has no time limits, so the two requests are made here.
"""

from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING, Any

from saesync.errors import Missing
from saesync.hub.trouble import Answered, Asked, Garbled
from saesync.redaction import hide
from saesync.restraint import restrained

if TYPE_CHECKING:
    import httpx2

    from saesync.hub.client import Client

SWITCH = "SAESYNC_HF_OIDC"
_GRANT = "urn:ietf:params:oauth:grant-type:token-exchange"
_ID_TOKEN = "urn:ietf:params:oauth:token-type:id_token"  # noqa: S105 (the name of a kind of token)
_MARGIN = 300.0  # seconds before its end in which a token is not used any more
_LASTS = 3600.0  # where the Hub does not say
_SECONDS = 30.0
_TEMPORARY = (408, 425, 429)


def wanted() -> bool:
    """Whether tokens to write with are to be exchanged."""
    return os.environ.get(SWITCH, "") not in ("", "0") and not restrained()


def refuse_resource() -> None:
    """Refuse the variable that would replace every token.

    Raises:
        Missing: ``HF_OIDC_RESOURCE`` is set.
    """
    if os.environ.get("HF_OIDC_RESOURCE"):
        detail = "it would take the place of HF_TOKEN in every call, sources included. Unset it; "
        raise Missing("HF_OIDC_RESOURCE is set", f"{detail}{SWITCH}=1 exchanges a token for each repository published to.")


class Exchange:
    """Exchanged tokens by repo, renewed before they end. Safe to share between threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tokens: dict[str, tuple[str, float]] = {}

    def token(self, client: Client, repo: str) -> str:
        """A token that may write to ``repo``.

        Raises:
            Missing: this is no CI job that may have an identity, or the Hub does not trust it with this repo.
            Unavailable: trouble that outlasted the retries.
        """
        with self._lock:
            known = self._tokens.get(repo)
            if known is not None and time.monotonic() < known[1]:
                return known[0]
            began = time.monotonic()
            asked = Asked(f"exchange this job's identity for a token for {repo}", repo, write=True)
            token, lasts = client.attempt(asked, lambda _: _exchange(client, repo), lambda: None)
            hide(token)
            self._tokens[repo] = (token, began + max(lasts - _MARGIN, lasts / 2))
            return token


def _exchange(client: Client, repo: str) -> tuple[str, float]:
    identity = os.environ.get("HF_OIDC_ID_TOKEN") or _identity(client)
    hide(identity)
    body = {"grant_type": _GRANT, "subject_token_type": _ID_TOKEN, "subject_token": identity, "resource": repo}
    response = client.session().post(
        f"{client.endpoint}/oauth/token", json=body, headers=client.headers(None), timeout=_SECONDS, follow_redirects=False
    )
    refused = (
        f"The Hub gives this job no token for {repo}. In the settings of {repo}, which has to exist already, name repository "
    )
    found = _answer(response, "Hub does not trust this job", f"{refused}and workflow as a trusted publisher.")
    token, lasts = found.get("access_token"), found.get("expires_in", _LASTS)
    if not isinstance(token, str) or not token or not isinstance(lasts, int | float):
        raise Garbled
    return token, float(lasts)


def _identity(client: Client) -> str:
    """The job's identity from GitHub Actions, made out to this Hub and no one else."""
    import httpx2

    address, secret = os.environ.get("ACTIONS_ID_TOKEN_REQUEST_URL"), os.environ.get("ACTIONS_ID_TOKEN_REQUEST_TOKEN")
    if not address or not secret:
        detail = f"{SWITCH} is set, but this job has no identity: in GitHub Actions it needs `permissions: id-token: write`, "
        raise Missing("No identity to exchange", f"{detail}elsewhere give the CI's id token in HF_OIDC_ID_TOKEN.")
    response = client.session().get(
        httpx2.URL(address).copy_merge_params({"audience": client.endpoint}),  # ``params`` would drop those it has already
        headers={"authorization": f"Bearer {secret}"},
        timeout=_SECONDS,
        follow_redirects=False,
    )
    refused = "The CI system gives this job no identity. Check `permissions: id-token: write`."
    value = _answer(response, "No identity to exchange", refused).get("value")
    if not isinstance(value, str) or not value:
        raise Garbled
    return value


def _answer(response: httpx2.Response, summary: str, detail: str) -> dict[str, Any]:
    """The JSON of an answer.

    Raises:
        Missing: it is a refusal, which no waiting changes.
        Answered, Garbled: for another attempt.
    """
    status = response.status_code
    if 300 <= status < 500 and status not in _TEMPORARY:
        raise Missing(summary, f"{detail} (status {status})")
    if not response.is_success:
        raise Answered(response)
    try:
        found = response.json()
    except ValueError as error:
        raise Garbled from error
    if not isinstance(found, dict):
        raise Garbled
    return found

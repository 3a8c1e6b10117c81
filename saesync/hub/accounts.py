"""Whose a token is, and whether it may write to a repo."""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping
from typing import Any

from saesync.digest import key_of
from saesync.hub.client import Client, parsed
from saesync.hub.trouble import Answered, Asked, invalid_token


def user(client: Client, known: MutableMapping[str, str]) -> str | None:
    """The account's name; None without a token. Asked once per token, by its digest in ``known``: the Hub rations this question
    strictly.

    Raises:
        NotVisible: the token is not valid.
    """
    token = client.token()
    if token is None:
        return None
    key = key_of(token)
    if key not in known:
        name = (whoami(client, client.token) or {}).get("name")
        if not isinstance(name, str) or not name:
            raise client.garbled(Asked("say whose token this is", ""))
        known[key] = name
    return known[key]


def whoami(client: Client, token_of: Callable[[], str | None]) -> Mapping[str, Any] | None:
    """What the Hub says of a token; None without one.

    Raises:
        NotVisible: it is not valid.
    """
    if token_of() is None:
        return None
    asked = Asked("say whose token this is", "")

    def action(token: str | None) -> Any:
        try:
            return parsed(client.get("/api/whoami-v2", token))
        except Answered as answer:
            if answer.response.status_code in (401, 403):
                raise invalid_token() from None
            raise

    found = client.attempt(asked, action, token_of)
    if not isinstance(found, dict):
        raise client.garbled(asked)
    return found


def can_write(client: Client, repo: str) -> bool:
    """Whether the token may write to a model repo, or create it where it does not exist."""

    def action(token: str | None) -> bool | None:
        try:
            client.get(f"/api/models/{repo}/auth-check/write", token)
        except Answered as answer:
            if answer.response.status_code in (401, 403):
                return False
            if answer.response.status_code == 404:
                return None
            raise
        return True

    def token_of() -> str | None:
        return client.write_token(repo)

    if token_of() is None:
        return False
    allowed = client.attempt(Asked(f"check write access to {repo}", repo), action, token_of)
    return _can_create(repo, whoami(client, token_of) or {}) if allowed is None else allowed


def _in_scope(namespace: str | None, fine: Any) -> bool:
    """Whether a fine-grained token may write to what is new in a namespace; True where the Hub does not say what it may."""
    scoped = fine.get("scoped") if isinstance(fine, dict) else None
    if not isinstance(scoped, list):
        return True
    return any(_grants(scope, namespace) for scope in scoped)


def _grants(scope: Any, namespace: str | None) -> bool:
    entity, permissions = (scope.get("entity"), scope.get("permissions")) if isinstance(scope, dict) else (None, None)
    if not isinstance(entity, dict) or not isinstance(permissions, list):
        return False
    return entity.get("type") in ("user", "org") and entity.get("name") == namespace and "repo.write" in permissions


def _can_create(repo: str, who: Mapping[str, Any]) -> bool:
    namespace = repo.partition("/")[0] if "/" in repo else who.get("name")
    auth, orgs = who.get("auth"), who.get("orgs")
    token = auth.get("accessToken") if isinstance(auth, dict) else None
    if isinstance(token, dict) and (token.get("role") == "read" or not _in_scope(namespace, token.get("fineGrained"))):
        return False
    if namespace == who.get("name"):
        return True
    roles = {org.get("name"): org.get("roleInOrg") for org in (orgs if isinstance(orgs, list) else ()) if isinstance(org, dict)}
    return namespace in roles and roles[namespace] not in ("read", "no_access")

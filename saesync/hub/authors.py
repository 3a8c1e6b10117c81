"""Who wrote a file of a repo last: a record counts as evidence for registering only from accounts that a policy trusts."""

from __future__ import annotations

import re
from typing import Any

from saesync.cache import Cache
from saesync.digest import key_of
from saesync.hub.client import Client, quoted
from saesync.hub.trouble import Asked

_SHA = re.compile(r"[0-9a-f]{40}")


def author_of(client: Client, cache: Cache, repo: str, sha: str, path: str) -> str | None:
    """The account behind the last commit that changed ``path`` up to commit ``sha``; None when the Hub does not say.

    Two requests (the folder with its last commits, that commit), kept by commit for ever.

    Raises:
        SaesyncError: as the Hub says.
    """
    key = key_of([client.endpoint, repo, sha, path])
    known = cache.read_json("author", key)
    if isinstance(known, str):
        return known
    asked = Asked(f"find out who wrote {path} of model {repo}", repo)
    author = _author(client, asked, _last_commit(client, asked, sha, path))
    if author is not None:
        cache.write("author", key, f'"{author}"'.encode())
    return author


def _last_commit(client: Client, asked: Asked, sha: str, path: str) -> str | None:
    folder = path.rpartition("/")[0]
    for page in client.pages(asked, f"/api/models/{asked.repo}/tree/{quoted(sha)}/{quoted(folder)}", {"expand": "true"}):
        for entry in page:
            if isinstance(entry, dict) and entry.get("path") == path:
                last = entry.get("lastCommit")
                found = last.get("id") if isinstance(last, dict) else None
                return found if isinstance(found, str) and _SHA.fullmatch(found) else None
    return None


def _author(client: Client, asked: Asked, commit: str | None) -> str | None:
    """The commit's one author; several are nobody in particular."""
    if commit is None:
        return None
    listed: Any = client.json(asked, f"/api/models/{asked.repo}/commits/{commit}", {"limit": 1})
    first = listed[0] if isinstance(listed, list) and listed else None
    authors = first.get("authors") if isinstance(first, dict) and first.get("id") == commit else None
    if not isinstance(authors, list) or len(authors) != 1 or not isinstance(authors[0], dict):
        return None
    user = authors[0].get("user")
    return user if isinstance(user, str) and re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", user) else None

"""Pull requests on the Hub: listing those of one account, opening one, and opening or closing it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from saesync.errors import Refused
from saesync.hub.client import Client, parsed
from saesync.hub.trouble import Asked, Garbled

_MOST_PAGES = 200
_STATUSES = ("draft", "open", "closed", "merged")


@dataclass(frozen=True, slots=True)
class Proposal:
    """A pull request. ``status`` is "draft", "open", "closed" or "merged"; ``author`` None when the account was deleted."""

    num: int
    title: str
    author: str | None
    status: str
    url: str

    @property
    def open(self) -> bool:
        """Whether it can be added to."""
        return self.status in ("draft", "open")

    @property
    def revision(self) -> str:
        """The revision that is its branch."""
        return f"refs/pr/{self.num}"


def proposals(client: Client, repo: str, author: str | None) -> list[Proposal]:
    """The pull requests of ``author`` on a model repo, newest first; without an author, the open ones of everybody.

    Raises:
        NotVisible, Unavailable: as ``Hub`` says.
    """
    asked = Asked(f"list the pull requests of {repo}", repo)
    params: dict[str, str | int] = {"type": "pull_request", "status": "open" if author is None else "all"}
    if author is not None:
        params["author"] = author
    found: list[Proposal] = []
    seen = 0
    for page in range(_MOST_PAGES):
        entries, total = client.attempt(asked, lambda token: _page(client, repo, token, {**params, "p": page}))  # noqa: B023 (at once)
        seen += len(entries)
        found += [_proposal(client, repo, entry) for entry in entries if entry.get("isPullRequest") is True]
        if not entries or seen >= total:
            break
    return [one for one in found if author is None or one.author == author]


def _page(client: Client, repo: str, token: str | None, params: dict[str, Any]) -> tuple[list[dict[str, Any]], int]:
    found = parsed(client.get(f"/api/models/{repo}/discussions", token, params))
    entries, total = (found.get("discussions"), found.get("count")) if isinstance(found, dict) else (None, None)
    if not isinstance(entries, list) or not isinstance(total, int) or not all(_is_entry(entry) for entry in entries):
        raise Garbled
    return entries, total


def _is_entry(entry: Any) -> bool:
    return (
        isinstance(entry, dict)
        and isinstance(entry.get("num"), int)
        and isinstance(entry.get("title"), str)
        and entry.get("status") in _STATUSES
    )


def _proposal(client: Client, repo: str, entry: dict[str, Any]) -> Proposal:
    author = entry.get("author")
    name = author.get("name") if isinstance(author, dict) else None
    num = entry["num"]
    url = f"{client.endpoint}/{repo}/discussions/{num}"
    return Proposal(num, entry["title"], name if isinstance(name, str) else None, entry["status"], url)


def propose(client: Client, repo: str, title: str, description: str) -> int:
    """One attempt at opening a pull request, empty at first; returns its number.

    Raises:
        Unsettled: it may be there or not; list again, then decide.
        Refused, Missing, NotVisible: as named.
    """
    asked = Asked(f"open a pull request on {repo}", repo, write=True)
    token = client.token()
    try:
        with client.once(asked, token):
            return int(client.api(token).create_pull_request(repo, title, description=description).num)
    except (KeyError, ValueError) as error:
        raise Refused("Hub refused the request", f"The Hub was asked to {asked.what} and did not: {_line(error)}.") from None


def set_status(client: Client, repo: str, num: int, status: Literal["open", "closed"]) -> None:
    """Open (also a draft) or close a pull request.

    Raises:
        SaesyncError: as ``Client.attempt`` says.
    """
    asked = Asked(f"make pull request #{num} of {repo} {status}", repo, write=True)

    client.attempt(asked, lambda token: client.api(token).change_discussion_status(repo, num, status))


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]

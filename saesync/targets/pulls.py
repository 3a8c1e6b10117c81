"""Our one pull request on a Hub repo: found again by its title and author, opened once."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable

from saesync.errors import Conflict, Missing, NotVisible, Refused, SaesyncError, Unavailable
from saesync.hub import Hub, Patience, Proposal, Unsettled

TITLE = "Add sparse autoencoders (saesync)"
"""Pull requests of this title by our own account are ours: anybody can open one of the same title."""

_TEXT = (
    "Sparse autoencoders with their records and model card, published by saesync from a manifest. Later changes of the manifest "
    "are added to this pull request until it is merged. If it is shown as a draft, publish it to merge it.\n"
)


class Pulls:
    """The pull requests of this process's account, by repo. Calls for one repo must not overlap."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._used: dict[str, int] = {}

    def current(self, repo: str) -> Proposal | None:
        """The oldest open one of ours, else the newest, if any.

        Raises:
            NotVisible: without a token it cannot be told which are ours, and one of them may be.
        """
        user = self._hub.user()
        found = self._named(repo, user)
        if user is None:
            if found:
                detail = (
                    f"Whose pull requests on {repo} are ours cannot be told without a token. Do `hf auth login` or set HF_TOKEN."
                )
                raise NotVisible("Repository needs a token", detail)
            return None
        return _oldest_open(found) or max(found, key=lambda one: one.num, default=None)

    def ensure(self, repo: str, expected: int | None, patience: Patience) -> Proposal:
        """The one to commit to: ``expected`` or the one used before, which may be closed or merged by now; else the oldest open
        one; else a new one.

        Of two that were opened at once the older is used, and the younger closed by whoever opened it.

        Raises:
            Missing: no token, or one that may not.
            Unavailable: as ``Hub`` says.
        """
        user = self._hub.user()
        if user is None:
            raise Missing("No token", f"A pull request on {repo} is opened by somebody: `hf auth login` or HF_TOKEN.")
        known = self._used.get(repo, expected)
        if known is not None:
            pull = next((one for one in self._named(repo, user) if one.num == known), None)
            if pull is None:
                raise Conflict("Pull request is gone", f"#{known} on {repo} is not there any more. Make a new plan.")
            return self._use(repo, pull)
        opened: int | None = None
        while True:
            pull = _oldest_open(self._named(repo, user))
            if pull is not None:
                if opened is not None and opened != pull.num:
                    with contextlib.suppress(SaesyncError):  # empty, and in nobody's way
                        self._hub.set_status(repo, opened, "closed")
                return self._use(repo, pull)
            if opened is not None:
                raise Unavailable(
                    "Pull request is not visible yet", f"#{opened} on {repo} was opened. Run the same command again."
                )
            try:
                opened = self._hub.propose(repo, TITLE, _TEXT)
            except Unsettled as unsettled:
                patience.wait(unsettled.trouble)

    def _use(self, repo: str, pull: Proposal) -> Proposal:
        self._used[repo] = pull.num
        if pull.status == "draft":  # what was opened by a program is one; where that cannot be changed, its page says what to do
            with contextlib.suppress(Refused, Missing):
                self._hub.set_status(repo, pull.num, "open")
        return pull

    def _named(self, repo: str, user: str | None) -> list[Proposal]:
        return [one for one in self._hub.proposals(repo, user) if one.title == TITLE]


def _oldest_open(found: Iterable[Proposal]) -> Proposal | None:
    return min((one for one in found if one.open), key=lambda one: one.num, default=None)

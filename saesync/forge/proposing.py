"""From an edited file to a branch and one open pull request."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

from saesync.cache import Cache
from saesync.errors import Conflict, Missing, NotVisible, Unavailable
from saesync.forge.api import Account, Api, Facts, NothingBetween, newest
from saesync.forge.bench import LeaseLost, Remote, push
from saesync.forge.credentials import HOW, Credentials
from saesync.forge.desk import Desk
from saesync.forge.files import edit_file
from saesync.forge.identity import Identity, no_identity, own_identity
from saesync.forge.merging import Stack, commit_file, on_top
from saesync.forge.observing import credentials_for, no_file, remote_of, see
from saesync.forge.places import Place, branch_of, compare_by_hand, compare_url, host_and_path, place_of
from saesync.forge.types import Proposal, Proposed, PullRequest
from saesync.hub.trouble import patience_seconds

FORK_VARIABLE = "SAESYNC_FORK"
"""A git address of our fork, for pushing without a token (an ssh key does)."""

_ROUNDS = 5  # times a branch may move under our hands
_FORK_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Route:
    """Where a branch goes: to ``head`` (``head_name``: its ``owner/name`` on GitHub, empty where that is not known); ``api``
    opens the pull request, None where there is none to ask."""

    place: Place
    head: Remote
    head_name: str
    api: Api | None

    @property
    def same(self) -> bool:
        """Whether the branch goes to the registry's own repository."""
        return self.head.url == self.place.url

    def compare(self, base: str, branch: str) -> str:
        """An address or a command that shows the branch."""
        if self.place.kind == "github" and self.head_name:
            owner, _, name = self.head_name.partition("/")
            return compare_url(self.place, base, owner, name, branch)
        return compare_by_hand(self.head.url, base, branch)


@dataclass(frozen=True, slots=True)
class Laid:
    """A branch as it is now: ``needed`` tells whether it holds anything that the base does not."""

    sha: str | None
    base: str
    needed: bool
    pushed: bool


def propose(registry: str, proposal: Proposal, cache: Cache) -> Proposed:
    """Make the branch hold the edited file and one open pull request ask for it. What is done already is not done again.

    The branch goes to the registry's own repository if the token may push there, else to its user's fork, which is made if need
    be. All-ours branches are rebuilt as one commit on the newest base; to branches with commits of others ours are added.

    Raises:
        Missing, NotVisible, Unavailable, Conflict, Refused: what stopped it; what was done before stays, and a run after mending
            it goes on from there.
    """
    branch = branch_of(proposal.release)
    place = place_of(registry)
    if place.kind == "file":
        return Proposed("", None, None, None, changed=edit_file(Path(place.url), proposal.edit))
    with Desk(cache, credentials_for(place)) as desk:
        upstream = see(place, desk)
        if upstream.head is None:
            raise no_file(registry, None)
        route = route_for(place, desk, branch in upstream.branches, branch)
        laid = _lay(desk, route, proposal, branch)
        return _finish(route, laid, proposal, branch)


# ------------------------------------------------------------------------------------------------------- where to


def route_for(place: Place, desk: Desk, there: bool, branch: str) -> Route:
    """Where the branch of a release goes. ``there``: the registry's own repository has one of that name already.

    Raises:
        Missing: no token, an archived repository, no fork and no way to make one.
    """
    upstream = remote_of(place)
    if place.kind != "github":
        return Route(place, upstream, host_and_path(place.url)[1], None)
    if desk.credentials.token is None:
        return without_token(place)
    api = Api(place, desk.credentials)
    facts = api.facts()
    check_facts(facts)
    account = api.account()
    own = Route(place, upstream, place.full_name, api)
    if facts.can_push and (there or account is None or not _open_from_fork(api, account, branch)):
        return own
    return _to_fork(desk, place, api, account, facts)


def check_facts(facts: Facts) -> None:
    """Whether a repository takes pull requests at all.

    Raises:
        Missing: it is archived.
    """
    if facts.archived:
        raise Missing(
            "Registry is archived", f"{facts.full_name} is archived: it takes no more changes. Is it the right repository?"
        )


def _open_from_fork(api: Api, account: Account, branch: str) -> bool:
    """Whether a pull request from the user's fork is open: it goes on there, also for somebody who may push by now."""
    found = newest(api.pulls(account.login, branch))
    return found is not None and found.pull.state == "open" and found.repo not in (None, api.place.full_name)


def without_token(place: Place) -> Route:
    """The fork that ``SAESYNC_FORK`` names.

    Raises:
        Missing: it names none.
    """
    url = os.environ.get(FORK_VARIABLE, "").strip()
    if not url:
        raise no_token(place)
    fork = place_of(url)
    if fork.kind == "file":
        raise Missing("Fork is not a repository", f"{FORK_VARIABLE} must be the git address of your fork of {place.full_name}.")
    host, path = host_and_path(fork.url)
    known = host == (host_and_path(place.url)[0]) and path.count("/") == 1
    return Route(place, Remote(fork.url, url, False), path if known else "", None)


def no_token(place: Place) -> Missing:
    """A pull request needs somebody to open it."""
    detail = (
        f"Opening a pull request in {place.full_name} needs a token. {HOW} Or set {FORK_VARIABLE} to an ssh address of your "
        "fork: the branch is pushed there, and the address to open the pull request is printed."
    )
    return Missing("No GitHub token", detail)


def _to_fork(desk: Desk, place: Place, api: Api, account: Account | None, facts: Facts) -> Route:
    if account is None:
        detail = (
            f"The token is an app's (as GITHUB_TOKEN in GitHub Actions) and may not push to {place.full_name}; apps have no "
            "forks. Set SAESYNC_GITHUB_TOKEN to the token of a bot user."
        )
        raise Missing("Token may not push", detail)
    if facts.private and not facts.forking:
        detail = (
            f"{place.full_name} is private, does not allow forks, and {account.login} may not push to it. Ask for write access."
        )
        raise Missing("Registry cannot be forked", detail)
    name = api.fork_of(account.login)
    made = name is None
    if name is None:
        name = api.make_fork()
    fork = Remote(desk.credentials.server.clone_url(name), name, True)
    if made:
        _await_fork(desk, fork)
    return Route(place, fork, name, api)


def _await_fork(desk: Desk, fork: Remote) -> None:
    """GitHub makes forks in its own time."""
    limit = time.monotonic() + min(_FORK_SECONDS, patience_seconds())
    pause = 0.2
    while True:
        try:
            if desk.refs(fork).branches:
                return
        except NotVisible:
            pass
        if time.monotonic() + pause > limit:
            detail = f"{fork.where} was made, but is not ready yet. Run the same command again in a minute."
            raise Unavailable("Fork is not ready yet", detail)
        time.sleep(pause)
        pause = min(5.0, pause * 2)


# ------------------------------------------------------------------------------------------------------- the branch


def _lay(desk: Desk, route: Route, proposal: Proposal, branch: str) -> Laid:
    """Make the branch hold the edited file."""
    for _ in range(_ROUNDS):
        try:
            return _lay_once(desk, route, proposal, branch)
        except LeaseLost:
            continue  # somebody pushed meanwhile, maybe another run of ours: look again
    detail = f"{branch} in {route.head.where} was changed by somebody else again and again while it was written to. Run again."
    raise Conflict("Branch keeps changing", detail)


def _lay_once(desk: Desk, route: Route, proposal: Proposal, branch: str) -> Laid:
    upstream = remote_of(route.place)
    refs = desk.refs(upstream)
    heads = refs if route.same else desk.refs(route.head)
    base, tip = refs.head, heads.branches.get(branch)
    found = None if base is None else desk.file(upstream, base)
    if base is None or found is None or refs.default is None:
        raise no_file(route.place.registry, base)
    path, blob = found
    before = desk.data(upstream, base, blob)
    wanted = proposal.edit(before)
    if wanted == before:
        return Laid(tip, refs.default, needed=False, pushed=False)
    foreign = desk.foreign(proposal.release, path, upstream, base, route.head, tip) if tip else ()
    if tip and _holds(desk, route.head, tip, wanted, None if foreign else proposal.title):
        return Laid(tip, refs.default, needed=True, pushed=False)
    # A fork that lacks the base's newest commit can be sent it only together with its history.
    full = bool(foreign) or (not route.same and base not in heads.branches.values())
    wants = [(upstream, base), *([(route.head, tip)] if tip and foreign else [])]
    bench = desk.bench(full, *wants)
    author = _Author(route, desk.credentials)
    if tip and foreign:
        new = on_top(bench, Stack(path, tip, base, f"{branch} in {route.head.where}"), proposal, author)
    else:
        new = commit_file(bench, base, path, wanted, proposal, author())
    if new == tip:
        return Laid(tip, refs.default, needed=True, pushed=False)
    push(bench, route.head, branch, new, tip)
    if not foreign:
        desk.remember_ours(proposal.release, new)
        desk.remember_made(new, path, wanted, _line(proposal.title))
    return Laid(new, refs.default, needed=True, pushed=True)


def _holds(desk: Desk, head: Remote, tip: str, wanted: bytes, title: str | None) -> bool:
    """Whether a branch holds the wanted file already, in a commit of that title."""
    entry = desk.file(head, tip)
    if entry is None or desk.data(head, tip, entry[1]) != wanted:
        return False
    return title is None or desk.title(head, tip) == _line(title)


def _line(title: str) -> str:
    """A title as the first line of a commit message."""
    return " ".join(title.split())


@dataclass(frozen=True, slots=True)
class _Author:
    """Finds out who commits, when there is something to commit."""

    route: Route
    credentials: Credentials

    def __call__(self) -> Identity:
        return author_for(self.route.api)


def author_for(api: Api | None) -> Identity:
    """The user's own git identity; in CI, where nobody set one, the token's user.

    Raises:
        Missing: there is neither.
    """
    own = own_identity()
    if own is not None:
        return own
    account = api.account() if api is not None and os.environ.get("CI") else None
    if account is None:
        raise no_identity()
    return account.identity


# ------------------------------------------------------------------------------------------------- the pull request


def _finish(route: Route, laid: Laid, proposal: Proposal, branch: str) -> Proposed:
    """One open pull request with this title and body."""
    compare = None if laid.sha is None else route.compare(laid.base, branch)
    if route.api is None:
        return Proposed(branch, laid.sha, None, compare, changed=laid.pushed)
    owner = route.head_name.partition("/")[0]
    if not laid.needed:
        found = newest(route.api.pulls(owner, branch))
        return Proposed(branch, laid.sha, None if found is None else found.pull, compare, changed=laid.pushed)
    try:
        pull, opened = route.api.open_pull(owner, branch, laid.base, proposal.title, proposal.body, proposal.draft)
    except NothingBetween:
        return Proposed(branch, laid.sha, None, compare, changed=laid.pushed)
    except Missing as error:
        raise _open_by_hand(error, compare) from None
    if not _says(pull, proposal):
        pull, edited = route.api.edit_pull(pull.number, proposal.title, proposal.body), True
    else:
        edited = False
    return Proposed(branch, laid.sha, pull, compare, changed=laid.pushed or opened or edited)


def _says(pull: PullRequest, proposal: Proposal) -> bool:
    """Whether a pull request reads as it should; GitHub stores line ends and blanks at the end in its own way."""
    return pull.title.strip() == proposal.title.strip() and _lines(pull.body) == _lines(proposal.body)


def _lines(text: str) -> str:
    return "\n".join(text.splitlines()).strip()


def _open_by_hand(error: Missing, compare: str | None) -> Missing:
    found = error.diagnostics[0]
    detail = f"{found.detail} The branch is pushed: open the pull request by hand at {compare} , or run again with another token."
    return Missing("Token may not open pull requests", detail)

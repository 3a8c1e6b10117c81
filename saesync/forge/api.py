"""The part of GitHub's API that pull requests need, through PyGithub: explicit token, timeouts, bounded patience."""

from __future__ import annotations

import hashlib
import itertools
import threading
import urllib.parse
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from saesync import __version__
from saesync.errors import renamed
from saesync.forge.api_trouble import Wanted, failures, is_trouble, rationed, said, stumbled
from saesync.forge.credentials import Credentials
from saesync.forge.identity import Identity
from saesync.forge.patience import patiently
from saesync.forge.places import Place
from saesync.forge.types import PullRequest
from saesync.hub.trouble import patience_seconds

if TYPE_CHECKING:
    from github import Github
    from github.PullRequest import PullRequest as GithubPull
    from github.Repository import Repository

T = TypeVar("T")
_SECONDS = 30  # a server may take to answer
_PAGE = 100
MOST_PULLS = 5_000
_BAD = ("failure", "cancelled", "timed_out", "action_required", "stale", "startup_failure", "error")


@dataclass(frozen=True, slots=True)
class Account:
    """Whose token it is. ``scopes`` are those of a classic token; None for tokens of other kinds."""

    login: str
    identity: Identity
    scopes: tuple[str, ...] | None


@dataclass(frozen=True, slots=True)
class Facts:
    """What GitHub says of a repository, for this token's user."""

    full_name: str
    default_branch: str
    archived: bool
    private: bool
    can_push: bool
    forking: bool


@dataclass(frozen=True, slots=True)
class Listed:
    """A pull request with where it comes from: the owner, repository (None: deleted) and branch of its head."""

    pull: PullRequest
    owner: str
    repo: str | None
    branch: str


class NothingBetween(Exception):
    """GitHub sees no commits between base and branch. Never leaves this package."""


class Api:
    """Requests about one repository."""

    def __init__(self, place: Place, credentials: Credentials) -> None:
        self.place = place
        self.credentials = credentials

    # ------------------------------------------------------------------------------------------------- reading

    def account(self) -> Account | None:
        """Who the token belongs to (remembered for this process); None without one, and for an app's, as GitHub Actions has."""
        if self.credentials.token is None:
            return None
        key = (self.credentials.server.api, hashlib.sha256(self.credentials.token.encode()).hexdigest())
        with _ACCOUNTS_LOCK:
            if key in _ACCOUNTS:
                return _ACCOUNTS[key]
        found = self._call(Wanted("say whose token this is", self.place.registry), self._account)
        with _ACCOUNTS_LOCK:
            _ACCOUNTS[key] = found
        return found

    def _account(self, github: Github) -> Account | None:
        from github import GithubException

        user = github.get_user()
        try:
            login = user.login
        except GithubException as error:
            words = said(error.data, self.credentials)
            if error.status == 403 and not rationed(403, error.headers or {}, words)[0]:
                return None
            raise
        host = urllib.parse.urlsplit(self.credentials.server.web).hostname or "github.com"
        identity = Identity(user.name or login, f"{user.id}+{login}@users.noreply.{host}")
        scopes = github.oauth_scopes
        return Account(login, identity, None if scopes is None else tuple(scope for scope in scopes if scope))

    def facts(self) -> Facts:
        """The repository as GitHub has it.

        Raises:
            NotVisible: also when it has another name now, which is said.
        """
        found = self._call(Wanted(f"show {self.place.full_name}", self.place.registry), lambda g: _facts(self._repo(g)))
        if found.full_name.casefold() != self.place.full_name.casefold():
            raise renamed(self.place.full_name, found.full_name, "Registry")
        return found

    def pulls(self, owner: str, branch: str) -> list[Listed]:
        """Pull requests from one branch, the newest first."""
        wanted = Wanted(f"list the pull requests of {self.place.full_name}", self.place.registry)
        return self._call(wanted, lambda g: self._listed(g, owner, branch))

    def _listed(self, github: Github, owner: str, branch: str) -> list[Listed]:
        found = self._repo(github).get_pulls(state="all", head=f"{owner}:{branch}")
        listed = [_listed(pull) for pull in itertools.islice(found, _PAGE)]
        ours = [one for one in listed if one.branch == branch and one.owner.casefold() == owner.casefold()]
        return sorted(ours, key=lambda one: -one.pull.number)

    def newest_pulls(self, most: int = MOST_PULLS) -> list[Listed]:
        """Pull requests of everybody, the newest first, at most so many."""
        wanted = Wanted(f"list the pull requests of {self.place.full_name}", self.place.registry)

        def action(github: Github) -> list[Listed]:
            found = self._repo(github).get_pulls(state="all", sort="created", direction="desc")
            return [_listed(pull) for pull in itertools.islice(found, most)]

        return self._call(wanted, action)

    def fork_of(self, login: str) -> str | None:
        """Name of the user's repository of the same name, if it is a fork of ours."""
        name = f"{login}/{self.place.full_name.partition('/')[2]}"

        def action(github: Github) -> str | None:
            from github import UnknownObjectException

            try:
                found = github.get_repo(name)
                origins = [found.parent, found.source] if found.fork else []
            except UnknownObjectException:
                return None
            names = [origin.full_name.casefold() for origin in origins if origin is not None]
            return found.full_name if self.place.full_name.casefold() in names else None

        return self._call(Wanted(f"show {name}", self.place.registry), action)

    def checks(self, sha: str) -> tuple[str, ...]:
        """Checks and statuses of a commit that fail or wait, as "name (state)", sorted."""
        wanted = Wanted(f"show the checks of {self.place.full_name}", self.place.registry)

        def action(github: Github) -> tuple[str, ...]:
            commit = self._repo(github).get_commit(sha)
            found = {
                status.context: status.state for status in commit.get_combined_status().statuses if status.state != "success"
            }
            for run in itertools.islice(commit.get_check_runs(), MOST_PULLS):
                if run.status != "completed":
                    found[run.name] = "pending"
                elif run.conclusion in _BAD:
                    found[run.name] = run.conclusion
            return tuple(f"{name} ({state})" for name, state in sorted(found.items()))

        return self._call(wanted, action)

    # ------------------------------------------------------------------------------------------------- writing

    def make_fork(self) -> str:
        """Name of the token's user's fork, made if there is none. It may not be ready yet."""
        wanted = Wanted(f"fork {self.place.full_name}", self.place.registry, write=True)
        return self._call(wanted, lambda g: str(self._repo(g).create_fork().full_name))

    def open_pull(self, owner: str, branch: str, base: str, title: str, body: str, draft: bool) -> tuple[PullRequest, bool]:
        """The open pull request of a branch, opened if there is none; whether this opened it.

        An answer that got lost is found by looking again, so that there is never a second one.

        Raises:
            NothingBetween: the branch holds nothing the base does not.
            Missing: the token may not open it.
        """
        wanted = Wanted(f"open a pull request in {self.place.full_name}", self.place.registry, write=True)
        tried = False

        def action(github: Github) -> tuple[PullRequest, bool]:
            nonlocal tried
            if (there := _open(self._listed(github, owner, branch))) is not None:
                return there, tried
            tried = True
            return self._create(github, owner, branch, base, title, body, draft), True

        return self._call(wanted, action)

    def _create(self, github: Github, owner: str, branch: str, base: str, title: str, body: str, draft: bool) -> PullRequest:
        from github import GithubException

        repo = self._repo(github)
        head = f"{owner}:{branch}"
        try:
            made = repo.create_pull(base, head, title=title, body=body, maintainer_can_modify=True, draft=draft)
        except GithubException as error:
            words = said(error.data, self.credentials).lower()
            if error.status == 422 and "no commits between" in words:
                raise NothingBetween from None
            if error.status == 422 and "already exists" in words:
                there = _open(self._listed(github, owner, branch))
                if there is not None:
                    return there
            raise
        return _pull(made)

    def edit_pull(self, number: int, title: str, body: str) -> PullRequest:
        """Give a pull request this title and body."""
        wanted = Wanted(f"edit pull request #{number} of {self.place.full_name}", self.place.registry, write=True)

        def action(github: Github) -> PullRequest:
            pull = self._repo(github).get_pull(number)
            pull.edit(title=title, body=body)
            return _pull(pull)

        return self._call(wanted, action)

    # ------------------------------------------------------------------------------------------------- plumbing

    def _repo(self, github: Github) -> Repository:
        return github.get_repo(self.place.full_name)

    def _call(self, wanted: Wanted, action: Callable[[Github], T]) -> T:
        def attempt() -> T:
            try:
                return action(github)
            except failures() as error:
                if not is_trouble(error):
                    raise
                raise stumbled(error, wanted, self.credentials) from None

        github = self._github()
        try:
            return patiently(attempt)
        finally:
            github.close()

    def _github(self) -> Github:
        from github import Auth, Github

        token = self.credentials.token
        return Github(
            base_url=self.credentials.server.api,
            auth=None if token is None else Auth.Token(token),
            timeout=max(1, min(_SECONDS, int(patience_seconds()))),
            user_agent=f"saesync/{__version__}",
            per_page=_PAGE,
            retry=0,
            seconds_between_requests=None,
            seconds_between_writes=None,
            lazy=True,
        )


_ACCOUNTS: dict[tuple[str, str], Account | None] = {}
_ACCOUNTS_LOCK = threading.Lock()


def _facts(repo: Repository) -> Facts:
    permissions = repo.permissions
    return Facts(
        repo.full_name, repo.default_branch, bool(repo.archived), bool(repo.private),
        bool(permissions is not None and permissions.push), repo.allow_forking is not False,
    )  # fmt: skip


def _listed(pull: GithubPull) -> Listed:
    head = pull.head
    repo: Any = head.repo
    owner = head.user.login if head.user is not None else head.label.partition(":")[0]
    return Listed(_pull(pull), owner, None if repo is None else repo.full_name, head.ref)


def _pull(pull: GithubPull) -> PullRequest:
    user: Any = pull.user  # None for a deleted account, whatever the annotation says
    state = "merged" if pull.merged_at is not None else pull.state
    sha = pull.head.sha or None
    author = "ghost" if user is None else user.login
    return PullRequest(pull.number, pull.html_url, state, sha, pull.title or "", pull.body or "", author)


def newest(listed: Iterable[Listed]) -> Listed | None:
    """The pull request that counts: an open one, else the one with the highest number."""
    found = sorted(listed, key=lambda one: (one.pull.state == "open", one.pull.number))
    return found[-1] if found else None


def _open(listed: Iterable[Listed]) -> PullRequest | None:
    found = newest(listed)
    return found.pull if found is not None and found.pull.state == "open" else None

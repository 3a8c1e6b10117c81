"""Whether a proposal would go through, before any work is done for it; and what checks say of one that was made."""

from __future__ import annotations

import os
from pathlib import Path

from saesync.cache import Cache
from saesync.errors import Missing, NotVisible
from saesync.forge.api import Account, Api, Facts
from saesync.forge.bench import Remote, push
from saesync.forge.credentials import no_credentials
from saesync.forge.desk import Desk
from saesync.forge.files import check_file
from saesync.forge.observing import credentials_for, no_file, remote_of, see
from saesync.forge.places import Place, place_of, server
from saesync.forge.proposing import FORK_VARIABLE, author_for, check_facts, no_token
from saesync.forge.types import PullRequest

_TRIAL = "saesync/access-check"


def check_access(registry: str) -> None:
    """Whether ``propose`` has what it needs; nothing is changed anywhere.

    What only shows in the doing is not found here: a fine-grained token's rights, a protected branch.

    Raises:
        Missing: what is not there (token, scope, identity, right to write, the repository or its registry file).
        Unavailable: the server could not be asked.
    """
    try:
        place = place_of(registry)
        if place.kind == "file":
            check_file(Path(place.url))
            return
        with Desk(Cache(), credentials_for(place)) as desk:
            _check_repository(place, desk)
    except NotVisible as error:
        raise Missing.of(error.diagnostics) from None


def status_of(registry: str, pull: PullRequest) -> tuple[str, ...]:
    """Checks on a pull request that fail or wait, such as a CLA's: "license/cla (pending)"; empty where the forge tells of none.

    Raises:
        Unavailable: the server could not be asked.
    """
    place = place_of(registry)
    if place.kind != "github" or pull.head_sha is None:
        return ()
    try:
        return Api(place, credentials_for(place)).checks(pull.head_sha)
    except NotVisible:  # a token that may not read checks
        return ()


def _check_repository(place: Place, desk: Desk) -> None:
    refs = see(place, desk)
    if refs.head is None or desk.file(remote_of(place), refs.head) is None:
        raise no_file(place.registry, refs.head)
    if place.kind != "github":
        author_for(None)
        _try_push(place, remote_of(place))
    elif desk.credentials.token is not None:
        _check_token(Api(place, desk.credentials))
    else:
        fork = os.environ.get(FORK_VARIABLE, "").strip()
        if not fork:
            raise no_token(place)
        author_for(None)
        _try_push(place, Remote(place_of(fork).url, fork, False))


def _check_token(api: Api) -> None:
    facts, account = api.facts(), api.account()
    check_facts(facts)
    _check_scopes(account, facts)
    if account is None and not facts.can_push:
        detail = (
            f"The token is an app's and may not push to {facts.full_name}. Set SAESYNC_GITHUB_TOKEN to the token of a bot user."
        )
        raise Missing("Token may not push", detail)
    author_for(api)


def _check_scopes(account: Account | None, facts: Facts) -> None:
    """Only classic tokens tell their scopes; what others may not do shows when they do it."""
    if account is None or account.scopes is None:
        return
    enough = {"repo"} if facts.private else {"repo", "public_repo"}
    if not enough & set(account.scopes):
        has = ", ".join(account.scopes) or "none"
        detail = f"The token of {account.login} has the scopes: {has}. It needs {' or '.join(sorted(enough))}."
        raise Missing("Token lacks a scope", detail)


def _try_push(place: Place, remote: Remote) -> None:
    """Ask the server whether it would take a branch; nothing is sent."""
    with Desk(Cache(), no_credentials(server())) as desk:
        bench = desk.bench(False)
        person = {"NAME": "saesync", "EMAIL": "saesync@localhost"}
        extra = {f"GIT_{who}_{what}": value for who in ("AUTHOR", "COMMITTER") for what, value in person.items()}
        tree = bench.ask("hash-object", "-w", "-t", "tree", "--stdin").decode().strip()
        commit = bench.ask("commit-tree", tree, "-m", f"try {place.registry}", extra=extra).decode().strip()
        push(bench, remote, _TRIAL, commit, None, dry_run=True)

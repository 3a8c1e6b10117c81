"""What a registry holds, with our branches and pull requests."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path

from saesync.cache import Cache
from saesync.errors import Missing, NotVisible, SaesyncError
from saesync.forge.api import MOST_PULLS, Api, Listed, newest
from saesync.forge.bench import Refs, Remote
from saesync.forge.credentials import Credentials, find_credentials, no_credentials
from saesync.forge.desk import Desk
from saesync.forge.files import read_file
from saesync.forge.places import Place, branch_of, place_of, server
from saesync.forge.types import REGISTRY_PATHS, Branch, RegistryState
from saesync.reason import Reason, not_visible

_ONE_BY_ONE = 10  # pull requests are asked for by branch up to so many releases, for all together beyond
_ANONYMOUS_PULLS = 300  # of everybody, the newest: three of the sixty requests GitHub allows an hour


def observe(registry: str, releases: Collection[str], cache: Cache) -> RegistryState:
    """What a registry holds, and our branches and pull requests for ``releases``. Never raises for invisibility: see
    ``RegistryState.unknown``.

    A branch is looked for in the registry's own repository and on the fork of the token's user. Without a user (no token, or an
    app's) pull requests from anybody's fork count whose branch has our name: their ``author`` says whose they are.

    Raises:
        Refused: git allows no branch named after one of the releases.
    """
    names = {release: branch_of(release) for release in dict.fromkeys(releases)}
    try:
        place = place_of(registry)
    except SaesyncError as error:
        kind = "git" if ":" in registry or registry.startswith("/") else "github"
        return RegistryState(registry, kind, unknown=unseen(registry, error))
    try:
        if place.kind == "file":
            path = Path(place.url)
            return RegistryState(registry, "file", path=path.name, data=read_file(path))
        with Desk(cache, credentials_for(place)) as desk:
            return _observe(place, desk, names)
    except SaesyncError as error:
        return RegistryState(registry, place.kind, unknown=unseen(registry, error))


def read_registry(registry: str, cache: Cache) -> tuple[bytes, str]:
    """The registry file on the default branch, and a label of it for messages.

    Raises:
        NotVisible, Unavailable, Missing: it cannot be read, for the reason said.
    """
    place = place_of(registry)
    if place.kind == "file":
        return read_file(Path(place.url)), registry
    with Desk(cache, credentials_for(place)) as desk:
        state = _base(place, desk, see(place, desk))
    if state.data is None:
        raise no_file(registry, state.head)
    return state.data, f"{registry} ({state.path})"


def credentials_for(place: Place) -> Credentials:
    """The token for GitHub; none for any other server."""
    return find_credentials(server()) if place.kind == "github" else no_credentials(server())


def unseen(registry: str, error: SaesyncError) -> Reason:
    """Why something cannot be seen, for the plan."""
    found = error.diagnostics[0]
    return not_visible(registry, f"{found.summary}: {found.detail}")


def no_file(registry: str, head: str | None) -> Missing:
    """There is nothing to edit."""
    if head is None:
        return Missing("Registry is empty", f"{registry} has no default branch with a commit. Is it the right repository?")
    paths = " nor ".join(REGISTRY_PATHS)
    return Missing(
        "Registry file is missing", f"{registry} holds neither {paths} on its default branch. Is it the right repository?"
    )


def remote_of(place: Place) -> Remote:
    """The registry's own repository."""
    return Remote(place.url, place.registry, place.kind == "github")


def see(place: Place, desk: Desk) -> Refs:
    """What the registry's repository advertises; a renamed one is refused with its new name.

    Raises:
        NotVisible, Unavailable, Missing: as ``Desk.refs``.
    """
    try:
        return desk.refs(remote_of(place))
    except NotVisible as error:
        if place.kind == "github" and "renamed" in error.diagnostics[0].summary:
            Api(place, desk.credentials).facts()  # raises with the new name
        raise


def _base(place: Place, desk: Desk, refs: Refs) -> RegistryState:
    state = RegistryState(place.registry, place.kind, refs.default, refs.head)
    if refs.head is None:
        return state
    upstream = remote_of(place)
    found = desk.file(upstream, refs.head)
    if found is None:
        return state
    return replace(state, path=found[0], data=desk.data(upstream, refs.head, found[1]))


def _observe(place: Place, desk: Desk, names: Mapping[str, str]) -> RegistryState:
    refs = see(place, desk)
    state = _base(place, desk, refs)
    if state.head is None:
        return state
    upstream = remote_of(place)
    heads = {release: (upstream, refs.branches[name]) for release, name in names.items() if name in refs.branches}
    if place.kind == "github":
        try:
            listed, forks = _pulls(place, desk, refs, names)
            heads = _on_forks(desk, place, names, forks) | heads
        except SaesyncError as error:
            state = replace(state, pulls_unknown=unseen(place.registry, error))
        else:
            state = replace(state, pulls={release: one.pull for release, one in listed.items()})
    branches = {release: _branch(desk, state, upstream, release, names[release], *heads[release]) for release in heads}
    return replace(state, branches=branches)


def _branch(desk: Desk, state: RegistryState, upstream: Remote, release: str, name: str, head: Remote, tip: str) -> Branch:
    entry = desk.file(head, tip)
    data = None if entry is None else desk.data(head, tip, entry[1])
    foreign = desk.foreign(release, state.path, upstream, state.head or "", head, tip)
    return Branch(name, tip, data, foreign)


def _pulls(
    place: Place, desk: Desk, refs: Refs, names: Mapping[str, str]
) -> tuple[dict[str, Listed], dict[str, str]]:  # fmt: skip
    """By release: the pull request that counts, and the fork (``owner/name``) its branch would be on."""
    if not names:
        return {}, {}
    api = Api(place, desk.credentials)
    owner, _, name = place.full_name.partition("/")
    account = api.account()
    login = None if account is None else account.login
    if login is None:  # nobody, or an app: the branch may be on anybody's fork
        everybody = api.newest_pulls(MOST_PULLS if desk.credentials.token else _ANONYMOUS_PULLS)
        listed = {release: [one for one in everybody if one.branch == branch] for release, branch in names.items()}
    elif len(names) > _ONE_BY_ONE:
        ours = [one for one in api.newest_pulls() if one.owner.casefold() in (owner.casefold(), login.casefold())]
        listed = {release: [one for one in ours if one.branch == branch] for release, branch in names.items()}
    else:
        listed = {}
        for release, branch in names.items():
            owners = {login, owner} if branch in refs.branches else {login}
            listed[release] = [one for who in sorted(owners) for one in api.pulls(who, branch)]
    found = {release: one for release, several in listed.items() if (one := newest(several)) is not None}
    forks = {} if login is None or login.casefold() == owner.casefold() else dict.fromkeys(names, f"{login}/{name}")
    forks |= {release: one.repo for release, one in found.items() if one.repo is not None and one.repo != place.full_name}
    return found, forks


def _on_forks(
    desk: Desk, place: Place, names: Mapping[str, str], forks: Mapping[str, str]
) -> dict[str, tuple[Remote, str]]:  # fmt: skip
    """Our branches on forks. A fork that cannot be seen has none."""
    heads: dict[str, tuple[Remote, str]] = {}
    for full_name in sorted(set(forks.values())):
        fork = Remote(desk.credentials.server.clone_url(full_name), full_name, True)
        try:
            refs = desk.refs(fork)
        except NotVisible:
            continue
        for release, branch in names.items():
            if forks.get(release) == full_name and branch in refs.branches:
                heads[release] = (fork, refs.branches[branch])
    return heads

"""Look at every registry the manifests name, each once: what stands in it of each release, and what is proposed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from saesync.cache import Cache
from saesync.card.request import digest_in
from saesync.digest import short
from saesync.errors import Refused, SaesyncError
from saesync.hub import Hub
from saesync.lanes import in_lanes
from saesync.model import Observed, Release
from saesync.observe import Place
from saesync.planning.registration import Pull, Seen
from saesync.policy import Policy
from saesync.reason import Reason, not_visible
from saesync.record import record_path
from saesync.registry.document import Document, parse
from saesync.registry.entry import Entry
from saesync.restraint import restrained

if TYPE_CHECKING:
    from saesync.forge import PullRequest, RegistryState


def observe_registries(
    releases: Iterable[Release], cache: Cache, refused: Mapping[str, Reason] = MappingProxyType({})
) -> Mapping[str, Seen]:
    """By release that registers: what its registry says. A registry that is not visible is ``Seen.unknown``, never empty.

    ``refused`` says by release why its registry is not to be spoken to. Under restraint none is: a manifest names any address.
    """
    asked: dict[str, list[str]] = {}
    unseen: dict[str, Seen] = {}
    for release in releases:
        if release.register is None:
            continue
        registry = release.register.registry
        reason = _restrained(registry) if restrained() else refused.get(release.name)
        if reason is None:
            asked.setdefault(registry, []).append(release.name)
        else:
            unseen[release.name] = Seen(registry, "git", registry, unknown=reason)
    return {**unseen, **_looked(asked, cache)} if asked else unseen


def _restrained(registry: str) -> Reason:
    return not_visible(registry, "of untrusted manifests only the Hub is asked")


def _looked(asked: Mapping[str, list[str]], cache: Cache) -> Mapping[str, Seen]:
    from saesync.forge import observe  # loads git and GitHub clients: only for plans that register

    def look(registry: str) -> Mapping[str, Seen]:
        return _seen(observe(registry, asked[registry], cache), asked[registry], cache)

    return {name: seen for found in in_lanes("registries", look, asked) for name, seen in found.items()}


def with_writers(
    registries: Mapping[str, Seen], releases: Iterable[Release], observed: Mapping[Place, Observed], policy: Policy, hub: Hub
) -> Mapping[str, Seen]:
    """The same with who wrote each release's record last, and whether the policy takes that account's word for evidence.

    Without a policy nobody is asked. Only the Hub says who wrote what; a folder is as trusted as the machine it is on.
    """
    if policy.file is None:
        return registries
    found = dict(registries)
    for release in releases:
        home = release.home
        place = observed.get((home.target, home.location)) if home is not None and release.name in found else None
        if place is None or place.target != "huggingface" or place.head is None or release.name not in place.records:
            continue
        writer, trusted = writer_of(place, release.name, policy, hub)
        found[release.name] = replace(found[release.name], writer=writer, trusted=trusted)
    return found


def writer_of(place: Observed, release: str, policy: Policy, hub: Hub) -> tuple[str | None, bool]:
    """Who wrote a release's record last, and whether that counts. What cannot be found out does not."""
    try:
        if not policy.publishers and policy.account is None:
            policy = policy.with_account(hub.user())
        writer = hub.author(place.location, place.head or "", record_path(release))
    except SaesyncError:
        return None, False
    return writer, policy.counts(writer)


def _seen(state: RegistryState, releases: Collection[str], cache: Cache) -> dict[str, Seen]:
    at = f"{state.registry}@{short(state.head)}" if state.head else state.registry
    reason, base = state.unknown, None
    if reason is None:
        try:
            base = _base(state, cache)
        except SaesyncError as error:
            reason = _unreadable(state.registry, error)
    if base is None:
        return {name: Seen(state.registry, state.kind, at, unknown=reason) for name in releases}
    found = {}
    for name in releases:
        try:
            found[name] = _of_release(state, name, base, at, cache)
        except SaesyncError as error:  # an entry that cannot be read is no trouble of the others
            found[name] = Seen(state.registry, state.kind, at, unknown=_unreadable(state.registry, error))
    return found


def _base(state: RegistryState, cache: Cache) -> _Listing:
    """What stands on the default branch.

    Raises:
        SaesyncError: no registry file, or not one.
    """
    if state.data is None:
        raise Refused("No registry file", f"It holds no {state.path}. Is it a fork of SAELens?")
    return _Listing.of(state.data, state.path, cache)


def _of_release(state: RegistryState, name: str, base: _Listing, at: str, cache: Cache) -> Seen:
    branch, pull = state.branches.get(name), state.pulls.get(name)
    proposed = None
    if branch is not None and branch.data is not None:
        proposed = _Listing.of(branch.data, branch.name, cache).entry(name)
    found = _pull(state.registry, pull) if pull is not None else None
    return Seen(
        state.registry,
        state.kind,
        at,
        base.entry(name),
        proposed,
        found,
        base.taken_by_others(name),
        pulls_unknown=state.pulls_unknown,
    )


def _pull(registry: str, pull: PullRequest) -> Pull:
    from saesync.forge import status_of

    checks = status_of(registry, pull) if pull.state == "open" else ()
    return Pull(pull.number, pull.url, pull.state, digest_in(pull.body), checks)


def _unreadable(registry: str, error: SaesyncError) -> Reason:
    found = error.diagnostics[0]
    return not_visible(registry, f"{found.summary}: {found.detail}")


@dataclass(frozen=True)
class _Listing:
    """The releases of one registry file, and who has which Neuronpedia id."""

    releases: Mapping[str, Any]
    owners: Mapping[str, tuple[str, ...]]

    @classmethod
    def of(cls, data: bytes, name: str, cache: Cache) -> _Listing:
        """Read a registry file; what was read once is kept by content, for parsing takes half a second.

        Raises:
            SaesyncError: it is not one.
        """
        key = hashlib.sha256(data).hexdigest()
        found = cache.read_json("registry", key)
        if not isinstance(found, dict):
            document: Document = parse(data, name)
            found = dict(document.releases)
            cache.write("registry", key, json.dumps(found).encode(), durable=False)
        owners: dict[str, list[str]] = {}
        for release, entry in found.items():
            for sae in entry.get("saes") or () if isinstance(entry, dict) else ():
                if isinstance(sae, dict) and isinstance(sae.get("neuronpedia"), str):
                    owners.setdefault(sae["neuronpedia"], []).append(release)
        return cls(found, {name: tuple(releases) for name, releases in owners.items()})

    def entry(self, release: str) -> Entry | None:
        """What stands there of a release.

        Raises:
            SaesyncError: it is not of the form of an entry.
        """
        found = self.releases.get(release)
        return None if found is None else Entry.from_yaml(release, found)

    def taken_by_others(self, release: str) -> Mapping[str, str]:
        """Neuronpedia ids of other releases, by who has them."""
        return {name: others[0] for name, owners in self.owners.items() if (others := [o for o in owners if o != release])}

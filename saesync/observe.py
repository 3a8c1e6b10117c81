"""Look at every place the manifests name, each once, several at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from saesync.cache import Cache
from saesync.lanes import in_lanes
from saesync.model import Observed, PublishSpec, Release
from saesync.targets import open_target
from saesync.targets.base import look_at

Place = tuple[str, str]


def places(releases: Iterable[Release]) -> list[Place]:
    """The (target, location) pairs the releases publish to or keep records in, in manifest order, without repeats."""
    named: list[PublishSpec] = []
    for release in releases:
        named += [spec for spec in (release.publish, release.records) if spec is not None]
    return list(dict.fromkeys((spec.target, spec.location) for spec in named))


def observe(
    releases: Iterable[Release], cache: Cache, progress: Callable[[int, int], None] | None = None
) -> Mapping[Place, Observed]:
    """What is published at every place, read in parallel. Invisible places are ``Observed.unknown``, never absent."""
    releases = tuple(releases)
    wanted = places(releases)
    proposed = {(spec.target, spec.location) for one in releases if (spec := one.publish) is not None and spec.pull_request}
    targets = {name: open_target(name, cache) for name in {target for target, _ in wanted}}

    def look(place: Place) -> Observed:
        return look_at(targets[place[0]], place[1], place in proposed)

    found: dict[Place, Observed] = {}
    for place, observed in zip(wanted, in_lanes("observe", look, wanted), strict=True):
        found[place] = observed
        if progress is not None:
            progress(len(found), len(wanted))
    return found

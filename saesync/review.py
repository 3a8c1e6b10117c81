"""What a change of manifests asks for that somebody has to look at: pure comparison of the releases before and after.

A plan says what would be done; these items say what is new in being asked at all: another place, somebody else's weights, a
lower gate. They come first wherever a plan is shown, and are never folded.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from saesync.errors import Origin
from saesync.model import PublishSpec, Release, Requirement
from saesync.nothing import nothing


class ReviewKind(StrEnum):
    """What has to be looked at. Every kind has one rendering in ``render`` and a test."""

    GONE = "gone"  # manifest: no manifest names this release any more
    RETIRED = "retired"
    NEW_TARGET = "new_target"  # section, key, value, before
    PUBLIC = "public"  # value
    NEW_OWNER = "new_owner"  # what (source, model or dataset), value
    LOWERED = "lowered"  # name, before, after (None: dropped)
    TRUST = "trust"  # value
    NATIVE = "native"


@dataclass(frozen=True, slots=True)
class ReviewItem:
    """One thing to look at, with the data its rendering needs, and its place in the manifest. ``data`` is flat JSON."""

    kind: ReviewKind
    release: str
    data: Mapping[str, Any] = field(default_factory=nothing)
    origin: Origin | None = None

    def to_json(self) -> dict[str, Any]:
        """The form that stands in plans."""
        where = self.origin
        return {
            "kind": str(self.kind),
            "release": self.release,
            "data": dict(self.data),
            "origin": None if where is None else [where.file, where.line, where.column, where.width],
        }


def review_items(
    before: Sequence[Release], after: Sequence[Release], gone: Iterable[tuple[str, str]] = ()
) -> tuple[ReviewItem, ...]:
    """What ``after`` asks for and ``before`` did not, release by release, each thing once.

    ``before`` holds all releases of the base branch (a known source owner is known wherever it stands), ``after`` those
    that were changed. ``gone`` are (release, manifest) of releases that no manifest names any more.
    """
    earlier = {release.name: release for release in before}
    owners = {owner for release in before for owner, _ in _owners(release)}
    found = [ReviewItem(ReviewKind.GONE, name, {"manifest": manifest}) for name, manifest in gone]
    for release in after:
        old = earlier.get(release.name)
        found += _places(release, old)
        found += _new_owners(release, owners)
        found += _lowered(release, old)
        found += _permissions(release, old)
    return tuple(found)


# ------------------------------------------------------------------------------------------------------- places


def _places(release: Release, old: Release | None) -> Iterator[ReviewItem]:
    if release.retire and not (old is not None and old.retire):
        yield ReviewItem(ReviewKind.RETIRED, release.name, origin=release.origin)
    known = dict(_named(old)) if old is not None else {}
    for section, spec in _named(release):
        if spec.location == getattr(known.get(section), "location", None):
            continue
        earlier = known.get(section)
        was = None if earlier is None else f"{earlier.target}:{earlier.location}"
        data = {"section": section, "value": f"{spec.target}:{spec.location}", "before": was}
        yield ReviewItem(ReviewKind.NEW_TARGET, release.name, data, spec.origin or release.origin)
    if _public(release.publish) and not (old is not None and _public(old.publish)):
        value = release.publish.location if release.publish is not None else None
        yield ReviewItem(ReviewKind.PUBLIC, release.name, {"value": value}, release.origin)


def _named(release: Release) -> Iterator[tuple[str, PublishSpec]]:
    """Every place that a release writes to, the registry among them."""
    named: tuple[tuple[str, PublishSpec | None], ...] = (("publish", release.publish), ("records", release.records))
    for section, spec in named:
        if spec is not None:
            yield section, spec
    if release.register is not None:
        yield "register", PublishSpec("saelens", release.register.registry, origin=release.register.origin)


def _public(spec: PublishSpec | None) -> bool:
    return spec is not None and spec.target == "huggingface" and not spec.private


# ------------------------------------------------------------------------------------------------------- owners


def _owners(release: Release) -> Iterator[tuple[tuple[str, str], Origin | None]]:
    """Whose weights, models and datasets are read. What is local belongs to the project itself."""
    for sae in release.saes:
        named = [("source", sae.source.repo if sae.source else None, "source.repo"), ("model", sae.model.name, "model.name")]
        if sae.validate is not None:
            named.append(("dataset", sae.validate.dataset.repo, "validate.dataset.repo"))
        for what, repo, key in named:
            if repo is not None:
                yield (what, repo.partition("/")[0]), sae.origins.get(key, sae.origin)


def _new_owners(release: Release, known: set[tuple[str, str]]) -> Iterator[ReviewItem]:
    said: set[tuple[str, str]] = set()
    for owner, origin in _owners(release):
        if owner not in known and owner not in said:
            said.add(owner)
            yield ReviewItem(ReviewKind.NEW_OWNER, release.name, {"what": owner[0], "value": owner[1]}, origin)


# ------------------------------------------------------------------------------------------------- requirements


def _lowered(release: Release, old: Release | None) -> Iterator[ReviewItem]:
    """Gates that let through what they kept out before; a release whose gates are all new has lowered none."""
    if old is None:
        return
    bounds, before = _bounds(release), _bounds(old)
    for name, bound in before.items():
        now = bounds.get(name)
        if now is None or (now.bound < bound.bound if bound.kind == "min" else now.bound > bound.bound):
            data = {"name": name, "before": bound.bound, "after": None if now is None else now.bound}
            yield ReviewItem(ReviewKind.LOWERED, release.name, data, release.origin if now is None else now.origin)
    tokens, tokens_before = _tokens(release), _tokens(old)
    if tokens < tokens_before:
        origin = next((sae.origins.get("validate.tokens") for sae in release.saes), None)
        data = {"name": "validate.tokens", "before": tokens_before, "after": tokens or None}
        yield ReviewItem(ReviewKind.LOWERED, release.name, data, origin or release.origin)
    if release.register is not None and release.register.partial and not (old.register is not None and old.register.partial):
        data = {"name": "register.partial", "before": False, "after": True}
        yield ReviewItem(ReviewKind.LOWERED, release.name, data, release.register.origin)


def _bounds(release: Release) -> dict[str, Requirement]:
    """Requirements by name; they are the same for every SAE of a release."""
    specs = (sae.validate for sae in release.saes if sae.validate is not None)
    return {f"{bound.metric} {bound.kind}": bound for spec in specs for bound in spec.require}


def _tokens(release: Release) -> int:
    return next((sae.validate.tokens for sae in release.saes if sae.validate is not None), 0)


# -------------------------------------------------------------------------------------------------- permissions


def _permissions(release: Release, old: Release | None) -> Iterator[ReviewItem]:
    """``trust`` (a file that is read although it may run code) and ``native`` (bytes that are published as they are)."""
    before = set(_granted(old)) if old is not None else set()
    for kind, value, origin in dict.fromkeys(_granted_at(release)):
        if (kind, value) not in before:
            data = {} if value is None else {"value": value}
            yield ReviewItem(kind, release.name, data, origin)


def _granted(release: Release) -> Iterator[tuple[ReviewKind, str | None]]:
    return ((kind, value) for kind, value, _ in _granted_at(release))


def _granted_at(release: Release) -> Iterator[tuple[ReviewKind, str | None, Origin | None]]:
    for sae in release.saes:
        options = sae.source.options if sae.source is not None else nothing()
        trusted = options.get("trust")
        for value in trusted if isinstance(trusted, list | tuple) else (trusted,):
            if value:
                yield ReviewKind.TRUST, str(value), sae.origins.get("source.trust", sae.origin)
    if release.publish is not None and release.publish.native:
        at = next((sae.origins.get("publish.native") for sae in release.saes), None)
        yield ReviewKind.NATIVE, None, at or release.publish.origin or release.origin

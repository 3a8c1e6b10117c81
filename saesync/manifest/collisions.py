"""What no single manifest can show: two that claim the same name, the same folder, or folders inside each other."""

from __future__ import annotations

import itertools
import unicodedata
from collections.abc import Iterator, Mapping, Sequence

from saesync.errors import Diagnostic, Origin
from saesync.folders import NATIVE, RECORD_FOLDER
from saesync.model import PublishSpec, Release, Sae

ONE_PER_PLACE = {
    "pull_request": "Repository is published to in two ways",
    "private": "Repository is both public and private",
    "license": "Repository has two licenses",
}


def collisions(releases: Sequence[Release]) -> list[Diagnostic]:
    """Every collision once per pair of places, at the later place, naming the earlier."""
    found: dict[tuple[str, Origin | None, Origin | None], Diagnostic] = {}
    for first, diagnostic in (
        *_names(releases),
        *_folders(releases),
        *_ways(releases),
        *_records(releases),
        *_neuronpedia(releases),
    ):
        found.setdefault((diagnostic.summary, first, diagnostic.origin), diagnostic)
    return list(found.values())


def _folded(text: str) -> str:
    """One spelling of what some file systems, or Hub and disk together, take for the same name."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())


def _names(releases: Sequence[Release]) -> Iterator[tuple[Origin | None, Diagnostic]]:
    seen: dict[str, Release] = {}
    for release in releases:
        first = seen.setdefault(_folded(release.name), release)
        if first is not release:
            detail = f'"{release.name}" is already the release at {first.origin}. Every release has a name of its own.'
            yield first.origin, Diagnostic("Release name is taken", detail, release.origin)


def _folders(releases: Sequence[Release]) -> Iterator[tuple[Origin | None, Diagnostic]]:
    """Folders per target. What is published by somebody else has no folder of ours: its ids only have to differ."""
    seen: dict[tuple[str, str], Sae] = {}
    placed: list[tuple[str, str, Sae]] = []
    for release in releases:
        if release.publish is None:
            yield from _ids(release)
            continue
        target, base = release.publish.target, _folded(release.publish.location)
        for sae in release.saes:
            folder = f"{base}/{_folded(sae.id)}"
            first = seen.setdefault((target, folder), sae)
            if first is not sae:
                yield first.origin, Diagnostic("Folder is taken", _same_folder(sae, first), sae.origin)
            else:
                placed.append((target, folder, sae))
    own = _own(releases)
    for target, folder, sae in placed:
        for outer in (folder, *_above(folder)):
            holder, keeper = seen.get((target, outer)), own.get((target, outer))
            if holder is not None and holder is not sae:
                inside = f'"{sae.id}" is inside "{holder.id}" of {holder.origin}.'
                detail = f"{inside} Folders of SAEs cannot hold each other: change one id."
                yield holder.origin, Diagnostic("Folder is inside another", detail, sae.origin)
            if keeper is not None:
                name, origin = keeper
                inside = f'"{sae.id}" would be among the files that saesync itself keeps there for {name} ({origin}).'
                yield origin, Diagnostic("Folder is inside another", f"{inside} Change one id, or one target.", sae.origin)
    yield from _evidence(releases, seen)


def _own(releases: Sequence[Release]) -> dict[tuple[str, str], tuple[str, Origin | None]]:
    """Where saesync keeps files of its own, by (target, folder): for which release, and where that release says so."""
    found: dict[tuple[str, str], tuple[str, Origin | None]] = {}
    for release in releases:
        for spec in (each for each in (release.publish, release.records) if each is not None):
            for name in (RECORD_FOLDER, NATIVE):
                found.setdefault((spec.target, f"{_folded(spec.location)}/{name}"), (release.name, spec.origin or release.origin))
    return found


def _evidence(releases: Sequence[Release], seen: Mapping[tuple[str, str], Sae]) -> Iterator[tuple[Origin | None, Diagnostic]]:
    """Evidence that would be kept inside an SAE."""
    for release in releases:
        if (spec := release.records) is not None:
            base = _folded(spec.location)
            holder = next((sae for outer in (base, *_above(base)) if (sae := seen.get((spec.target, outer))) is not None), None)
            if holder is not None:
                inside = f'Evidence would be inside "{holder.id}" of {holder.origin}.'
                detail = f"{inside} It needs a place of its own: change `records`."
                yield holder.origin, Diagnostic("Folder is inside another", detail, spec.origin)


def _ids(release: Release) -> Iterator[tuple[Origin | None, Diagnostic]]:
    seen: dict[str, Sae] = {}
    for sae in release.saes:
        first = seen.setdefault(sae.id, sae)
        if first is not sae:
            yield first.origin, Diagnostic("Id is taken", _same_folder(sae, first), sae.origin)


def _same_folder(sae: Sae, first: Sae) -> str:
    if sae.origins is first.origins and sae.id != first.id:
        return f'"{first.id}" and "{sae.id}" of this template are one folder on some file systems. Spell one otherwise.'
    if sae.origins is first.origins:
        return (
            f'Two SAEs of this template are both "{sae.id}". Use every placeholder of for_each that tells them apart in the id.'
        )
    spelt = f' (as "{first.id}")' if first.id != sae.id else ""
    return f'"{sae.id}" is already published there by {first.release}{spelt}, at {first.origin}. Change one id, or one target.'


def _above(folder: str) -> Iterator[str]:
    while "/" in folder:
        folder = folder.rpartition("/")[0]
        yield folder


def _ways(releases: Sequence[Release]) -> Iterator[tuple[Origin | None, Diagnostic]]:
    """What there is one of per place, whatever the number of releases there: a way to write, a visibility, a license. Who says
    nothing of the license agrees with all."""
    seen: dict[tuple[str, str, str], Release] = {}
    for release, key in itertools.product(releases, ONE_PER_PLACE):
        spec = release.publish
        if spec is not None and getattr(spec, key) is not None:
            first = seen.setdefault((key, spec.target, _folded(spec.location)), release)
            if first.publish is not None and getattr(first.publish, key) != getattr(spec, key):
                origins = release.saes[0].origins if release.saes else {}
                place = origins.get(f"publish.{key}", origins.get("publish", release.origin))
                said = f"{first.name} ({first.origin}) is published to {spec.location}, too, {_way(first.publish, key)}"
                yield first.origin, Diagnostic(ONE_PER_PLACE[key], f"{said}. Say the same in both.", place)


def _way(spec: PublishSpec, key: str) -> str:
    if key == "license":
        return f"under the license {spec.license}"
    if key == "private":
        return "as a private repository" if spec.private else "and not as a private repository"
    return "and by pull request" if spec.pull_request else "and not by pull request"


def _records(releases: Sequence[Release]) -> Iterator[tuple[Origin | None, Diagnostic]]:
    """What is recorded of SAEs that are published elsewhere, or nowhere, must not stand among those of another place."""
    published: dict[tuple[str, str], Release] = {}
    for release in releases:
        if release.publish is not None:
            published.setdefault((release.publish.target, _folded(release.publish.location)), release)
    for release in releases:
        spec = release.records
        holder = published.get((spec.target, _folded(spec.location))) if spec is not None else None
        if spec is not None and holder is not None:
            origins = release.saes[0].origins if release.saes else {}
            place = origins.get(f"records.{spec.target}", release.origin)
            detail = (
                f"{holder.name} publishes its SAEs there ({holder.origin}). Evidence needs a place of its own: change `records`."
            )
            yield holder.origin, Diagnostic("Records are among published SAEs", detail, place)


def _neuronpedia(releases: Sequence[Release]) -> Iterator[tuple[Origin | None, Diagnostic]]:
    seen: dict[str, Sae] = {}
    for release in releases:
        for sae in release.saes:
            name = _neuronpedia_id(sae)
            if name is None:
                continue
            first = seen.setdefault(_folded(name), sae)
            if first is not sae:
                place, other = (_place_of_neuronpedia(each) for each in (sae, first))
                advice = (
                    "Give each its own set; it may hold placeholders, such as `res-{width}-acme`."
                    if sae.neuronpedia_id is not None
                    else "One SAE has one id there, and one entry with it."
                )
                detail = f"{sae.address} and {first.address} ({other}) would both be {name}. {advice}"
                yield other, Diagnostic("Neuronpedia id is taken", detail, place)


def _neuronpedia_id(sae: Sae) -> str | None:
    return sae.neuronpedia_id if sae.neuronpedia_id is not None else sae.entry.get("neuronpedia")


def _place_of_neuronpedia(sae: Sae) -> Origin | None:
    name = "neuronpedia.set" if sae.neuronpedia_id is not None else "entry.neuronpedia"
    return sae.origins.get(name, sae.origin)

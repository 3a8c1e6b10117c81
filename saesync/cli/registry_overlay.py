"""registry overlay and registry run: releases that are not in SAELens's list, loadable by name everywhere."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import click

from saesync.cache import Cache, write_named
from saesync.cli.common import Asked, manifests_only, paths_argument, releases_of, root_option
from saesync.cli.named import Named
from saesync.cli.output import put, put_file, say, writing
from saesync.errors import Missing, Refused, SaesyncError
from saesync.inert import plain
from saesync.model import SAE_FILES, Observed, PublishSpec, Release
from saesync.observe import observe
from saesync.overlay import DEFAULT, environment, find, read
from saesync.record import Record
from saesync.registry.document import parse, written
from saesync.registry.entry import Entry, entry_of
from saesync.registry.shipped import shipped

_HEAD = "# Releases for SAELens that its own list does not have. Written by `saesync registry overlay`."
_PYTHON = re.compile(r"(python|pypy)[\d.]*")
_Seen = Mapping[tuple[str, str], Observed]


@click.command()
@paths_argument
@root_option
@click.option("--out", type=Named(), default=DEFAULT, show_default=True, help="The file to write; - for stdout.")
def overlay(paths: tuple[Path, ...], roots: tuple[Path, ...], out: Path) -> None:
    """Write an overlay: releases that SAELens's list does not have.

    PATH is a manifest or a folder of manifests; manifests/ unless given. Looks at what is really published, as plan does; a
    release that is not is left out and named. `saesync registry run` and `saesync.overlay.install()` use the file.
    """
    manifests_only(paths)
    releases, _ = releases_of(Asked(paths, roots))
    observed = observe(releases, Cache.checked())
    entries: list[Entry] = []
    for release in releases:
        try:
            entries.append(_entry(release, observed))
        except SaesyncError as error:
            say(f"Left out {plain(release.name)}: {error.diagnostics[0].detail}")
    if not entries:
        raise Missing("Nothing to write", "No release here can be loaded from the Hub yet. `saesync plan` says what is missing.")
    for name in sorted({entry.release for entry in entries} & _official()):
        say(f"Note: {plain(name)} is a release of SAELens already. The overlay is refused unless replacing is allowed.")
    text = f"{_HEAD}\n".encode() + written(entries)
    if str(out) == "-":
        put_file(text.decode().rstrip())
        return
    _write(out, text)
    saes = sum(len(entry.saes) for entry in entries)
    put(f"Wrote {out}: {len(entries)} release{'s' * (len(entries) != 1)}, {saes} SAE{'s' * (saes != 1)}.")


def _write(out: Path, text: bytes) -> None:
    with writing(out):
        if out.is_file() and not out.read_bytes().startswith(_HEAD.encode()):
            detail = f"{out} is there already and was not written by this command, so it is not overwritten. Give another --out."
            raise Refused("File exists", detail)
        write_named(out, text)


def _entry(release: Release, observed: _Seen) -> Entry:
    """The entry of a release with what of it can be loaded now.

    Raises:
        SaesyncError: nothing of it can, and why.
    """
    spec = release.publish
    if spec is None:
        return entry_of(release, _record(release, release.records, observed), conversion_func=_loader(release))
    seen = observed.get((spec.target, spec.location))
    if seen is not None and seen.unknown is not None:
        raise Missing("Not visible", f"{plain(spec.location)} cannot be seen. `saesync plan` says why.")
    record = _record(release, spec, observed)
    there = _published(release, seen, record)
    if spec.target == "huggingface" and not there:
        raise Missing("Not published", "Nothing of it is published yet. `saesync apply` publishes it.")
    entry = entry_of(release, record, only=there if spec.target == "huggingface" else None)
    if len(there) < len(release.saes):
        say(f"{plain(release.name)}: {len(there)} of {len(release.saes)} SAEs are published; the others are left out.")
    return entry


def _record(release: Release, spec: PublishSpec | None, observed: _Seen) -> Record | None:
    seen = None if spec is None else observed.get((spec.target, spec.location))
    return None if seen is None else seen.records.get(release.name)


def _published(release: Release, seen: Observed | None, record: Record | None) -> Collection[str]:
    """Ids of SAEs that we published and whose files are there."""
    if seen is None or record is None:
        return ()
    return {sae.id for sae in release.saes if sae.id in record.saes and set(SAE_FILES) <= set(seen.folder(sae.id))}


def _loader(release: Release) -> str | None:
    """The SAELens loader of somebody else's weights; None is SAELens's own format.

    Raises:
        Missing: neither the manifest nor the format says it.
    """
    from saesync.formats import saelens_loader

    if release.register is not None:
        return release.register.conversion_func
    return saelens_loader({sae.source.format for sae in release.saes if sae.source is not None})


def _official() -> frozenset[str]:
    """Names in the installed SAELens's own list; none without one."""
    try:
        path = shipped()
    except Missing:
        return frozenset()
    return frozenset(parse(path.read_bytes(), str(path)).releases)


@click.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.option("--file", type=Named(), help=f"The overlay; $SAESYNC_OVERLAY, else {DEFAULT} unless given.")
@click.option("--replace", is_flag=True, help="Let it replace releases of SAELens's own list.")
@click.argument("words", nargs=-1, required=True, metavar="-- CMD...", type=click.UNPROCESSED)
def run(file: Path | None, replace: bool, words: tuple[str, ...]) -> None:
    """Run a program with an overlay's releases loadable by name.

    CMD is any program that uses SAELens in Python. Its child processes see them too. It is looked up on PATH,
    and its Python need not have saesync. `python -m saesync.overlay` is the same.
    """
    path = find(file)
    read(path)
    if flag := _blind(words):
        detail = f"`{words[0]} -{flag}` ignores the environment an overlay comes by. Leave out -{flag}."
        raise Refused("Python is isolated", detail)
    try:
        os.execvpe(words[0], words, environment(path, os.environ, replace=replace))  # noqa: S606  that is what it is for
    except OSError as error:
        raise Missing("Command cannot be run", f"{plain(words[0])}: {error.strerror}. Check the name and PATH.") from error


def _blind(words: Sequence[str]) -> str | None:
    """The flag with which a Python would not see the overlay, if it is given."""
    if not _PYTHON.fullmatch(Path(words[0]).name):
        return None
    rest = iter(words[1:])
    for word in rest:
        if not word.startswith("-") or word == "-":
            return None
        for place, letter in enumerate(word, 1):
            if letter in "IES":
                return letter
            if letter in "cm":
                return None
            if letter in "WX":  # its value is the rest of the word, or the next one
                if place == len(word):
                    next(rest, None)
                break
            if word.startswith("--"):
                break
    return None

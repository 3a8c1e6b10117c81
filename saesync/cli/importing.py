"""import: manifests of what exists already, from SAELens's registry or from a Hub repository."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import click

from saesync.cache import Cache, write_named
from saesync.cli.named import Named
from saesync.cli.output import put, say, writing
from saesync.errors import Missing, Refused, SaesyncError
from saesync.garbage import no_garbage_collection
from saesync.hub import Hub
from saesync.importing import entries, repository
from saesync.importing.layout import UPSTREAM, Imported
from saesync.inspection.folders import saelens_folders
from saesync.inspection.reference import SCHEME, parse_reference
from saesync.inspection.text import RELEASE, slug
from saesync.manifest import DEFAULT_FOLDER
from saesync.registry.document import MAX_BYTES, Document, parse
from saesync.registry.shipped import shipped

REGISTRY = "saelens:"
FAILED = 1


@click.command("import")
@click.argument("source", required=False)
@click.option("--all", "everything", is_flag=True, help="Every release of the registry; the same as SOURCE saelens:")
@click.option(
    "--registry",
    type=Named(dir_okay=False),
    help="The registry file to read; that of the installed sae-lens unless given.",
)
@click.option(
    "--register",
    metavar="WHERE",
    help=f"What register.saelens says: owner/repo, a URL or a path. {UPSTREAM} unless given, or the file given with --registry.",
)
@click.option("--release", metavar="NAME", help="Name of the release, of a Hub repo; made from the repo's unless given.")
@click.option("--model", metavar="NAME", help="The language model, of a Hub repo whose files do not say it.")
@click.option(
    "-o",
    "--out",
    type=Named(file_okay=False),
    default=DEFAULT_FOLDER,
    show_default=True,
    help="Folder for the manifests, RELEASE.yaml each.",
)
@click.option("--force", is_flag=True, help="Overwrite manifests that are there.")
@click.pass_context
def import_(
    ctx: click.Context,
    source: str | None,
    everything: bool,
    registry: Path | None,
    register: str | None,
    release: str | None,
    model: str | None,
    out: Path,
    force: bool,
) -> None:
    """Write manifests of SAEs that exist already.

    SOURCE is saelens:RELEASE (a release of SAELens's registry, or a glob), saelens: (all of them), or hf://owner/repo (the
    SAELens folders of a Hub repo). Nothing is published with such manifests: they register somebody else's weights. Files that
    are there are kept.
    """
    if everything == (source is not None):
        raise click.UsageError("Give a SOURCE, or --all.", ctx)
    source = REGISTRY if source is None else source
    if source.startswith(SCHEME):
        if registry is not None:
            raise click.UsageError("--registry is for SOURCE saelens:…; a Hub repo is not read from a registry.", ctx)
        found = _from_hub(source, release, model, register or UPSTREAM)
        say_notes(found)
        put(f"Wrote {_write(out, found, force)}.")
        return
    if not source.startswith(REGISTRY):
        raise click.UsageError(f"{source!r} is neither {REGISTRY}RELEASE nor {SCHEME}owner/repo.", ctx)
    if release is not None or model is not None:
        raise click.UsageError("--release and --model are for a Hub repo; a registry says both.", ctx)
    path = registry if registry is not None else shipped()
    where = register or (UPSTREAM if registry is None else _from(out, registry))
    with no_garbage_collection():
        document = _read(path)
        names = entries.names_of(document, source.removeprefix(REGISTRY))
        ctx.exit(_one(document, names[0], where, out, force) if len(names) == 1 else _many(document, names, where, out, force))


def _read(path: Path) -> Document:
    try:
        with path.open("rb") as stream:
            return parse(stream.read(MAX_BYTES + 1), str(path))
    except OSError as error:
        raise Missing("Registry cannot be read", f"{path}: {error.strerror}. Name the file with --registry.") from error


def _one(document: Document, name: str, register: str, out: Path, force: bool) -> int:
    found = entries.manifest_of(document, name, register)
    say_notes(found)
    put(f"Wrote {_write(out, found, force)}.")
    return 0


def _many(document: Document, names: list[str], register: str, out: Path, force: bool) -> int:
    """Every release that can be written is; what cannot be is named. Files that are there stay, which is no failure."""
    written = kept = failed = 0
    for name in names:
        try:
            found = entries.manifest_of(document, name, register)
        except SaesyncError as error:
            failed += 1
            say(f"Left out: {error.diagnostics[0].detail}")
            continue
        if not force and _path(out, found).exists():
            kept += 1
            say(f"Left as it is: {_path(out, found)} is there already. --force overwrites it.")
            continue
        say_notes(found)
        put(f"Wrote {_write(out, found, force)}.")
        written += 1
    counts = [f"{written:,} written", f"{kept:,} left as they are" if kept else "", f"{failed:,} left out" if failed else ""]
    say(f"{len(names):,} releases: {', '.join(filter(None, counts))}.")
    return FAILED if failed else 0


def _from_hub(source: str, release: str | None, model: str | None, register: str) -> Imported:
    reference = parse_reference(source)
    if release is not None and not RELEASE.fullmatch(release):
        raise Refused("Not a release name", f"{release!r}: a release's name has only letters, digits, `.`, `_` and `-`.")
    sha, folders = saelens_folders(Hub(Cache.checked()), reference)
    name = release or slug((reference.repo or "").lower(), slashes=False)
    return repository.manifest_of(replace(reference, revision=None), sha, folders, name, model, register)


def _from(out: Path, registry: Path) -> str:
    """The registry file as a manifest in ``out`` names it."""
    path = registry.resolve()
    try:
        relative = path.relative_to(out.resolve().parent)
    except ValueError:
        return str(path)
    return f"../{relative.as_posix()}"


def _path(out: Path, found: Imported) -> Path:
    return out / f"{found.name}.yaml"


def _write(out: Path, found: Imported, force: bool) -> Path:
    path = _path(out, found)
    if path.exists() and not force:
        raise Refused("File exists", f"{path} is there already. Give another folder with --out, or overwrite it with --force.")
    with writing(path):
        write_named(path, found.text.encode())
    return path


def say_notes(found: Imported) -> None:
    """What a manifest does not hold, or leaves open."""
    for note in found.notes:
        say(f"Note: {note}")

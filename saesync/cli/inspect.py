"""inspect and init: from weights somewhere to a manifest, reading headers only."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from saesync.cache import Cache, write_named
from saesync.cli.named import Named
from saesync.cli.output import as_json, put, put_file, say, writing
from saesync.errors import Refused
from saesync.inert import plain
from saesync.inspection import Inspection, inspect_source
from saesync.inspection.data import to_json
from saesync.inspection.sets import incomplete_sets
from saesync.inspection.text import ambiguous, describe, left_out, manifest, release_name, stanza

if TYPE_CHECKING:
    from saesync.hub import Hub

_MANIFESTS = Path("manifests")


def _look(source: str) -> Inspection:
    return inspect_source(source, _hub)


def _hub() -> Hub:
    from saesync.hub import Hub  # a sixth of the time of looking at a file on this disk

    return Hub(Cache.checked())


@click.command()
@click.argument("source")
@click.option("--format", "format_", type=click.Choice(["text", "json"]), default="text", show_default=True, help="Output form.")
@click.pass_context
def inspect(ctx: click.Context, source: str, format_: str) -> None:
    """Say what SOURCE is, and print its manifest stanza.

    SOURCE is a file, a folder, or hf://owner/repo[/path][@revision]. Only headers are read (on the Hub by ranged
    requests): formats, shapes, dtypes, and what the files do not say. Exit code 1 when nothing there can be converted. In JSON
    every SAE has its `candidates`, best first; those of which nothing tells the right one are named in `ambiguous`.
    """
    found = _look(source)
    if format_ == "json":
        put(as_json(to_json(found)))
    else:
        put(describe(found))
        if found.convertible:
            lead = "" if found.reference.repo is not None else f"For a manifest in {_MANIFESTS}/, from where its paths start:\n\n"
            put(f"\n{lead}{stanza(found, folder=_MANIFESTS.absolute()).rstrip()}")
    ctx.exit(0 if found.convertible else 1)


@click.command()
@click.argument("source")
@click.option("--release", metavar="NAME", help="Name of the release; made from SOURCE unless given.")
@click.option("--model", metavar="NAME", help="The language model's Hub id or folder, when the files do not say it.")
@click.option("-o", "--out", type=Named(), help="The file; manifests/RELEASE.yaml unless given; - for stdout.")
def init(source: str, release: str | None, model: str | None, out: Path | None) -> None:
    """Write a commented manifest for SOURCE.

    SOURCE is a file, a folder, or hf://owner/repo[/path][@revision]. A file that is there is never overwritten.
    """
    found = _look(source)
    if out is not None and str(out) == "-":
        put_file(manifest(found, release, model, Path.cwd()).rstrip())
        _say_notes(found)
        return
    path = out or _MANIFESTS / f"{release_name(found, release)}.yaml"
    if path.exists():
        raise Refused("File exists", f"{path} is there already and is not overwritten. Give another name with --out.")
    text = manifest(found, release, model, path.parent.absolute())
    with writing(path):
        write_named(path, text.encode())
    put(f"Wrote {path}.")
    _say_notes(found)
    say(f"Fill in what it leaves open, then run `saesync plan {shlex.quote(str(path))}`.")


def _say_notes(found: Inspection) -> None:
    for line in left_out(found):
        say(f"Left out: {line}")
    for line in incomplete_sets(found):
        say(f"Note: {plain(line, 1000)}")
    for line in ambiguous(found):
        say(f"Ambiguous: {line}. Write which as its `format`.")

"""show: everything known of one SAE."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterable
from pathlib import Path

import click

from saesync import manifest, planfile, render
from saesync.apply.builds import read_failed_proof
from saesync.cli.common import Asked, look, manifests_only, root_option
from saesync.cli.named import Named
from saesync.cli.output import as_json, colored, put
from saesync.errors import ManifestError, SaesyncError
from saesync.inert import plain
from saesync.keys import Wanted
from saesync.model import Item, Plan, Release, Sae, Status

_LISTED = 10


def _complete(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    """Addresses for the shell's completion, from the manifests alone; nothing when they cannot be read."""
    try:
        releases = manifest.load(manifest.find(ctx.params.get("paths") or ()), roots=ctx.params.get("roots") or ())
    except SaesyncError:
        return []
    return [sae.address for release in releases for sae in release.saes if sae.address.startswith(incomplete)]


@click.command()
@click.argument("address", shell_complete=_complete)
@click.option("--manifests", "paths", multiple=True, type=Named(), help="Where to look; manifests/ unless given.")
@root_option
@click.option("--format", "format_", type=click.Choice(["text", "json"]), default="text", show_default=True, help="Output form.")
@click.pass_context
def show(ctx: click.Context, address: str, paths: tuple[Path, ...], roots: tuple[Path, ...], format_: str) -> None:
    """Show one SAE: asked, published, proof, evidence.

    ADDRESS is release/id, as plan and apply print it.
    """
    manifests_only(paths)
    world = look(Asked(paths, roots))
    items = {item.address: item for item in world.plan.items if item.id is not None}
    wanted = {**_registered(world.releases), **world.wanted}
    items = {**{name: _item(asked.sae, world.plan) for name, asked in wanted.items() if name not in items}, **items}
    if address not in items:
        raise ManifestError("Unknown address", f"No manifest here names {plain(address)}. {_advice(address, list(items))}")
    release = next(r for r in world.plan.releases if r.name == items[address].release)  # with those of no manifest
    place = (release.home.target, release.home.location) if release.home is not None else None
    asked = wanted.get(address)
    failed = read_failed_proof(world.cache, asked.inputs.build_key) if asked is not None and asked.inputs is not None else None
    view = planfile.show_json(items[address], asked, world.observed.get(place) if place else None, failed)
    if format_ == "json":
        put(as_json(view))
    else:
        put(render.show_text(view, color=colored(ctx, sys.stdout)))


def _registered(releases: Iterable[Release]) -> dict[str, Wanted]:
    """SAEs that are only registered: the plan has no items of their own for them."""
    alone = (release for release in releases if release.home is None)
    return {sae.address: Wanted(sae, None) for release in alone for sae in release.saes}


def _item(sae: Sae, plan: Plan) -> Item:
    """What is said of an SAE for which nothing is done by itself: what is said of its release."""
    told = (item for item in plan.items if item.release == sae.release and item.id is None)
    found = next((item for item in told if item.status is not Status.CURRENT), None)
    if found is None:
        return Item(sae.release, sae.id, Status.CURRENT, origin=sae.origin)
    return Item(sae.release, sae.id, found.status, held=found.held, reasons=found.reasons, origin=sae.origin)


def _advice(address: str, known: list[str]) -> str:
    inside = [name for name in known if name.startswith(f"{address}/")]
    if inside:
        more = f" and {len(inside) - _LISTED:,} more" if len(inside) > _LISTED else ""
        return f"That is a release. Its SAEs: {', '.join(map(plain, inside[:_LISTED]))}{more}."
    near = difflib.get_close_matches(address, known, n=1)
    return f"Did you mean {plain(near[0])}?" if near else "`saesync plan -v` lists the addresses."

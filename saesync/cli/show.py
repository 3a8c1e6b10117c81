"""show: everything known of one SAE."""

from __future__ import annotations

import json
from pathlib import Path

import click

from saesync import planfile, render
from saesync.cli.common import Asked, format_option, look, root_option
from saesync.cli.output import colored, put
from saesync.errors import ManifestError


@click.command()
@click.argument("address", shell_complete=None)
@click.option(
    "--manifests", "paths", multiple=True, type=click.Path(path_type=Path), help="Where to look; manifests/ unless given."
)
@root_option
@format_option
@click.pass_context
def show(ctx: click.Context, address: str, paths: tuple[Path, ...], roots: tuple[Path, ...], format_: str) -> None:
    """Show one SAE: what is asked, what is published, its proof and its evidence.

    ADDRESS is release/id, as plan and apply print it.
    """
    world = look(Asked(paths, roots))
    items = {item.address: item for item in world.plan.items if item.id is not None}
    if address not in items:
        import difflib

        near = difflib.get_close_matches(address, items, n=1)
        hint = f" Did you mean {near[0]}?" if near else " `saesync plan -v` lists the addresses."
        raise ManifestError("Unknown address", f"No manifest here names {address}.{hint}")
    release = next(r for r in world.releases if r.name == items[address].release)
    place = (release.publish.target, release.publish.location) if release.publish is not None else None
    view = planfile.show_json(items[address], world.wanted.get(address), world.observed.get(place) if place else None)
    if format_ == "json":
        put(json.dumps(view, indent=2, ensure_ascii=False))
    else:
        put(render.show_text(view, color=colored(ctx.color is False, "stdout")))

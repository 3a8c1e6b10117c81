"""What plan, apply and show have in common: options, and the way from paths to a plan."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

from saesync import manifest
from saesync.cache import Cache
from saesync.model import Choices, Observed, Plan, Release, Wanted
from saesync.observe import observe
from saesync.planner import plan as make_plan
from saesync.planner import select
from saesync.resolve import Resolver

Command = TypeVar("Command", bound=Callable[..., Any])

paths_argument = click.argument("paths", nargs=-1, type=click.Path(path_type=Path))
root_option = click.option(
    "--root", "roots", multiple=True, type=click.Path(path_type=Path, file_okay=False), help="Also allow local paths in here."
)
only_option = click.option("--only", multiple=True, metavar="GLOB", help="Only SAEs whose release/id matches.")
format_option = click.option(
    "--format",
    "format_",
    type=click.Choice(["text", "markdown", "json"]),
    default="text",
    show_default=True,
    help="Output form.",
)
verbose_option = click.option("-v", "--verbose", is_flag=True, help="One line per SAE: fold nothing.")


def choice_options(command: Command) -> Command:
    """--adopt, --replace, --prune."""
    for option in (
        click.option("--prune", multiple=True, metavar="RELEASE", help="Delete SAEs of RELEASE that no manifest names any more."),
        click.option("--replace", multiple=True, metavar="GLOB", help="Overwrite SAEs that were changed outside saesync."),
        click.option("--adopt", multiple=True, metavar="GLOB", help="Prove and take over files saesync did not publish."),
    ):
        command = option(command)
    return command


@dataclass(frozen=True)
class World:
    """Everything a plan is made from, and the plan."""

    releases: tuple[Release, ...]
    wanted: Mapping[str, Wanted]
    observed: Mapping[tuple[str, str], Observed]
    plan: Plan
    resolver: Resolver
    cache: Cache


def look(paths: tuple[Path, ...], roots: tuple[Path, ...], only: tuple[str, ...], choices: Choices) -> World:
    """Load the manifests, look at every place they name, and plan.

    The whole folder of each manifest is loaded whatever PATH says: two manifests that claim the same folder, and SAEs that
    no manifest names any more, can be told only from all of them.

    Raises:
        ManifestError: with everything that is wrong in all of them.
    """
    chosen = manifest.find(paths)
    neighbours = manifest.find(tuple(dict.fromkeys(path.parent for path in chosen)))
    everything = manifest.load(neighbours, roots=roots)
    files = {str(path) for path in chosen}
    releases = tuple(release for release in everything if release.manifest in files)
    cache = Cache()
    observed = observe(releases, cache)
    resolver = Resolver(cache)
    wanted = resolver.resolve(releases, observed)
    named = frozenset(release.name for release in everything)
    plan = make_plan(releases, wanted, observed, choices, named=named)
    return World(releases, wanted, observed, select(plan, only), resolver, cache)

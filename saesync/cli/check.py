"""check: are the manifests well-formed? Offline, without torch."""

from __future__ import annotations

from pathlib import Path

import click

from saesync import manifest
from saesync.cli.common import manifests_only, paths_argument, root_option
from saesync.cli.output import put


@click.command()
@paths_argument
@root_option
def check(paths: tuple[Path, ...], roots: tuple[Path, ...]) -> None:
    """Check manifests, offline: nothing published is looked at.

    PATH is a manifest or a folder of manifests; manifests/ unless given.
    """
    manifests_only(paths)
    files = manifest.find(paths)
    releases = manifest.load(files, roots=roots)
    saes = sum(len(release.saes) for release in releases)
    put(f"{len(files)} manifest{'s' * (len(files) != 1)}, {saes} SAE{'s' * (saes != 1)}: fine.")

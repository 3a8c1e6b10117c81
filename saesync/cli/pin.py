"""pin: fill in the commit hashes a manifest needs."""

from __future__ import annotations

from pathlib import Path

import click

from saesync.cache import Cache
from saesync.cli.output import put
from saesync.errors import NotVisible
from saesync.hub import Hub
from saesync.pin import pin as pin_file


@click.command()
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
def pin(file: Path) -> None:
    """Fill in full commit hashes for the sources, models and datasets FILE names.

    Branches and tags become the commit they point to now; hashes that stand there stay. Nothing else in FILE changes.
    """
    hub = Hub(Cache())

    def resolve(repo: str, kind: str, revision: str | None) -> str:
        head = hub.head(repo, revision, kind)
        if head is None:
            raise NotVisible("Repository not found", f"There is no {kind} {repo} with revision {revision or 'main'} on the Hub.")
        return head.sha

    changes = pin_file(file, resolve)
    for change in changes:
        put(str(change))
    if not changes:
        put(f"{file}: nothing to pin.")

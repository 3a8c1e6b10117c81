"""pin: fill in the commit hashes a manifest needs."""

from __future__ import annotations

from pathlib import Path

import click

from saesync.cache import Cache
from saesync.cli.common import manifests_only
from saesync.cli.output import put
from saesync.errors import NotVisible
from saesync.hub import Hub
from saesync.pin import pin as pin_file


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
def pin(file: Path) -> None:
    """Fill in the commit hashes that FILE needs.

    Sources, models and datasets get the commit that their branch or tag points to now; hashes that stand there stay, and
    nothing else in FILE changes.
    """
    manifests_only((file,))
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

"""pin: fill in the commit hashes a manifest needs."""

from __future__ import annotations

from pathlib import Path

import click

from saesync.cache import Cache
from saesync.cli.common import manifests_only
from saesync.cli.named import Named
from saesync.cli.output import put, say
from saesync.errors import NotVisible, renamed
from saesync.hub import Hub
from saesync.manifest import read_tree
from saesync.pin import only_registers
from saesync.pin import pin as pin_file


@click.command()
@click.argument("file", type=Named())
@click.option("--all", "everything", is_flag=True, help="Also those that a release which only registers can do without.")
def pin(file: Path, everything: bool) -> None:
    """Fill in the commit hashes that FILE needs.

    Sources, models and datasets get the commit that their branch or tag points to now; hashes that stand there stay, and
    nothing else in FILE changes. A release that does nothing but register needs none: only branches and tags are replaced.
    """
    manifests_only((file,))
    hub = Hub(Cache())

    def resolve(repo: str, kind: str, revision: str | None) -> str:
        head = hub.head(repo, revision, kind)
        if head is None:
            raise NotVisible("Repository not found", f"There is no {kind} {repo} with revision {revision or 'main'} on the Hub.")
        if head.renamed_to is not None:
            raise renamed(repo, head.renamed_to)
        return head.sha

    changes = pin_file(file, resolve, everything)
    for change in changes:
        put(str(change))
    if not changes:
        put(f"{file}: nothing to pin.")
    if not everything and only_registers(read_tree(file)):
        say("This release only registers, and may leave its source and model unpinned; --all pins them all the same.")

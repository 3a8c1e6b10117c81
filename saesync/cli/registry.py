"""registry: SAELens's list of pretrained SAEs, checked, and extended without editing it."""

from __future__ import annotations

import click

from saesync.cli.registry_lint import lint
from saesync.cli.registry_overlay import overlay, run


@click.group()
def registry() -> None:
    """Work with SAELens's list of pretrained SAEs."""


registry.add_command(lint)
registry.add_command(overlay)
registry.add_command(run)

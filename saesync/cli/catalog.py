"""formats, targets, schema: what this installation knows."""

from __future__ import annotations

import json

import click

from saesync.cli.output import as_json, put


def _rows(what: str, rows: list[tuple[str, str]], as_json: bool) -> None:
    if as_json:
        found = [{"name": name, "summary": summary} for name, summary in rows]
        put(json.dumps({"type": f"saesync-{what}", "version": 1, what: found}, indent=2))
        return
    width = max(len(name) for name, _ in rows)
    for name, summary in rows:
        put(f"{name:<{width}}  {summary}")


_format = click.option("--format", "format_", type=click.Choice(["text", "json"]), default="text", show_default=True)


@click.command()
@_format
def formats(format_: str) -> None:
    """List the weight formats that can be read."""
    from saesync.formats import formats as known

    _rows("formats", [(name, each.summary) for name, each in sorted(known().items())], format_ == "json")


@click.command()
@_format
def targets(format_: str) -> None:
    """List the places SAEs can be published to."""
    from saesync.targets import targets as known

    _rows("targets", [(name, each.summary) for name, each in sorted(known().items())], format_ == "json")


@click.command()
@click.option("--policy", is_flag=True, help="The schema of saesync-policy.yaml instead.")
def schema(policy: bool) -> None:
    """Print the JSON Schema of manifests, for editors."""
    from saesync.schema import build
    from saesync.schema.policy import build as build_policy

    put(as_json(build_policy() if policy else build()))

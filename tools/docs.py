"""Write the generated parts of docs/, or check that they are not stale (``--check``, exit 1 when they are).

The CLI reference comes from click, the manifest reference from the schema, the tables from the registries.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

import click
from manifest_reference import manifest_reference

from saesync import schema
from saesync.cli import cli
from saesync.formats import formats
from saesync.measure.metrics import METRICS, NOT_COUNTED
from saesync.schema import policy
from saesync.targets import targets

ROOT = Path(__file__).parent.parent


def cli_reference() -> str:
    """docs/cli.md: every command's own --help text."""
    parts = ["# Command line", "", "Generated from the program by `make docs`.", ""]

    def describe(command: click.Command, path: str) -> None:
        context = click.Context(command, info_name=path, terminal_width=100, help_option_names=["-h", "--help"])
        parts.extend([f"## `{path}`", "", "```text", command.get_help(context).rstrip(), "```", ""])
        if isinstance(command, click.Group):
            for name in command.list_commands(context):
                found = command.get_command(context, name)
                if found is not None:
                    describe(found, f"{path} {name}")

    describe(cli, "saesync")
    return "\n".join(parts)


def tables() -> str:
    """docs/formats.md: formats, targets and metrics, from their registries."""
    lines = ["# Formats, targets, metrics", "", "Generated from the program by `make docs`.", "", "## Formats", ""]
    lines += ["| format | converter | what it reads |", "|---|---|---|"]
    lines += [f"| `{name}` | {fmt.version} | {fmt.summary} |" for name, fmt in sorted(formats().items())]
    lines += ["", "## Targets", "", "| target | what it is |", "|---|---|"]
    lines += [f"| `{name}` | {target.summary} |" for name, target in sorted(targets().items())]
    lines += ["", "## Metrics", "", f"Each with a standard error over documents. {NOT_COUNTED}", ""]
    lines += ["| metric | version | definition |", "|---|---|---|"]
    lines += [f"| `{m.name}` | {m.version} | {m.summary.replace('|', chr(92) + '|')} |" for m in METRICS.values()]
    return "\n".join([*lines, ""])


def schema_text() -> str:
    """saesync/schema/manifest.json."""
    return json.dumps(schema.build(), indent=2, ensure_ascii=False) + "\n"


def policy_schema_text() -> str:
    """saesync/schema/policy.json."""
    return json.dumps(policy.build(), indent=2, ensure_ascii=False) + "\n"


GENERATED: dict[str, Callable[[], str]] = {
    "docs/cli.md": cli_reference,
    "docs/formats.md": tables,
    "docs/manifest.md": manifest_reference,
    "saesync/schema/manifest.json": schema_text,
    "saesync/schema/policy.json": policy_schema_text,
}


def main() -> int:
    """Write or check every generated file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if a file is stale")
    check = parser.parse_args().check
    stale = []
    for name, make in GENERATED.items():
        path, text = ROOT / name, make()
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            stale.append(name)
            if not check:
                path.write_text(text, encoding="utf-8")
    for name in stale:
        print(f"{'stale' if check else 'wrote'}: {name}")
    if check and stale:
        print("Run `make docs` and commit the result.")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())

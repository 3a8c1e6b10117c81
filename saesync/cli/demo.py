"""demo: a small real world to try everything on, offline."""

from __future__ import annotations

import sys
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from saesync.cli.named import Named
from saesync.cli.output import colored, put, say


@click.command()
@click.argument("folder", type=Named(file_okay=False))
@click.pass_context
def demo(ctx: click.Context, folder: Path) -> None:
    """Build a small real world to try everything on.

    FOLDER gets a language model, SAEs that are really trained on it, and manifests over them.
    Offline, at most five minutes on two cores; what is there already is kept. Then try `saesync plan FOLDER/manifests`.
    """
    from saesync.demo import build

    console = Console(stderr=True, no_color=not colored(ctx, sys.stderr))
    columns = (TextColumn("{task.description:<28}"), BarColumn(), TextColumn("{task.fields[rate]:>20}"), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bars:
        tasks: dict[str, TaskID] = {}

        def progress(label: str, done: int, total: int, unit: str) -> None:
            if label not in tasks:
                tasks[label] = bars.add_task(label, total=total, rate="")
                if not console.is_terminal:
                    say(f"{label} ...")
            task = bars.tasks[tasks[label]]
            rate = f"{done / task.elapsed:,.0f} {unit}/s" if task.elapsed else ""
            bars.update(tasks[label], completed=done, total=total, rate=rate)

        world = build(folder, progress)
    for line in world.lines():
        put(line)

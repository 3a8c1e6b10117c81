"""apply: make it true."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import click

from saesync import planfile, preflight, progress, render
from saesync.apply import Context, StopFlag
from saesync.apply import apply as run
from saesync.cli.common import Asked, World, asked_options, look
from saesync.cli.output import colored, put, say
from saesync.errors import Missing
from saesync.targets import open_target


@click.command()
@asked_options
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@click.option("--format", "format_", type=click.Choice(["text", "json"]), default="text", help="json: one event per line.")
@click.option(
    "--device", "devices", multiple=True, metavar="DEVICE", help="Measure on this device (cuda:0, mps, cpu); repeatable."
)
@click.pass_context
def apply(ctx: click.Context, asked: Asked, yes: bool, format_: str, devices: tuple[str, ...]) -> None:
    """Make the manifests true: fetch, convert with a proof, validate on the real model, publish.

    PATH is a plan file from `saesync plan --out`, or manifests. A plan file is the approval; otherwise apply shows the plan
    and asks. Safe to stop and to kill at any time: run the same command again.
    """
    saved = planfile.read(asked.plan_file) if asked.plan_file is not None else None
    if saved is not None:
        asked = Asked.from_json(saved["asked"])
    world = look(asked)
    if saved is not None:
        planfile.check(saved, world.plan)
    elif not _approved(ctx, world, asked, yes, format_):
        say("Nothing was done.")
        ctx.exit(1)
    context = Context(
        cache=world.cache,
        resolver=world.resolver,
        wanted=world.wanted,
        observed=world.observed,
        open_target=lambda name: open_target(name, world.cache),
        choices=asked.choices,
        devices=devices,
    )
    missing = preflight.check(world.plan, context)
    if missing:
        raise Missing.of(missing)
    kind = "json" if format_ == "json" else "terminal" if sys.stderr.isatty() else "lines"
    stop = StopFlag()
    stream = sys.stdout if format_ == "json" else sys.stderr
    with progress.reporter(kind, stream, colored(ctx.color is False)) as emit, _interruptible(stop):
        result = run(world.plan, context, emit, stop)
    ctx.exit(result.exit_code)


def _approved(ctx: click.Context, world: World, asked: Asked, yes: bool, format_: str) -> bool:
    """Show the plan and ask, unless there is nothing to do or ``-y``.

    Raises:
        click.UsageError: there is nobody to ask.
    """
    if format_ == "text":
        view = planfile.plan_json(world.plan, asked=asked.to_json())
        put(
            render.plan_text(
                view, arguments=asked.words(), plan_file=None, verbose=False, color=colored(ctx.color is False, "stdout")
            )
        )
    if yes or not world.plan.pending:
        return True
    if not sys.stdin.isatty():
        raise click.UsageError("There is no terminal to ask on: give a plan file, or -y.", ctx)
    return click.confirm("Do this?", err=True)


@contextmanager
def _interruptible(stop: StopFlag) -> Iterator[None]:
    """The first Ctrl-C asks to stop after what runs; the second stops now."""

    def on_signal(_signum: int, _frame: object) -> None:
        stop.request()

    before = signal.signal(signal.SIGINT, on_signal)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)

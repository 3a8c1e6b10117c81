"""apply: make it true."""

from __future__ import annotations

import re
import shlex
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click

from saesync import carets, events, manifest, planfile, preflight, progress, render
from saesync.apply import Context, StopFlag
from saesync.apply import apply as run
from saesync.checkout import blob_id
from saesync.cli.common import Asked, World, asked_options, look
from saesync.cli.output import colored, debugging, is_terminal, lost, put, say
from saesync.cli.scope import Whose, policy_of, policy_option
from saesync.errors import Diagnostic, Interrupted, Missing, Refused, SaesyncError
from saesync.planner import keep, part
from saesync.policy import Policy
from saesync.streams import spelling
from saesync.system import os_trouble
from saesync.targets import open_target

_DEVICE = re.compile(r"auto|cpu|mps|cuda(:\d+)?")


def _devices(_ctx: click.Context, _option: click.Parameter, names: tuple[str, ...]) -> tuple[str, ...]:
    for name in names:
        if not _DEVICE.fullmatch(name):
            raise click.BadParameter(f"{name!r} is no device. Known: cpu, mps, cuda, cuda:0, cuda:1 and so on, auto.")
    return names


@click.command()
@asked_options
@policy_option
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@click.option("--format", "format_", type=click.Choice(["text", "json"]), default="text", help="json: one event per line.")
@click.option(
    "--device",
    "devices",
    multiple=True,
    metavar="DEVICE",
    callback=_devices,
    help="Measure on this device (cuda:0, mps, cpu); repeatable.",
)
@click.option(
    "--steps",
    type=click.Choice(["all", "publish", "register"]),
    default="all",
    show_default=True,
    help="Only what is published, or only what is registered: the two need different tokens.",
)
@click.pass_context
def apply(
    ctx: click.Context,
    asked: Asked,
    policy_file: Path | None,
    yes: bool,
    format_: str,
    devices: tuple[str, ...],
    steps: str,
) -> None:
    """Make it true: fetch, convert, validate, publish.

    Conversions are proved, SAEs measured on the real model, and what passes is published.
    PATH is a plan file from `saesync plan --out`, or manifests; manifests/ unless given. A plan file is the approval;
    otherwise apply shows the plan and asks. Safe to stop and to kill at any time: run the same command again.
    """
    with _refusal_told(format_):
        policy = policy_of(policy_file, needed=True)
        if asked.plan_file is not None:
            world: World | None = _approved_by_file(asked.plan_file, policy)
        else:
            world = _approved_here(ctx, asked, policy, yes, format_)
        if world is None:
            say("Nothing was done.")
            ctx.exit(1)
        if steps != "all":
            world = replace(world, plan=part(world.plan, registering=steps == "register"))
        context = _ready(ctx, world, devices)
    # What failed is mended in manifests or files, and a plan file is stale then: the same command is no advice.
    options = [
        ("--policy", policy_file),
        ("--steps", steps if steps != "all" else None),
        *(("--device", each) for each in devices),
    ]
    words = (*asked.words(), *(word for flag, value in options if value is not None for word in (flag, str(value))))
    again = ("saesync", "apply", *words, *(["-y"] if yes else [])) if asked.plan_file is None else ()
    ctx.exit(_carry_out(ctx, world, context, format_, again))


@contextmanager
def _refusal_told(format_: str) -> Iterator[None]:
    """What ends an apply before its run is an event, too; of what ends it later the run tells."""
    try:
        yield
    except (SaesyncError, OSError, click.UsageError, click.Abort, KeyboardInterrupt) as error:
        if format_ == "json":
            # What ends it is told all the same when nobody can be told of it in events.
            with suppress(OSError), progress.reporter("json", sys.stdout, progress.Look()) as emit:
                emit(events.version())
                emit(events.ended(*_end(error)))
        raise


def _end(
    error: SaesyncError | OSError | click.UsageError | click.Abort | KeyboardInterrupt,
) -> tuple[int, tuple[Diagnostic, ...]]:
    """Exit code and diagnostics of what the program ends with (``cli.main``)."""
    if isinstance(error, click.UsageError):
        return error.exit_code, (Diagnostic("Wrong usage", error.format_message()),)
    if isinstance(error, click.Abort | KeyboardInterrupt):
        return Interrupted.exit_code, (Diagnostic("Interrupted", "It was stopped before anything was done."),)
    known = os_trouble(error) if isinstance(error, OSError) else error
    return known.exit_code, known.diagnostics


def _ready(ctx: click.Context, world: World, devices: tuple[str, ...]) -> Context:
    """What the plan runs with.

    Raises:
        Missing: with everything that the plan needs and is not here.
    """
    for note in world.notes:
        say(note)
    context = _context(world, devices, debug=debugging(ctx))
    missing = preflight.check(world.plan, context)
    unseen = [each for each in preflight.check_unseen(world.plan, context) if each not in missing]
    if missing:
        raise Missing.of([*missing, *unseen])
    if unseen:
        shown = carets.show(unseen, color=colored(ctx, sys.stderr), kind="missing", spelt=spelling(sys.stderr))
        say(f"For what cannot be seen, this is missing, too:\n\n{shown}\n")
    return context


def _carry_out(ctx: click.Context, world: World, context: Context, format_: str, again: tuple[str, ...]) -> int:
    """Run the plan and tell of it; the exit code. ``again`` is the command that continues after trouble."""
    kind = "json" if format_ == "json" else "terminal" if is_terminal(sys.stderr) else "lines"
    stop = StopFlag()
    stream = sys.stdout if format_ == "json" else sys.stderr
    appearance = progress.Look(
        color=colored(ctx, sys.stderr),
        command=again,
        asked=world.asked.to_json(),
        addresses=tuple(item.address for item in world.plan.pending if item.id is not None),
    )
    with progress.reporter(kind, stream, appearance) as emit, _interruptible(stop):
        heard = _Heard(emit)
        code = run(world.plan, context, heard, stop).exit_code
    if heard.lost is not None and kind == "json":  # a terminal that is gone is no loss of data
        raise heard.lost
    return code


@dataclass
class _Heard:
    """Events on their way to whoever asked for them. A run goes on when they cannot be written, and the end says so."""

    emit: events.Emit
    lost: Missing | None = None

    def __call__(self, event: events.Event) -> None:
        try:
            self.emit(event)
        except OSError as error:
            self.lost = self.lost or lost(error)
            raise


def _context(world: World, devices: tuple[str, ...], debug: bool) -> Context:
    return Context(
        cache=world.cache,
        resolver=world.resolver,
        wanted=world.wanted,
        observed=world.observed,
        open_target=lambda name: open_target(name, world.cache),
        registries=world.registries,
        policy=world.policy,
        choices=world.asked.choices,
        devices=devices,
        debug=debug,
    )


def _approved_by_file(file: Path, policy: Policy) -> World:
    """The world as it is now, with that part of its plan that stands in the file and is still as it was.

    Raises:
        PlanStale: anything in it is not.
        Refused: it was made of manifests that anybody may have written, or edited by hand.
    """
    saved = planfile.read(file)
    planfile.unedited(file, saved)
    if saved.get("untrusted"):
        again = f"saesync plan --out {shlex.quote(str(file))}"
        detail = f"{file} was made with --untrusted, for reading only. Make one of your own manifests: `{again}`."
        raise Refused("Plan is of untrusted manifests", detail)
    asked = Asked.from_json(saved["asked"])
    planfile.check_here(asked.paths or (manifest.DEFAULT_FOLDER,), str(file))
    world = look(asked, again=True, policy=policy)
    changed, releases = bool(saved.get("changed")), world.plan.releases
    manifests = {one.manifest: blob_id(Path(one.manifest)) for one in releases if changed and one.manifest}
    planfile.check(saved, world.plan, str(file), _words_of(saved, world.asked, policy), manifests)
    return replace(world, plan=keep(world.plan, planfile.approved(saved)))


def _words_of(saved: Mapping[str, Any], asked: Asked, policy: Policy) -> tuple[str, ...]:
    """The command-line words that make a plan of the same things again."""
    since = (saved.get("changed") or {}).get("since")
    file = None if policy.file is None else Path(policy.file)
    whose = Whose(file, untrusted=False, since=since if isinstance(since, str) else None, base=None)
    return (*asked.words(), *whose.words())


def _approved_here(ctx: click.Context, asked: Asked, policy: Policy, yes: bool, format_: str) -> World | None:
    """Show the plan and ask, unless there is nothing to do or ``-y``; None when the answer is no.

    Raises:
        click.UsageError: there is nobody to ask.
    """
    if not yes and (format_ == "json" or not is_terminal(sys.stdin)):
        nobody = "--format json cannot ask" if format_ == "json" else "There is no terminal to ask on"
        raise click.UsageError(f"{nobody}: give a plan file, or -y.", ctx)
    world = look(asked, policy=policy)
    if format_ == "text":
        view = planfile.plan_json(world.plan, asked=asked.to_json())
        put(render.plan_text(view, next_commands=False, color=colored(ctx, sys.stdout)))
        say("")
    return world if yes or not world.plan.pending or click.confirm("Do this?", err=True) else None


@contextmanager
def _interruptible(stop: StopFlag) -> Iterator[None]:
    """The first Ctrl-C asks to stop after what runs; the second stops now. SIGTERM ends the process on the spot: a run may be
    killed at any instant, and to unwind it would wait for what its threads do."""

    def on_signal(_signum: int, _frame: object) -> None:
        stop.request()

    before = {
        signal.SIGINT: signal.signal(signal.SIGINT, on_signal),
        signal.SIGTERM: signal.signal(signal.SIGTERM, signal.SIG_DFL),
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

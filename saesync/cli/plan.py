"""plan: what is not true yet, and why."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import click

from saesync import planfile, render
from saesync.cli.common import PLAN_SUFFIX, Asked, asked_options, format_option, look, manifests_only, verbose_option
from saesync.cli.named import Named
from saesync.cli.output import as_json, colored, put, say, writing
from saesync.cli.scope import Whose, policy_of, scope_options
from saesync.garbage import no_garbage_collection
from saesync.model import Plan, Status
from saesync.restraint import restraint

PENDING, TROUBLE = 3, 1


@click.command()
@asked_options
@format_option
@verbose_option
@click.option("--out", type=Named(dir_okay=False), help="Also write the plan to a file, for `saesync apply`.")
@scope_options
@click.option("--check", is_flag=True, help="Exit 3 when steps are pending, else 1 when something is failing, held or unknown.")
@click.pass_context
@no_garbage_collection()
def plan(
    ctx: click.Context,
    asked: Asked,
    format_: str,
    verbose: bool,
    out: Path | None,
    check: bool,
    whose: Whose,
) -> None:
    """Show what would be done, and why. Changes nothing.

    Reads what is really published; needs no GPU and downloads no weights. PATH is a manifest or a folder of manifests;
    manifests/ unless given.
    """
    manifests_only(asked.paths)
    whose.check(asked.roots)
    if verbose and format_ != "text":
        raise click.UsageError("-v unfolds the text; --format markdown and json hold every SAE anyway.", ctx)
    if out is not None and out.suffix != PLAN_SUFFIX:
        raise click.UsageError(f"--out {out}: a plan file's name ends in {PLAN_SUFFIX}, so that apply knows it for one.", ctx)
    with restraint() if whose.untrusted else nullcontext():
        policy = policy_of(whose.policy_file, needed=whose.untrusted)
        world = look(asked, policy=policy, scope=whose.scope(asked.paths, (*asked.roots, *policy.roots)))
    saved = planfile.plan_json(world.plan, asked=asked.to_json(), scope=world.scope.to_json(world.plan, world.named))
    if out is not None:
        with writing(out):
            planfile.write(out, saved)
    words = (*asked.words(), *whose.words())
    text = partial(render.plan_text, arguments=words, approval=whose.approval(), plan_file=out, next_commands=not whose.untrusted)
    put(_shown(saved, format_, partial(text, verbose=verbose, color=colored(ctx, sys.stdout))))
    if out is not None:
        say(f"Wrote {out}.")
    for note in world.notes:
        say(note)
    ctx.exit(check_code(world.plan) if check else 0)


def _shown(saved: Mapping[str, Any], format_: str, text: Callable[[Mapping[str, Any]], str]) -> str:
    if format_ == "json":
        return as_json(saved)
    return render.markdown(saved) if format_ == "markdown" else text(saved)


def check_code(plan: Plan) -> int:
    """Exit code of ``plan --check``."""
    if plan.pending:
        return PENDING
    trouble = any(item.held or item.status in (Status.FAILING, Status.UNKNOWN) for item in plan.items)
    return TROUBLE if trouble else 0

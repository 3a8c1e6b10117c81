"""plan: what is not true yet, and why."""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext
from pathlib import Path

import click

from saesync import planfile, render
from saesync.cli.common import PLAN_SUFFIX, Asked, asked_options, format_option, look, manifests_only, verbose_option
from saesync.cli.output import colored, put, say, writing
from saesync.cli.scope import policy_of, policy_option, scope_of
from saesync.model import Plan, Status
from saesync.restraint import restraint

PENDING, TROUBLE = 3, 1


@click.command()
@asked_options
@format_option
@verbose_option
@click.option(
    "--out", type=click.Path(path_type=Path, dir_okay=False), help="Also write the plan to a file, for `saesync apply`."
)
@policy_option
@click.option(
    "--untrusted", is_flag=True, help="The manifests are anybody's: no token, no plugin, no path out of their checkout."
)
@click.option("--changed-since", "since", metavar="REF", help="Only manifests that differ from this commit of their checkout.")
@click.option("--base", metavar="REF|DIR", help="What to compare with for review, when it is not --changed-since.")
@click.option("--check", is_flag=True, help="Exit 3 when steps are pending, else 1 when something is failing, held or unknown.")
@click.pass_context
def plan(
    ctx: click.Context,
    asked: Asked,
    format_: str,
    verbose: bool,
    out: Path | None,
    check: bool,
    policy_file: Path | None,
    untrusted: bool,
    since: str | None,
    base: str | None,
) -> None:
    """Show what would be done, and why. Changes nothing.

    Reads what is really published; needs no GPU and downloads no weights. PATH is a manifest or a folder of manifests;
    manifests/ unless given.
    """
    manifests_only(asked.paths)
    if untrusted and asked.roots:
        raise click.UsageError("--untrusted keeps every path inside the manifests' checkout; --root would lead out of it.", ctx)
    if base is not None and since is None:
        raise click.UsageError("--base says what changed manifests are compared with; it needs --changed-since.", ctx)
    if verbose and format_ != "text":
        raise click.UsageError("-v unfolds the text; --format markdown and json hold every SAE anyway.", ctx)
    if out is not None and out.suffix != PLAN_SUFFIX:
        raise click.UsageError(f"--out {out}: a plan file's name ends in {PLAN_SUFFIX}, so that apply knows it for one.", ctx)
    with restraint() if untrusted else nullcontext():
        policy = policy_of(policy_file, needed=untrusted)
        world = look(asked, policy=policy, scope=scope_of(asked.paths, untrusted=untrusted, since=since, base=base))
    saved = planfile.plan_json(world.plan, asked=asked.to_json(), scope=world.scope.to_json(world.plan, world.named))
    if out is not None:
        with writing(out):
            planfile.write(out, saved)
    if format_ == "json":
        put(json.dumps(saved, indent=2, ensure_ascii=False))
    elif format_ == "markdown":
        put(render.markdown(saved))
    else:
        color = colored(ctx, sys.stdout)
        words = (*asked.words(), *(("--policy", str(policy_file)) if policy_file is not None else ()))
        put(render.plan_text(saved, arguments=words, plan_file=out, next_commands=not untrusted, verbose=verbose, color=color))
    if out is not None:
        say(f"Wrote {out}.")
    for note in world.notes:
        say(note)
    ctx.exit(check_code(world.plan) if check else 0)


def check_code(plan: Plan) -> int:
    """Exit code of ``plan --check``."""
    if plan.pending:
        return PENDING
    trouble = any(item.held or item.status in (Status.FAILING, Status.UNKNOWN) for item in plan.items)
    return TROUBLE if trouble else 0

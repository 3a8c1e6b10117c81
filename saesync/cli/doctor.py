"""doctor: what is not set up as it should be, and what to do."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

import click

from saesync.cli.ci import api_option
from saesync.cli.doctor_sae import sae
from saesync.cli.output import as_json, put
from saesync.errors import Missing

if TYPE_CHECKING:
    from saesync.ci.doctor import Finding
    from saesync.ci.settings import Settings

_REMOTE = re.compile(r"(?:https://|ssh://git@|git@)[^/:]+[:/](?P<name>[^/\s]+/[^/\s]+?)(?:\.git)?/?")
_COLUMN = 7


class _Doctor(click.Group):
    """A word that is no subcommand is the SAE: ``saesync doctor ADDRESS`` is ``saesync doctor sae ADDRESS``."""

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does it, except for that."""
        if args and args[0] not in self.commands and not args[0].startswith("-"):
            return "sae", self.commands["sae"], args
        return super().resolve_command(ctx, args)


@click.group(cls=_Doctor)
def doctor() -> None:
    """Look for what is not as it should be.

    An SAE's hook and flags, a repository's settings. `saesync doctor ADDRESS` is short for `saesync doctor sae ADDRESS`.
    """


doctor.add_command(sae)


@doctor.command()
@click.argument("repository", required=False, metavar="[OWNER/REPO]", envvar="GITHUB_REPOSITORY")
@api_option
@click.option("--format", "format_", type=click.Choice(["text", "json"]), default="text", show_default=True, help="Output form.")
@click.pass_context
def github(ctx: click.Context, repository: str | None, api: str, format_: str) -> None:
    """Check a repository's settings against docs/github-actions.md.

    OWNER/REPO is $GITHUB_REPOSITORY or the checkout's `origin` unless given. The token is GITHUB_TOKEN or GH_TOKEN; some settings
    are shown only to administrators, and what is not shown is unknown, never ok. Exits 0 when all is ok, else 1.
    """
    from saesync.ci.api import connect
    from saesync.ci.doctor import State, findings
    from saesync.ci.event import REPOSITORY
    from saesync.ci.settings import snapshot
    from saesync.policy import read_policy

    name = repository or _origin()
    if not REPOSITORY.fullmatch(name):
        raise click.UsageError(f"{name!r} is not OWNER/REPO.", ctx)
    settings = snapshot(connect(api, os.environ, needed=False), name, read_policy)
    found = findings(settings)
    put(_json(settings, found) if format_ == "json" else _text(settings, found))
    ctx.exit(0 if all(each.state is State.OK for each in found) else 1)


def _json(settings: Settings, found: tuple[Finding, ...]) -> str:
    head = {"type": "saesync-doctor-github", "version": 1, "repository": settings.repository, "branch": settings.branch}
    return as_json({**head, "findings": [each.to_json() for each in found]})


def _text(settings: Settings, found: tuple[Finding, ...]) -> str:
    from saesync.inert import plain

    lines = [f"{plain(settings.repository)}, branch {plain(settings.branch)}", ""]
    for each in found:
        lines.append(f"  {each.state:<{_COLUMN}}  {plain(each.what, 500)}")
        lines += [f"  {'':<{_COLUMN}}  {plain(each.todo, 1000)}"] if each.todo else []
    counts = [(sum(each.state == state for each in found), state) for state in ("problem", "unknown", "ok")]
    said = ", ".join(f"{number} {state}{'s' if state == 'problem' and number != 1 else ''}" for number, state in counts if number)
    return "\n".join([*lines, "", f"{said}."])


def _origin() -> str:
    """OWNER/REPO of the checkout we stand in.

    Raises:
        Missing: there is none, or it is not on a GitHub.
    """
    import git

    try:
        with git.Repo(search_parent_directories=True) as checkout:
            url = checkout.remotes["origin"].url
    except (git.InvalidGitRepositoryError, git.NoSuchPathError, IndexError) as error:
        detail = "This folder is in no checkout with a remote `origin`. Say OWNER/REPO."
        raise Missing("Repository is not known", detail) from error
    found = _REMOTE.fullmatch(url)
    if found is None:
        raise Missing("Repository is not known", "The remote `origin` is not of the form that GitHub has. Say OWNER/REPO.")
    return found["name"]

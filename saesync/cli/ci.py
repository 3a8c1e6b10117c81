"""ci: the steps of the workflows, as commands that run anywhere."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath

import click

from saesync.cli.output import put

API = "https://api.github.com"

api_option = click.option("--api", envvar="GITHUB_API_URL", default=API, show_default=True, help="Root of GitHub's REST API.")
_event = click.option(
    "--event", required=True, type=click.Path(path_type=Path, dir_okay=False), help="The run's event: $GITHUB_EVENT_PATH."
)
_repository = click.option("--repository", envvar="GITHUB_REPOSITORY", metavar="OWNER/REPO", help="Refuse events of any other.")


def _inside(ctx: click.Context, param: click.Parameter, value: str) -> str:
    """A folder of the repository, with a slash at its end. All of it would count the workflows among the manifests."""
    path = PurePosixPath(value)
    if not path.parts or path.is_absolute() or ".." in path.parts or path.parts[0] == ".github":
        raise click.BadParameter("Manifests have to be in a folder of their own in the repository.", ctx, param)
    return f"{path}/"


@click.group()
def ci() -> None:
    """Steps of the GitHub workflows. Each takes GITHUB_TOKEN from the environment."""


@ci.command()
@_event
@click.option(
    "--artifact", required=True, type=click.Path(path_type=Path, file_okay=False), help="Folder with the run's plan.json."
)
@click.option(
    "--workflow", default=".github/workflows/plan.yml", show_default=True, help="The workflow whose runs are commented on."
)
@click.option(
    "--manifests", default="manifests", show_default=True, callback=_inside, help="The folder of manifests in the repository."
)
@api_option
@_repository
def comment(event: Path, artifact: Path, workflow: str, manifests: str, api: str, repository: str | None) -> None:
    """Comment a plan on the pull request it was made of, and conclude the check `saesync plan`.

    Which pull request that is, and whether it changes nothing but manifests, is decided from the event and from GitHub's API.
    The artefact is shown as text and believed in nothing. Running it again updates the same comment.
    """
    from saesync.ci.api import connect
    from saesync.ci.comment import comment as say_it
    from saesync.ci.event import read_run

    put(say_it(connect(api, os.environ), read_run(event, repository), artifact, workflow, manifests))


@ci.command()
@click.option(
    "--plan", "plan_file", required=True, type=click.Path(path_type=Path, dir_okay=False), help="What is about to be applied."
)
@_event
@click.option("--strict", is_flag=True, help="Exit 1 unless all that would be done was seen in review.")
@api_option
@_repository
@click.pass_context
def compare(ctx: click.Context, plan_file: Path, event: Path, strict: bool, api: str, repository: str | None) -> None:
    """Compare a plan with the one shown in the merged pull request, release by release; differences first, as Markdown."""
    from saesync import planfile
    from saesync.ci.api import connect
    from saesync.ci.compare import compare as compare_plans
    from saesync.ci.compare import markdown
    from saesync.ci.event import read_push

    found = compare_plans(connect(api, os.environ), read_push(event, repository), planfile.read(plan_file))
    put(markdown(found))
    ctx.exit(1 if strict and not found.as_reviewed else 0)

"""One comment and one check run for the pull request that a finished run was of."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from saesync.ci import artifact, check, pulls, verdicts
from saesync.ci.api import GitHub
from saesync.ci.check import Verdict
from saesync.ci.event import Run
from saesync.errors import NotVisible, Refused
from saesync.render.markdown import MARKER

WORKFLOW = ".github/workflows/plan.yml"
ACTIONS_BOT = "github-actions[bot]"
"""Who a workflow's own token comments as. Such a token cannot ask who it is."""


def comment(github: GitHub, run: Run, folder: Path, workflow: str = WORKFLOW, manifests: str = pulls.MANIFESTS) -> str:
    """Say what a run planned, where it belongs; ``folder`` holds the run's artefact. Returns what was done, in a sentence.
    ``manifests`` is the folder of manifests in the repository, with a slash at its end.

    Running it again changes nothing; a run that is not of the pull request's head any more does nothing.

    Raises:
        NotVisible: the token may not read or write what is needed.
        Unavailable: network, server or quota, after waiting.
    """
    if run.trigger != "pull_request" or run.path != workflow:
        return f"Nothing to do: the run is not of {workflow} for a pull request."
    found = pulls.find(github, run)
    if len(found) != 1:
        many = "no open pull request has" if not found else f"{len(found)} open pull requests have"
        return f"Nothing to do: {many} commit {run.head_sha} of {run.head_repository or 'a deleted repository'} as head."
    number = found[0].number
    if found[0].base_ref != run.default_branch:
        return f"Nothing to do: pull request #{number} is not against {run.default_branch}."
    verdict = _verdict(github, run, number, folder, manifests)
    if not pulls.read(github, run.repository, number).is_of(run):
        return f"Nothing to do: pull request #{number} has moved on from commit {run.head_sha}."
    check.put(github, run.repository, run.head_sha, verdict, run.page)
    done = github.converge(lambda: _put(github, run.repository, number, verdict.body))
    return f"Pull request #{number}: comment {done}, check {check.NAME!r} concludes {verdict.conclusion}."


def _verdict(github: GitHub, run: Run, number: int, folder: Path, manifests: str) -> Verdict:
    changes = pulls.changes(github, run, pulls.read(github, run.repository, number), manifests)
    if not changes.only_manifests:
        return verdicts.unverified(run, changes)
    try:
        return verdicts.planned(run, artifact.read(folder))
    except Refused as error:
        return verdicts.unavailable(run, error.diagnostics[0].detail)


def _put(github: GitHub, repository: str, number: int, body: str) -> str:
    """Write the comment that this token wrote before, or a new one. Returns ``posted``, ``updated`` or ``unchanged``."""
    path = f"/repos/{repository}/issues"
    me = _me(github)
    mine = [found for found in github.pages(f"{path}/{number}/comments") if _is_ours(found, me)]
    if not mine:
        github.send("POST", f"{path}/{number}/comments", {"body": body})
        return "posted"
    for other in mine[1:]:  # two runs at once may both have found none
        with suppress(NotVisible):  # gone already
            github.send("DELETE", f"{path}/comments/{other['id']}", {})
    if str(mine[0]["body"]).replace("\r\n", "\n").strip() == body.strip():
        return "unchanged"
    github.send("PATCH", f"{path}/comments/{mine[0]['id']}", {"body": body})
    return "updated"


def _is_ours(found: Mapping[str, Any], me: str) -> bool:
    """By author and marker: anybody can write the marker."""
    user, body = found.get("user"), found.get("body")
    author = user.get("login") if isinstance(user, dict) else None
    return author == me and isinstance(body, str) and body.startswith(MARKER) and isinstance(found.get("id"), int)


def _me(github: GitHub) -> str:
    """The account that this token writes as."""
    seen = github.look("/user")
    login = seen.value.get("login") if isinstance(seen.value, dict) else None
    return login if isinstance(login, str) else ACTIONS_BOT

"""The check run ``saesync plan``: what was concluded of a commit, and the digests that a later plan is compared with."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from saesync.ci.api import GitHub, part
from saesync.errors import NotVisible
from saesync.nothing import nothing

NAME = "saesync plan"
_MARK = "saesync-plan:"
"""How ``external_id`` begins: it tells our check runs from jobs that happen to be called the same."""

_FORM = "saesync-plan-check/1"
_ROOM = 60_000
_BLOCK = re.compile(r"^```json\n(\{[^\n]*\})\n```$", re.MULTILINE)
_DIGEST = re.compile(r"[0-9a-f]{64}")


class Conclusion(StrEnum):
    """GitHub's words. A required check lets success and neutral pass, and stops at the others."""

    SUCCESS = "success"
    NEUTRAL = "neutral"
    FAILURE = "failure"
    ACTION_REQUIRED = "action_required"


@dataclass(frozen=True, slots=True)
class Digests:
    """Of the plan that was shown for ``commit``: of all of it and by release."""

    commit: str
    plan: str
    releases: Mapping[str, str] = field(default_factory=nothing)

    def text(self) -> str:
        """For the check run's page and for ``read``: one line of JSON in a code block. What has no room is counted."""
        releases = dict(self.releases)
        while len(line := self._line(releases)) > _ROOM:
            for name in list(releases)[-max(1, len(releases) // 8) :]:
                del releases[name]
        left = len(self.releases) - len(releases)
        note = f"\n\n{left:,} more releases have no room here." if left else ""
        return f"Digests of the plan, by release. Apply's own plan is compared with them.\n\n```json\n{line}\n```{note}\n"

    def _line(self, releases: Mapping[str, str]) -> str:
        value = {"form": _FORM, "commit": self.commit, "plan": self.plan, "releases": releases}
        return json.dumps(value, sort_keys=True)

    @classmethod
    def read(cls, text: Any) -> Digests | None:
        """Inverse of ``text``; None for anything else."""
        found = _BLOCK.search(text) if isinstance(text, str) else None
        try:
            value = json.loads(found[1]) if found else None
        except (ValueError, RecursionError):
            return None
        if not isinstance(value, dict) or value.get("form") != _FORM:
            return None
        commit, plan, releases = value.get("commit"), value.get("plan"), value.get("releases")
        if not isinstance(commit, str) or not isinstance(releases, dict) or not all(map(_is_digest, [plan, *releases.values()])):
            return None
        return cls(commit, str(plan), releases)


def _is_digest(value: Any) -> bool:
    return isinstance(value, str) and _DIGEST.fullmatch(value) is not None


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is said of a pull request. ``body`` is the comment's text, ``digests`` those of the plan when one is shown."""

    conclusion: Conclusion
    title: str
    body: str
    digests: Digests | None = None


@dataclass(frozen=True, slots=True)
class Found:
    """A check run that stands at a commit."""

    conclusion: str
    digests: Digests | None


def put(github: GitHub, repository: str, commit: str, verdict: Verdict, page: str) -> None:
    """Conclude the check run of a commit: our own one is updated, else one is made.

    Raises:
        NotVisible: the token needs ``checks: write``.
    """
    body = _body(verdict, page)

    def attempt() -> None:
        mine = _mine(github, repository, commit)
        if mine and _update(github, repository, mine[-1], body):
            return
        github.send("POST", f"/repos/{repository}/check-runs", {"name": NAME, "head_sha": commit, **body})

    github.converge(attempt)


def _update(github: GitHub, repository: str, run: Mapping[str, Any], body: Mapping[str, Any]) -> bool:
    """Whether it could be: one that another app made cannot."""
    try:
        github.send("PATCH", f"/repos/{repository}/check-runs/{run['id']}", body)
    except NotVisible:
        return False
    return True


def _body(verdict: Verdict, page: str) -> dict[str, Any]:
    digests = verdict.digests
    output = {"title": verdict.title, "summary": f"{verdict.title}. The plan is in the pull request's comment."}
    if digests is not None:
        output["text"] = digests.text()
    return {
        "status": "completed",
        "conclusion": str(verdict.conclusion),
        "external_id": f"{_MARK}{digests.plan if digests is not None else 'none'}",
        "details_url": page,
        "output": output,
    }


def find(github: GitHub, repository: str, commit: str) -> Found | None:
    """What was concluded of a commit, with its digests; None when no check run of ours stands there."""
    mine = _mine(github, repository, commit)
    if not mine:
        return None
    output = mine[-1].get("output")
    digests = Digests.read(output.get("text")) if isinstance(output, dict) else None
    if digests is not None and digests.commit != commit:
        digests = None
    return Found(str(mine[-1].get("conclusion")), digests)


def _mine(github: GitHub, repository: str, commit: str) -> list[Mapping[str, Any]]:
    """Our check runs of a commit, oldest first."""
    path = f"/repos/{repository}/commits/{part(commit)}/check-runs"
    found = github.pages(path, key="check_runs", check_name=NAME, filter="all")
    mine = [run for run in found if run.get("name") == NAME and str(run.get("external_id") or "").startswith(_MARK)]
    return sorted((run for run in mine if isinstance(run.get("id"), int)), key=lambda run: run["id"])

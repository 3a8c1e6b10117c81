"""The event file that GitHub gives a workflow run: the only word that is taken about a run and a push."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saesync.errors import Missing, Refused

MAX_BYTES = 32 << 20
REPOSITORY = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}/(?!\.{1,2}$)[A-Za-z0-9._-]{1,100}")
_SHA = re.compile(r"[0-9a-f]{40}([0-9a-f]{24})?")


@dataclass(frozen=True, slots=True)
class Run:
    """A finished workflow run. ``path`` is its workflow's file, ``trigger`` the event that started it.

    ``head_repository`` is None when it was deleted meanwhile. ``page`` is the run's page.
    """

    repository: str
    default_branch: str
    head_sha: str
    head_repository: str | None
    path: str
    trigger: str
    conclusion: str
    page: str


@dataclass(frozen=True, slots=True)
class Push:
    """A push to a branch. ``after`` is the commit it now points to."""

    repository: str
    default_branch: str
    branch: str | None
    after: str


def read_run(file: Path, repository: str | None = None) -> Run:
    """The event of a workflow that runs on ``workflow_run: completed``, of ``repository`` when that is given.

    Raises:
        Missing: there is no such file.
        Refused: it is no such event, or another repository's.
    """
    event = _read(file)
    run = _part(event, "workflow_run", file)
    where = run.get("head_repository")
    full_name, default = _repository(event, file, repository)
    if event.get("action") != "completed":
        raise _refused(file, 'its "action" is not "completed"')
    return Run(
        full_name,
        default,
        _sha(run, "head_sha", file),
        _name(where, file) if where is not None else None,
        _text(run, "path", file).partition("@")[0],
        _text(run, "event", file),
        _text(run, "conclusion", file),
        _text(run, "html_url", file),
    )


def read_push(file: Path, repository: str | None = None) -> Push:
    """The event of a workflow that runs on ``push``.

    Raises:
        Missing: there is no such file.
        Refused: it is no such event, or another repository's.
    """
    event = _read(file)
    full_name, default = _repository(event, file, repository)
    prefix, _, branch = _text(event, "ref", file).partition("refs/heads/")
    return Push(full_name, default, branch if branch and not prefix else None, _sha(event, "after", file))


def _read(file: Path) -> Mapping[str, Any]:
    try:
        with file.open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise Missing("Event file cannot be read", f"{file}: {error.strerror}. Give it $GITHUB_EVENT_PATH.") from error
    try:
        event = json.loads(data) if len(data) <= MAX_BYTES else None
    except (ValueError, RecursionError):
        event = None
    if not isinstance(event, dict):
        raise _refused(file, "it is not a JSON object")
    return event


def _repository(event: Mapping[str, Any], file: Path, expected: str | None) -> tuple[str, str]:
    repository = _part(event, "repository", file)
    name = _name(repository, file)
    if expected is not None and expected.casefold() != name.casefold():
        raise _refused(file, f"it is of {name}, and --repository is {expected}")
    return name, _text(repository, "default_branch", file)


def _name(repository: Any, file: Path) -> str:
    name = repository.get("full_name") if isinstance(repository, dict) else None
    if not isinstance(name, str) or not REPOSITORY.fullmatch(name):
        raise _refused(file, "it names no repository")
    return name


def _part(value: Mapping[str, Any], name: str, file: Path) -> Mapping[str, Any]:
    found = value.get(name)
    if not isinstance(found, dict):
        raise _refused(file, f'it has no "{name}"')
    return found


def _text(value: Mapping[str, Any], name: str, file: Path) -> str:
    found = value.get(name)
    if not isinstance(found, str) or not found or len(found) > 1000:
        raise _refused(file, f'it has no "{name}"')
    return found


def _sha(value: Mapping[str, Any], name: str, file: Path) -> str:
    found = _text(value, name, file)
    if not _SHA.fullmatch(found):
        raise _refused(file, f'its "{name}" is not a commit hash')
    return found


def _refused(file: Path, what: str) -> Refused:
    return Refused("Not the event this command is for", f"{file}: {what}. Give it $GITHUB_EVENT_PATH.")

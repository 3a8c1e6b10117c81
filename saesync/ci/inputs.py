"""Where the workflows say that manifests and the policy are: inputs of the action, else its defaults."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping

from saesync.ci.workflows import Workflow, parse
from saesync.policy import DEFAULT_FILE

MANIFESTS, POLICY = "manifests", "policy"
DEFAULTS: Mapping[str, str] = {MANIFESTS: "manifests", POLICY: DEFAULT_FILE}
_COMMANDS: Mapping[str, tuple[str, ...]] = {
    MANIFESTS: ("plan", "comment", "propose"),
    POLICY: ("plan", "propose", "publish", "register"),
}
"""The action's commands that take each input."""


def parsed(files: Mapping[str, str], paths: Iterable[str]) -> list[Workflow]:
    """Those of ``paths`` that are workflows."""
    found = (parse(path, files[path]) for path in paths if path in files)
    return [workflow for workflow in found if workflow is not None]


def named(workflows: Iterable[Workflow], name: str) -> dict[str, list[str]]:
    """The values that an input has in the workflows, each with the files that say so; what is computed there is left out."""
    found: dict[str, list[str]] = {}
    for workflow in workflows:
        for value in _values(workflow, name):
            files = found.setdefault(value, [])
            files += [] if workflow.path in files else [workflow.path]
    return found


def _values(workflow: Workflow, name: str) -> Iterator[str]:
    for job in workflow.jobs:
        for inputs in job.inputs:
            if inputs.get("command") in _COMMANDS[name]:
                value = str(inputs.get(name, DEFAULTS[name]))
                if "${{" not in value:
                    yield value.removeprefix("./").rstrip("/")


def places(workflows: Iterable[Workflow], name: str) -> list[str]:
    """The same values alone; the default where no step of the action says any."""
    return sorted(named(workflows, name)) or [DEFAULTS[name]]


def starts(workflow: Workflow, event: str, path: str) -> bool:
    """Whether a change of ``path`` runs a workflow, as far as its ``paths`` decide."""
    patterns = workflow.triggers.get(event, {}).get("paths")
    if not isinstance(patterns, list):
        return True
    starting = False
    for pattern in map(str, patterns):  # the last one that matches decides
        if _pattern(pattern.removeprefix("!")).fullmatch(path):
            starting = not pattern.startswith("!")
    return starting


def _pattern(text: str) -> re.Pattern[str]:
    pieces = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*"}
    return re.compile("".join(pieces.get(piece) or re.escape(piece) for piece in re.findall(r"\*\*/|\*\*|\*|[^*]+", text)))

"""What a workflow file lets its jobs do: structural facts, not bytes, so that a repository may word its own."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

_PINNED = re.compile(r"[^@\s]+@[0-9a-f]{40}([0-9a-f]{24})?")
_IMAGE = re.compile(r"docker://[^@\s]+@sha256:[0-9a-f]{64}")
_HEAD = re.compile(r"github\.(event\.)?(pull_request\.head|workflow_run\.head|head_ref)")
Permissions = Mapping[str, str] | None


@dataclass(frozen=True, slots=True)
class Job:
    """One job. ``permissions`` are those it ends up with: names to ``read``, ``write``, ``none``; None where nobody says.

    ``uses`` are actions and reusable workflows; ``calls``: the whole job is one such workflow. ``checkouts`` are the inputs of
    each checkout, ``inputs`` those of each step of saesync's action, which has a ``command``.
    """

    name: str
    permissions: Permissions
    environment: str | None
    uses: tuple[str, ...]
    checkouts: tuple[Mapping[str, Any], ...]
    calls: bool
    inputs: tuple[Mapping[str, Any], ...] = ()

    @property
    def writes(self) -> tuple[str, ...]:
        """What its token may change."""
        return () if self.permissions is None else tuple(sorted(k for k, v in self.permissions.items() if v == "write"))


@dataclass(frozen=True, slots=True)
class Workflow:
    """One file under ``.github/workflows/``. ``triggers`` maps events to their filters; ``text`` is all of it but comments."""

    path: str
    triggers: Mapping[str, Mapping[str, Any]]
    cancels: bool
    jobs: tuple[Job, ...]
    text: str

    def unpinned(self) -> list[str]:
        """Actions that are not named by commit; ones of the repository itself are."""
        used = [use for job in self.jobs for use in job.uses]
        return [use for use in used if not use.startswith("./") and not (_PINNED.fullmatch(use) or _IMAGE.fullmatch(use))]

    def checks_out_the_head(self) -> bool:
        """Whether a checkout takes its commit from the pull request."""
        return any(_HEAD.search(str(with_)) for job in self.jobs for with_ in job.checkouts)

    def keeps_credentials(self) -> bool:
        """Whether a checkout leaves the token in the git configuration, as it does unless told not to."""
        kept = (str(with_.get("persist-credentials", True)).lower() != "false" for job in self.jobs for with_ in job.checkouts)
        return any(kept)


def parse(path: str, text: str) -> Workflow | None:
    """A workflow; None when the text is no YAML or not of the form of one."""
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError):
        return None
    if not isinstance(value, dict) or not isinstance(value.get("jobs"), dict):
        return None
    triggers = _triggers(value.get("on", value.get(True)))  # YAML 1.1 reads `on` as true
    top = _permissions(value.get("permissions"))
    jobs = tuple(_job(str(name), job, top) for name, job in value["jobs"].items() if isinstance(job, dict))
    return Workflow(path, triggers, _cancels(value), jobs, yaml.safe_dump(value, width=1_000_000))


def _job(name: str, value: Mapping[str, Any], top: Permissions) -> Job:
    steps = [step for step in _list(value.get("steps")) if isinstance(step, dict)]
    uses = [str(step["uses"]) for step in (value, *steps) if "uses" in step]
    checkouts = [step.get("with") or {} for step in steps if str(step.get("uses", "")).startswith("actions/checkout@")]
    environment = value.get("environment")
    named = environment.get("name") if isinstance(environment, dict) else environment
    own = _permissions(value["permissions"]) if "permissions" in value else top
    return Job(
        name,
        own,
        str(named) if named is not None else None,
        tuple(uses),
        tuple(with_ for with_ in checkouts if isinstance(with_, dict)),
        "uses" in value,
        tuple(with_ for with_ in (_mapping(step.get("with")) for step in steps if "uses" in step) if "command" in with_),
    )


def _cancels(value: Mapping[str, Any]) -> bool:
    """Whether a concurrency group may stop a run that has begun."""
    groups = [value.get("concurrency"), *(job.get("concurrency") for job in value["jobs"].values() if isinstance(job, dict))]
    stops = (group.get("cancel-in-progress", False) for group in groups if isinstance(group, dict))
    return any(stop is not False for stop in stops)


def _triggers(value: Any) -> Mapping[str, Mapping[str, Any]]:
    if isinstance(value, str):
        return {value: {}}
    if isinstance(value, list):
        return {str(name): {} for name in value}
    return {str(name): dict(_mapping(with_)) for name, with_ in _mapping(value).items()}


def _permissions(value: Any) -> Permissions:
    if isinstance(value, str):
        return {"all": value.removesuffix("-all")}
    return {str(name): str(level) for name, level in value.items()} if isinstance(value, dict) else None


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}

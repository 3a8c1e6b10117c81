"""What the three workflows may and may not do. One sentence per thing that is not so."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping

from saesync.ci.workflows import Workflow

_SECRET = re.compile(r"\$\{\{[^}]*\bsecrets\b|\bsecrets:")
_RESOURCE = re.compile(r"\bHF_OIDC_RESOURCE\s*[:=]")
_COMMENT_WRITES = {"pull-requests", "checks", "issues"}


def workflow_problems(kind: str, workflow: Workflow, branch: str, environment: str) -> list[str]:
    """Of ``plan``, ``comment`` or ``apply``; ``branch`` is the default one, ``environment`` the protected one."""
    return [*_every(workflow), *_KINDS[kind](workflow, branch, environment)]


def _every(workflow: Workflow) -> Iterator[str]:
    if any(job.permissions is None for job in workflow.jobs):
        yield "a job has the repository's default permissions: say `permissions:`"
    if any((job.permissions or {}).get("all") == "write" for job in workflow.jobs):
        yield "a job may write everything"
    if workflow.keeps_credentials():
        yield "a checkout keeps the token: say `persist-credentials: false`"
    if _RESOURCE.search(workflow.text):
        yield "it sets HF_OIDC_RESOURCE, which beats HF_TOKEN in every call"


def _plan(workflow: Workflow, branch: str, environment: str) -> Iterator[str]:
    if "pull_request" not in workflow.triggers:
        yield "it does not run on pull_request"
    writes = sorted({name for job in workflow.jobs for name in job.writes})
    if writes:
        yield f"it may write {', '.join(writes)}, and pull requests of anybody run it"
    if _SECRET.search(workflow.text):
        yield "it reads secrets"
    if any(job.environment is not None for job in workflow.jobs):
        yield "it runs in an environment"


def _comment(workflow: Workflow, branch: str, environment: str) -> Iterator[str]:
    if "workflow_run" not in workflow.triggers:
        yield "it does not run on workflow_run"
    writes = sorted({name for job in workflow.jobs for name in job.writes} - _COMMENT_WRITES)
    if writes:
        yield f"it may write {', '.join(writes)}"
    if workflow.checks_out_the_head():
        yield "it checks out the pull request's commit with a token that can write"


def _apply(workflow: Workflow, branch: str, environment: str) -> Iterator[str]:
    pushed = workflow.triggers.get("push")
    if pushed is None or pushed.get("branches") != [branch]:
        yield f"it does not run on pushes to {branch} alone"
    if {"pull_request", "pull_request_target", "workflow_run"} & set(workflow.triggers):
        yield "it runs on what pull requests start"
    if workflow.cancels:
        yield "its concurrency group may stop a running apply"
    # a called workflow names the environment itself; it is pinned, so what it says was read
    guarded = [job for job in workflow.jobs if job.environment == environment or job.calls]
    if not guarded:
        yield f"no job runs in the environment {environment}"
    loose = [job.name for job in workflow.jobs if "id-token" in job.writes and job not in guarded]
    if loose:
        yield f"job {', '.join(loose)} may ask for an identity outside of the environment {environment}"


_KINDS: Mapping[str, Callable[[Workflow, str, str], Iterator[str]]] = {"plan": _plan, "comment": _comment, "apply": _apply}

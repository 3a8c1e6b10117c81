"""Whether a repository is set up as docs/github-actions.md asks: small pure checks over one snapshot of its settings.

What cannot be seen is ``unknown``, never ok.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from saesync.ci import codeowners
from saesync.ci.check import NAME
from saesync.ci.inputs import MANIFESTS, POLICY, named, parsed, places, starts
from saesync.ci.settings import ENVIRONMENT, OURS, WORKFLOWS, Settings
from saesync.ci.workflow_checks import workflow_problems
from saesync.ci.workflows import Workflow, parse

_RULES = "Settings > Rules > Rulesets, for the default branch"
_ADMIN = "GitHub shows it only to a token with `Administration: read`: run again with one of an administrator."


class State(StrEnum):
    """How a check ended."""

    OK = "ok"
    PROBLEM = "problem"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that the docs require. ``todo`` says what to do unless it is ok."""

    name: str
    state: State
    what: str
    todo: str = ""

    def to_json(self) -> dict[str, str]:
        """The form that is printed."""
        return {"name": self.name, "state": str(self.state), "what": self.what, "todo": self.todo}


Check = Callable[[Settings], Finding]


def findings(settings: Settings) -> tuple[Finding, ...]:
    """Every check, in the order in which one would set a repository up."""
    return tuple(check(settings) for check in CHECKS)


# ------------------------------------------------------------------------------------------------ the default branch


def _branch(
    name: str, what: str, todo: str, rules: Callable[[list[Any]], bool], classic: Callable[[Mapping[str, Any]], bool]
) -> Check:
    """A check that either a ruleset or the classic protection may satisfy."""

    def check(settings: Settings) -> Finding:
        ruled = isinstance(settings.rules.value, list) and rules(settings.rules.value)
        protected = isinstance(settings.protection.value, dict) and classic(settings.protection.value)
        if ruled or protected:
            return Finding(name, State.OK, what)
        hidden = settings.rules.value is None or (settings.protection.value is None and settings.protection.status != 404)
        if hidden:
            return Finding(name, State.UNKNOWN, what, _ADMIN)
        return Finding(name, State.PROBLEM, f"Not so: {what}", f"{_RULES}: {todo}")

    return check


def _parameters(rules: list[Any], kind: str) -> Iterator[Mapping[str, Any]]:
    for rule in rules:
        if isinstance(rule, dict) and rule.get("type") == kind:
            parameters = rule.get("parameters")
            yield parameters if isinstance(parameters, dict) else {}


def _rule(kind: str, test: Callable[[Mapping[str, Any]], bool]) -> Callable[[list[Any]], bool]:
    return lambda rules: any(test(parameters) for parameters in _parameters(rules, kind))


def _classic(section: str, test: Callable[[Mapping[str, Any]], bool]) -> Callable[[Mapping[str, Any]], bool]:
    def check(protection: Mapping[str, Any]) -> bool:
        found = protection.get(section)
        return isinstance(found, dict) and test(found)

    return check


def _approvals(found: Mapping[str, Any]) -> bool:
    return isinstance(count := found.get("required_approving_review_count"), int) and count >= 1


def _needs_check(found: Mapping[str, Any]) -> bool:
    """``required_status_checks`` in a ruleset, ``checks`` or the older ``contexts`` in a protection."""
    checks = [*(found.get("required_status_checks") or ()), *(found.get("checks") or ())]
    named = {check.get("context") for check in checks if isinstance(check, dict)}
    return NAME in named | set(found.get("contexts") or ())


_BRANCH: tuple[Check, ...] = (
    _branch(
        "approvals",
        "Merging needs an approving review.",
        "require a pull request before merging, with at least one approval.",
        _rule("pull_request", _approvals),
        _classic("required_pull_request_reviews", _approvals),
    ),
    _branch(
        "stale-approvals",
        "A new push dismisses approvals: nobody merges what was not reviewed.",
        "dismiss stale pull request approvals when new commits are pushed.",
        _rule("pull_request", lambda found: found.get("dismiss_stale_reviews_on_push") is True),
        _classic("required_pull_request_reviews", lambda found: found.get("dismiss_stale_reviews") is True),
    ),
    _branch(
        "code-owners",
        "Merging needs a review by the owners of what is changed.",
        "require review from Code Owners.",
        _rule("pull_request", lambda found: found.get("require_code_owner_review") is True),
        _classic("required_pull_request_reviews", lambda found: found.get("require_code_owner_reviews") is True),
    ),
    _branch(
        "plan-check",
        f"Merging needs the check `{NAME}`.",
        f"require status checks to pass, and add `{NAME}`.",
        _rule("required_status_checks", _needs_check),
        _classic("required_status_checks", _needs_check),
    ),
    _branch(
        "up-to-date",
        "A branch must be up to date before merging: its plan is of what main is now.",
        "require branches to be up to date before merging.",
        _rule("required_status_checks", lambda found: found.get("strict_required_status_checks_policy") is True),
        _classic("required_status_checks", lambda found: found.get("strict") is True),
    ),
    _branch(
        "force-pushes",
        "Force pushes are off.",
        "block force pushes.",
        lambda rules: any(isinstance(rule, dict) and rule.get("type") == "non_fast_forward" for rule in rules),
        _classic("allow_force_pushes", lambda found: found.get("enabled") is False),
    ),
)

# --------------------------------------------------------------------------------------------------------- files


def _places(settings: Settings, name: str) -> list[str]:
    """Where manifests, or the policy, are."""
    return places(parsed(settings.files, OURS), name)


def _codeowners(settings: Settings) -> Finding:
    folders, policies = [f"{each}/" for each in _places(settings, MANIFESTS)], _places(settings, POLICY)
    name, what = "codeowners-file", f"CODEOWNERS names owners of {', '.join([*folders, '.github/'])} and {', '.join(policies)}."
    place = next((place for place in codeowners.PLACES if place in settings.files), None)
    if place is None:
        lines = ", ".join(f"`/{each}`" for each in (*folders, ".github/", *policies))
        return _absent(settings, name, what, f"Add {codeowners.PLACES[0]} with lines for {lines}.")
    if settings.owners_errors.value:
        return Finding(name, State.PROBLEM, f"{place} has errors.", f"Mend what GitHub shows on the page of {place}.")
    guarded = [path for path in settings.paths or () if path.startswith((*folders, ".github/"))]
    new = [*(f"{folder}new.yaml" for folder in folders), ".github/workflows/new.yml", *policies]  # owned before they exist
    bare = codeowners.unowned(codeowners.parse(settings.files[place]), [*new, place, *sorted(guarded)])
    if bare:
        more = f" and {len(bare) - 3} more" if len(bare) > 3 else ""
        todo = f"Name owners of them in {place}; a later line without owners takes them away."
        return Finding(name, State.PROBLEM, f"Nobody owns {', '.join(bare[:3])}{more}.", todo)
    if settings.owners_errors.value is None:
        return Finding(name, State.UNKNOWN, what, f"GitHub does not say whether {place} has errors: look at its page.")
    return Finding(name, State.OK, what)


def _policy(settings: Settings) -> Finding:
    policies = _places(settings, POLICY)
    name, what = "policy", f"{', '.join(policies)} is on the default branch, and can be read."
    for policy in policies:
        if policy not in settings.files:
            return _absent(settings, name, what, f"Add {policy}; docs/github-actions.md has one to begin with.")
        if policy in settings.policy_errors:
            return Finding(name, State.PROBLEM, f"{policy} cannot be used.", settings.policy_errors[policy])
    return Finding(name, State.OK, what)


def _inputs(settings: Settings) -> Finding:
    """Jobs that look at different folders say that all is well of what they do not look at."""
    name, what = "inputs", "The workflows name one folder of manifests and one policy, and a changed manifest starts them."
    workflows = {workflow.path: workflow for workflow in parsed(settings.files, OURS)}
    if not workflows:
        return _absent(settings, name, what, "Add the workflows from docs/github-actions.md.")
    problems = []
    for word in (MANIFESTS, POLICY):
        found = named(workflows.values(), word)
        if len(found) > 1:
            problems.append(f"`{word}` is {', '.join(f'{value} in {_files(files)}' for value, files in sorted(found.items()))}")
    for path, event in zip((OURS[0], OURS[2]), ("pull_request", "push"), strict=True):
        for folder in _places(settings, MANIFESTS):
            if path in workflows and not starts(workflows[path], event, f"{folder}/new.yaml"):
                problems.append(f"the `paths` of {_files([path])} leave out {folder}/")
    if problems:
        todo = "Name the same folder and policy at every step of the action, and in `paths`; docs/github-actions.md says where."
        return Finding(name, State.PROBLEM, f"Not so: {'; '.join(problems)}.", todo)
    return Finding(name, State.OK, what)


def _files(paths: list[str]) -> str:
    return " and ".join(path.removeprefix(WORKFLOWS) for path in paths)


def _absent(settings: Settings, name: str, what: str, todo: str) -> Finding:
    """A file that was not found: known to be absent only where all files are known."""
    if settings.paths is None:
        return Finding(name, State.UNKNOWN, what, "The files of the default branch cannot be listed with this token.")
    return Finding(name, State.PROBLEM, f"Not so: {what}", todo)


def _workflow(kind: str, what: str) -> Check:
    def check(settings: Settings) -> Finding:
        path = f"{WORKFLOWS}{kind}.yml"
        if path not in settings.files:
            return _absent(settings, f"workflow-{kind}", what, f"Add {path} from docs/github-actions.md.")
        found = parse(path, settings.files[path])
        problems = ["it is not a workflow"] if found is None else workflow_problems(kind, found, settings.branch, ENVIRONMENT)
        if problems:
            todo = f"Compare {path} with docs/github-actions.md."
            return Finding(f"workflow-{kind}", State.PROBLEM, f"{path}: {'; '.join(problems)}.", todo)
        return Finding(f"workflow-{kind}", State.OK, what)

    return check


def _others(settings: Settings) -> Finding:
    """Every other workflow can spoil it, too."""
    name, what = "workflows", "Every workflow pins its actions by commit, and none runs on pull_request_target."
    if settings.paths is None:
        return Finding(name, State.UNKNOWN, what, "The files of the default branch cannot be listed with this token.")
    found = [(path, parse(path, text)) for path, text in settings.files.items() if path.startswith(WORKFLOWS)]
    problems = [f"{path}: {said}" for path, workflow in found if workflow is not None for said in _common(workflow)]
    if problems:
        todo = "Pin actions by 40-digit commit; use pull_request, and workflow_run for what needs a token."
        return Finding(name, State.PROBLEM, "; ".join(problems[:5]) + ".", todo)
    return Finding(name, State.OK, what)


def _common(workflow: Workflow) -> Iterator[str]:
    loose = workflow.unpinned()
    if loose:
        yield f"not pinned: {', '.join(loose[:3])}"
    if "pull_request_target" in workflow.triggers:
        yield "runs on pull_request_target"


# --------------------------------------------------------------------------------------------- environment, secrets


def _reviewers(settings: Settings) -> Finding:
    name, what = "environment-reviewers", f"The environment `{ENVIRONMENT}` waits for a reviewer."
    todo = f"Settings > Environments > {ENVIRONMENT}: required reviewers."
    if not isinstance(settings.environment.value, dict):
        return _no_environment(settings, name, what, todo)
    rules = settings.environment.value.get("protection_rules")
    kinds = {rule.get("type"): rule for rule in rules if isinstance(rule, dict)} if isinstance(rules, list) else {}
    if not kinds.get("required_reviewers", {}).get("reviewers"):
        return Finding(name, State.PROBLEM, f"Not so: {what}", todo)
    return Finding(name, State.OK, what)


def _deployment_branches(settings: Settings) -> Finding:
    name, what = "environment-branches", f"The environment `{ENVIRONMENT}` is open to the default branch alone."
    todo = f"Settings > Environments > {ENVIRONMENT}: selected branches and tags, `{settings.branch}` alone."
    if not isinstance(settings.environment.value, dict):
        return _no_environment(settings, name, what, todo)
    policy = settings.environment.value.get("deployment_branch_policy")
    if not isinstance(policy, dict) or policy.get("custom_branch_policies") is not True:
        return Finding(name, State.PROBLEM, f"Not so: {what}", todo)
    listed = settings.environment_branches.value
    if listed is None:
        return Finding(name, State.UNKNOWN, what, _ADMIN)
    named = [(entry.get("name"), entry.get("type", "branch")) for entry in listed if isinstance(entry, dict)]
    if named != [(settings.branch, "branch")]:
        return Finding(name, State.PROBLEM, f"Not so: {what}", todo)
    return Finding(name, State.OK, what)


def _no_environment(settings: Settings, name: str, what: str, todo: str) -> Finding:
    if settings.environment.status == 404:
        return Finding(name, State.PROBLEM, f"There is no environment `{ENVIRONMENT}`.", todo)
    return Finding(name, State.UNKNOWN, what, _ADMIN)


def _secrets(settings: Settings) -> Finding:
    """Where a job gets short-lived tokens by OIDC, a secret that can write to the Hub only waits to be stolen.

    ``HF_TOKEN`` is the docs' name for the read-only token; what a secret may do, GitHub cannot know.
    """
    name, what = "hub-secrets", "No long-lived Hub token beside OIDC, but HF_TOKEN, which is to be read-only."
    path = f"{WORKFLOWS}apply.yml"
    apply = parse(path, settings.files[path]) if path in settings.files else None
    if apply is None:
        return Finding(name, State.UNKNOWN, what, f"{path} says whether OIDC is configured, and cannot be read.")
    if not any("id-token" in job.writes for job in apply.jobs):
        return Finding(name, State.OK, "OIDC is not configured, so a Hub token has to be a secret.")
    if not isinstance(settings.secrets.value, list):
        return Finding(name, State.UNKNOWN, what, _ADMIN)
    names = [str(secret.get("name", "")) for secret in settings.secrets.value]
    loose = [each for each in names if each.startswith(("HF_", "HUGGING")) and each != "HF_TOKEN"]
    if loose:
        return Finding(name, State.PROBLEM, f"Long-lived Hub secrets beside OIDC: {', '.join(loose)}.", "Delete and revoke them.")
    return Finding(name, State.OK, what)


CHECKS: tuple[Check, ...] = (
    *_BRANCH,
    _codeowners,
    _policy,
    _workflow("plan", "plan.yml plans pull requests with a read-only token and without secrets."),
    _workflow("comment", "comment.yml comments on finished plans and checks nothing of them out."),
    _workflow("apply", "apply.yml applies what is pushed to the default branch, in a protected environment."),
    _inputs,
    _others,
    _reviewers,
    _deployment_branches,
    _secrets,
)

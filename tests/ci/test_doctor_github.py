"""`saesync doctor github`: one repository set up as it should be, and each way to fall short of it."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ci_support import REPO, Forge, saesync

from saesync.ci import codeowners
from saesync.ci.api import GitHub, Seen
from saesync.ci.doctor import CHECKS, Finding, State, findings
from saesync.ci.settings import Settings, snapshot
from saesync.ci.workflow_checks import workflow_problems
from saesync.ci.workflows import parse
from saesync.policy import read_policy

PIN = "a" * 40
CHECKOUT = f"""\
      - uses: actions/checkout@{PIN}
        with: {{persist-credentials: false}}
"""
PLAN = f"""\
# no secrets.HF_TOKEN here
name: plan
on:
  pull_request:
permissions:
  contents: read
jobs:
  plan:
    runs-on: ubuntu-latest
    steps:
{CHECKOUT}      - run: saesync plan --untrusted
"""
COMMENT = f"""\
name: comment
on:
  workflow_run: {{workflows: [plan], types: [completed]}}
permissions: {{}}
jobs:
  comment:
    permissions: {{checks: write, pull-requests: write, contents: read, actions: read}}
    runs-on: ubuntu-latest
    steps:
{CHECKOUT}      - run: saesync ci comment
"""
APPLY = f"""\
name: apply
on:
  push: {{branches: [main]}}
permissions: {{contents: read}}
concurrency: {{group: apply, cancel-in-progress: false}}
jobs:
  plan:
    runs-on: ubuntu-latest
    steps:
{CHECKOUT}      - run: saesync plan --out plan.json
  apply:
    environment: publish
    permissions: {{contents: read, id-token: write}}
    runs-on: ubuntu-latest
    steps:
      - run: saesync apply plan.json
"""
OWNERS = "*.md\n/manifests/ @acme/maintainers\n/.github/ @acme/maintainers # workflows\n/saesync-policy.yaml @alice\n"
POLICY = "apiVersion: saesync/v1\ntargets:\n  huggingface: [acme/*]\n"
FILES = {
    "manifests/res.yaml": "release: res\n",
    "manifests/deep/er.yaml": "release: er\n",
    "README.md": "# SAEs\n",
    ".github/CODEOWNERS": OWNERS,
    "saesync-policy.yaml": POLICY,
    **{f".github/workflows/{name}.yml": text for name, text in (("plan", PLAN), ("comment", COMMENT), ("apply", APPLY))},
}
RULES: list[dict[str, Any]] = [
    {
        "type": "pull_request",
        "parameters": {
            "required_approving_review_count": 1,
            "dismiss_stale_reviews_on_push": True,
            "require_code_owner_review": True,
        },
    },
    {
        "type": "required_status_checks",
        "parameters": {
            "strict_required_status_checks_policy": True,
            "required_status_checks": [{"context": "saesync plan"}],
        },
    },
    {"type": "non_fast_forward"},
]
PROTECTION: dict[str, Any] = {
    "required_pull_request_reviews": {
        "required_approving_review_count": 2,
        "dismiss_stale_reviews": True,
        "require_code_owner_reviews": True,
    },
    "required_status_checks": {"strict": True, "contexts": ["saesync plan"]},
    "allow_force_pushes": {"enabled": False},
}
ENVIRONMENT: dict[str, Any] = {
    "protection_rules": [{"type": "required_reviewers", "reviewers": [{"type": "User"}]}, {"type": "branch_policy"}],
    "deployment_branch_policy": {"protected_branches": False, "custom_branch_policies": True},
}
BRANCHES = [{"name": "main", "type": "branch"}]
GOOD = Settings(
    REPO,
    "main",
    frozenset(FILES),
    FILES,
    protection=Seen(None, 404),
    rules=Seen(RULES),
    owners_errors=Seen([]),
    environment=Seen(ENVIRONMENT),
    environment_branches=Seen(BRANCHES),
    secrets=Seen([{"name": "HF_TOKEN"}]),
)
BRANCH_CHECKS = ("approvals", "stale-approvals", "code-owners", "plan-check", "up-to-date", "force-pushes")


def changed(**changes: Any) -> Settings:
    return replace(GOOD, **changes)


def with_files(files: Mapping[str, str | None], **changes: Any) -> Settings:
    found = {path: text for path, text in {**FILES, **files}.items() if text is not None}
    return changed(files=found, paths=frozenset(found), **changes)


def not_ok(settings: Settings) -> dict[str, State]:
    return {each.name: each.state for each in findings(settings) if each.state is not State.OK}


# ------------------------------------------------------------------------------------------------------- end to end


def set_up(forge: Forge, **settings: Any) -> None:
    forge.reset()
    forge.seed(FILES)
    wanted = {"rules": RULES, "environments": {"publish": ENVIRONMENT}, "branch_policies": BRANCHES, "secrets": ["HF_TOKEN"]}
    forge.settings(**{**wanted, **settings})


def test_all_is_well(forge: Forge) -> None:
    set_up(forge)
    done = saesync(forge, "doctor", "github", token="ghp_admin")
    assert (done.code, done.err) == (0, "")
    assert done.out.splitlines()[0] == "acme/saes, branch main"
    assert done.out.rstrip().endswith(f"\n{len(CHECKS)} ok.")


def test_classic_protection_does_too(forge: Forge) -> None:
    set_up(forge, rules=[], protection=PROTECTION)
    done = saesync(forge, "doctor", "github", REPO, "--format", "json", token="ghp_admin")
    assert done.code == 0
    data = json.loads(done.out)
    assert (data["type"], data["version"], data["repository"], data["branch"]) == ("saesync-doctor-github", 1, REPO, "main")
    assert {each["state"] for each in data["findings"]} == {"ok"}


def test_nothing_is_set_up(forge: Forge) -> None:
    forge.reset()
    forge.seed({"README.md": "x"})
    done = saesync(forge, "doctor", "github", token="ghp_admin")
    assert done.code == 1
    assert "problem  Not so: Merging needs the check `saesync plan`." in done.out
    assert "Settings > Rules > Rulesets, for the default branch: require status checks to pass" in done.out
    assert "problem  There is no environment `publish`." in done.out
    assert "Add .github/workflows/plan.yml from docs/github-actions.md." in done.out
    # without apply.yml nobody knows whether OIDC is configured; no workflow at all does nothing wrong
    assert done.out.splitlines()[-1] == "14 problems, 1 unknown, 1 ok."


def test_without_administration_unknown_is_never_ok(forge: Forge) -> None:
    set_up(forge, rules=[], protection=PROTECTION)
    done = saesync(forge, "doctor", "github", "--format", "json", token="ghp_alice")
    assert done.code == 1
    states = {each["name"]: each["state"] for each in json.loads(done.out)["findings"]}
    assert {name for name, state in states.items() if state == "unknown"} == {*BRANCH_CHECKS, "hub-secrets"}
    assert set(states.values()) == {"ok", "unknown"}


def test_hidden_settings_are_unknown(forge: Forge) -> None:
    set_up(forge)
    for route in ("rules", "environment", "branch-policies", "codeowners-errors", "secrets"):
        forge.fault(route=route, status=403, times=-1)
    found = {each.name: each.state for each in findings(snapshot(GitHub(forge.api, "ghp_admin"), REPO, read_policy))}
    unknown = {name for name, state in found.items() if state is State.UNKNOWN}
    assert unknown == {*BRANCH_CHECKS, "codeowners-file", "environment-reviewers", "environment-branches", "hub-secrets"}


def test_a_policy_that_does_not_load(forge: Forge) -> None:
    forge.reset()
    forge.seed({**FILES, "saesync-policy.yaml": "apiVersion: saesync/v1\ntargts: {}\n"})
    done = saesync(forge, "doctor", "github", token="ghp_admin")
    assert "problem  saesync-policy.yaml cannot be used." in done.out
    assert "(line 2)" in done.out
    assert "/tmp" not in done.out


def test_repository_that_is_not_visible(forge: Forge) -> None:
    done = saesync(forge, "doctor", "github", "acme/none", token="ghp_admin")
    assert done.code == 1
    assert "error: GitHub does not show it" in done.err
    assert saesync(forge, "doctor", "github", "acme", token="ghp_admin").code == 2
    canary = "ghp_canary_9z8y"
    done = saesync(forge, "doctor", "github", token=canary)
    assert "error: GitHub refuses the token" in done.err
    assert canary not in done.out + done.err


@pytest.mark.parametrize("url", ["https://github.com/acme/saes.git", "git@github.com:acme/saes.git", "ssh://git@ghe.x/acme/saes"])
def test_repository_of_the_checkout(forge: Forge, tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    set_up(forge)
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    monkeypatch.chdir(tmp_path)
    assert "error: Repository is not known" in saesync(forge, "doctor", "github", GITHUB_REPOSITORY="").err
    subprocess.run(["git", "remote", "add", "origin", url], check=True)
    assert saesync(forge, "doctor", "github", token="ghp_admin", GITHUB_REPOSITORY="").out.startswith("acme/saes, branch main\n")


# -------------------------------------------------------------------------------------------------- settings, one by one


def test_good() -> None:
    assert not_ok(GOOD) == {}
    assert len({each.name for each in findings(GOOD)}) == len(CHECKS)


def _without(kind: str, name: str, value: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(json.dumps(RULES))
    next(rule for rule in found if rule["type"] == kind)["parameters"][name] = value
    return found


@pytest.mark.parametrize(
    ("rules", "name"),
    [
        (_without("pull_request", "required_approving_review_count", 0), "approvals"),
        (_without("pull_request", "dismiss_stale_reviews_on_push", False), "stale-approvals"),
        (_without("pull_request", "require_code_owner_review", False), "code-owners"),
        (_without("required_status_checks", "required_status_checks", [{"context": "tests"}]), "plan-check"),
        (_without("required_status_checks", "strict_required_status_checks_policy", False), "up-to-date"),
        (RULES[:2], "force-pushes"),
    ],
)
def test_rules_one_by_one(rules: list[dict[str, Any]], name: str) -> None:
    assert not_ok(changed(rules=Seen(rules))) == {name: State.PROBLEM}
    assert not_ok(changed(rules=Seen(rules), protection=Seen(None, 403))) == {name: State.UNKNOWN}
    assert not_ok(changed(rules=Seen(rules), protection=Seen(PROTECTION))) == {}


@pytest.mark.parametrize(
    ("section", "name", "value", "check"),
    [
        ("required_pull_request_reviews", "required_approving_review_count", 0, "approvals"),
        ("required_pull_request_reviews", "dismiss_stale_reviews", False, "stale-approvals"),
        ("required_pull_request_reviews", "require_code_owner_reviews", False, "code-owners"),
        ("required_status_checks", "contexts", [], "plan-check"),
        ("required_status_checks", "strict", False, "up-to-date"),
        ("allow_force_pushes", "enabled", True, "force-pushes"),
    ],
)
def test_protection_one_by_one(section: str, name: str, value: Any, check: str) -> None:
    protection = {**PROTECTION, section: {**PROTECTION[section], name: value}}
    assert not_ok(changed(rules=Seen([]), protection=Seen(protection))) == {check: State.PROBLEM}


@pytest.mark.parametrize(
    ("environment", "branches", "name"),
    [
        ({**ENVIRONMENT, "protection_rules": [{"type": "branch_policy"}]}, BRANCHES, "environment-reviewers"),
        (
            {**ENVIRONMENT, "protection_rules": [{"type": "required_reviewers", "reviewers": []}]},
            BRANCHES,
            "environment-reviewers",
        ),
        ({**ENVIRONMENT, "deployment_branch_policy": None}, BRANCHES, "environment-branches"),
        (ENVIRONMENT, [], "environment-branches"),
        (ENVIRONMENT, [*BRANCHES, {"name": "*", "type": "branch"}], "environment-branches"),
        (ENVIRONMENT, [{"name": "main", "type": "tag"}], "environment-branches"),
    ],
)
def test_environment_one_by_one(environment: Any, branches: Any, name: str) -> None:
    found = not_ok(changed(environment=Seen(environment), environment_branches=Seen(branches)))
    assert found == {name: State.PROBLEM}


def test_environment_of_protected_branches_is_not_of_main_alone() -> None:
    policy = {"protected_branches": True, "custom_branch_policies": False}
    assert not_ok(changed(environment=Seen({**ENVIRONMENT, "deployment_branch_policy": policy}))) == {
        "environment-branches": State.PROBLEM
    }


def test_secrets() -> None:
    assert not_ok(changed(secrets=Seen([{"name": "HF_WRITE_TOKEN"}, {"name": "SLACK"}]))) == {"hub-secrets": State.PROBLEM}
    assert not_ok(changed(secrets=Seen(None, 403))) == {"hub-secrets": State.UNKNOWN}
    no_oidc = with_files({".github/workflows/apply.yml": APPLY.replace(", id-token: write", "")}, secrets=Seen(None, 403))
    assert not_ok(no_oidc) == {}


def test_files_that_are_missing_or_cannot_be_listed() -> None:
    gone = dict.fromkeys((".github/CODEOWNERS", "saesync-policy.yaml", ".github/workflows/comment.yml"))
    names = {"codeowners-file", "policy", "workflow-comment"}
    assert not_ok(with_files(gone)) == dict.fromkeys(names, State.PROBLEM)
    unlisted = not_ok(changed(files={}, paths=None))
    assert set(unlisted.values()) == {State.UNKNOWN}
    assert names < set(unlisted)


@pytest.mark.parametrize(
    "text",
    [
        "/manifests/ @a\n/.github/ @a\n",
        "* @a\n/manifests/deep/\n",
        "* @a\n*.yaml\n",
        "/manifests/* @a\n/.github/ @a\n/saesync-policy.yaml @a\n",
        "/manifests/ @a\n/.github/workflows/ @a\n/saesync-policy.yaml @a\n",
        "",
    ],
)
def test_codeowners_that_leave_something_out(text: str) -> None:
    assert not_ok(with_files({".github/CODEOWNERS": text})) == {"codeowners-file": State.PROBLEM}


def test_codeowners_with_errors_or_elsewhere() -> None:
    assert not_ok(changed(owners_errors=Seen([{"line": 1}]))) == {"codeowners-file": State.PROBLEM}
    assert not_ok(with_files({".github/CODEOWNERS": None, "CODEOWNERS": "* @a\n"})) == {}
    assert not_ok(with_files({".github/CODEOWNERS": "/manifests/ @a\n", "CODEOWNERS": "* @a\n"})) == {
        "codeowners-file": State.PROBLEM
    }


@pytest.mark.parametrize(
    ("pattern", "owned", "bare"),
    [
        ("*", ["a", "a/b/c.d"], []),
        ("*.js", ["a.js", "b/c.js"], ["a.jsx", "ajs"]),
        ("/build/logs/", ["build/logs/a", "build/logs/b/c"], ["x/build/logs/a", "build/logs"]),
        ("docs/*", ["docs/a.md"], ["docs/b/a.md"]),
        ("apps/", ["apps/a", "x/apps/a/b"], ["apps"]),
        ("/docs", ["docs", "docs/a"], ["x/docs/a", "docsx"]),
        ("**/logs", ["logs/a", "deep/er/logs/a"], ["logsx"]),
        ("/a/**/z", ["a/z", "a/b/c/z"], ["b/z"]),
        ("a?.md", ["ab.md"], ["a.md", "a/.md"]),
    ],
)
def test_patterns(pattern: str, owned: list[str], bare: list[str]) -> None:
    rules = codeowners.parse(f"# comment\n\n{pattern} @a @b\n")
    assert codeowners.unowned(rules, [*owned, *bare]) == bare


# ------------------------------------------------------------------------------------------------------- workflows

LAB = Path(__file__).parents[2] / "examples" / "lab-repository"


def lab(manifests: str, policy: str) -> dict[str, str]:
    """The example with other inputs, as docs/github-actions.md says how to have them."""
    found = {path.relative_to(LAB).as_posix(): path.read_text() for path in LAB.rglob("*") if path.is_file()}
    for path in [path for path in found if path.startswith(".github/workflows/")]:
        text = re.sub(r"( +)(command: (?!publish|register).*)", rf"\1\2\n\1manifests: ./{manifests}/", found[path])
        text = re.sub(r"( +)(command: (?!comment).*)", rf"\1\2\n\1policy: {policy}", text)
        found[path] = text.replace("manifests/**", f"{manifests}/**").replace("saesync-policy.yaml", policy)
    owners = found[".github/CODEOWNERS"].replace("/manifests/", f"/{manifests}/")
    named = found[".github/CODEOWNERS"] = owners.replace("/saesync-policy.yaml", f"/{policy}")
    assert manifests in named
    found[policy] = found.pop("saesync-policy.yaml")
    return {path.replace("manifests/", f"{manifests}/"): text for path, text in found.items()}


def test_a_folder_and_a_policy_of_another_name(forge: Forge) -> None:
    """The action has inputs for both, and what they name is what is looked at."""
    files = lab("labs/saes", "ops/policy.yaml")

    def names(files: Mapping[str, str]) -> list[str]:
        forge.reset()
        forge.seed(files)
        found = findings(snapshot(GitHub(forge.api, "ghp_admin"), REPO, read_policy))
        files_only = ("codeowners-file", "policy", "inputs", "workflow-plan", "workflow-comment", "workflow-apply")
        return [f"{each.name}: {each.what}" for each in found if each.name in files_only and each.state is not State.OK]

    assert names(files) == []
    owners = files[".github/CODEOWNERS"].replace("*  ", "x  ")
    bare = {**files, ".github/CODEOWNERS": owners.replace("/labs/saes/", "/manifests/")}
    assert names(bare) == ["codeowners-file: Nobody owns labs/saes/new.yaml, labs/saes/gemma-2-2b-res-acme.yaml."]
    bare = {**files, ".github/CODEOWNERS": owners.replace("/ops/policy.yaml", "/saesync-policy.yaml")}
    assert names(bare) == ["codeowners-file: Nobody owns ops/policy.yaml."]
    (said,) = names({**files, "ops/policy.yaml": "apiVersion: saesync/v1\ntargts: {}\n"})
    assert said.startswith("policy: ops/policy.yaml cannot be used.")
    plan = files[".github/workflows/plan.yml"]
    (said,) = names({**files, ".github/workflows/plan.yml": plan.replace("labs/saes/**", "manifests/**")})
    assert said == "inputs: Not so: the `paths` of plan.yml leave out labs/saes/."
    other = re.sub(" +manifests: .*\n", "", files[".github/workflows/comment.yml"])
    (said,) = names(
        {
            **files,
            ".github/workflows/comment.yml": other,
            ".github/CODEOWNERS": "* @acme/a\n",
            ".github/workflows/plan.yml": plan.replace("labs/saes/**", "**"),
        }
    )
    assert "`manifests` is labs/saes in plan.yml and apply.yml, manifests in comment.yml" in said


def problems(kind: str, text: str) -> list[str]:
    found = parse("w.yml", text)
    assert found is not None
    return workflow_problems(kind, found, "main", "publish")


@pytest.mark.parametrize(
    ("kind", "text", "before", "after", "said"),
    [
        ("plan", PLAN, "permissions:\n  contents: read\n", "", "default permissions"),
        ("plan", PLAN, "contents: read", "contents: write", "it may write contents"),
        ("plan", PLAN, "permissions:\n  contents: read\n", "permissions: write-all\n", "may write everything"),
        ("plan", PLAN, "run: saesync", "run: HF_TOKEN=${{ secrets.HF_TOKEN }} saesync", "reads secrets"),
        ("plan", PLAN, "persist-credentials: false", "fetch-depth: 0", "keeps the token"),
        ("plan", PLAN, "  pull_request:", "  push:", "does not run on pull_request"),
        ("plan", PLAN, "    runs-on", "    environment: publish\n    runs-on", "runs in an environment"),
        ("plan", PLAN, "    runs-on", "    env: {HF_OIDC_RESOURCE: x}\n    runs-on", "HF_OIDC_RESOURCE"),
        ("comment", COMMENT, "workflow_run: {workflows: [plan], types: [completed]}", "pull_request:", "run on workflow_run"),
        ("comment", COMMENT, "contents: read", "contents: write", "may write contents"),
        (
            "comment", COMMENT, "{persist-credentials: false}",
            "{persist-credentials: false, ref: '${{ github.event.workflow_run.head_sha }}'}",
            "checks out the pull request's commit",
        ),
        ("apply", APPLY, "branches: [main]", "branches: ['**']", "pushes to main alone"),
        ("apply", APPLY, "push: {branches: [main]}", "push: {branches: [main]}\n  pull_request:", "what pull requests start"),
        ("apply", APPLY, "cancel-in-progress: false", "cancel-in-progress: true", "stop a running apply"),
        ("apply", APPLY, "    environment: publish\n", "", "no job runs in the environment publish"),
        ("apply", APPLY, "permissions: {contents: read}\nc", "permissions: {contents: read, id-token: write}\nc", "identity"),
    ],
)  # fmt: skip
def test_workflows_one_by_one(kind: str, text: str, before: str, after: str, said: str) -> None:
    assert problems(kind, text) == []
    assert before in text
    assert any(said in problem for problem in problems(kind, text.replace(before, after)))
    settings = with_files({f".github/workflows/{kind}.yml": text.replace(before, after)})
    assert not_ok(settings)[f"workflow-{kind}"] is State.PROBLEM


def test_a_workflow_that_calls_a_pinned_one() -> None:
    call = f"jobs:\n  all:\n    uses: acme/saesync/.github/workflows/apply.yml@{PIN}\n    permissions: {{id-token: write}}\n"
    assert problems("apply", "on: {push: {branches: [main]}}\n" + call) == []


@pytest.mark.parametrize("use", ["actions/checkout@v4", "actions/checkout@main", "docker://alpine:3", f"a/b@{PIN[:12]}"])
def test_every_workflow_is_pinned(use: str) -> None:
    text = f"on: push\npermissions: {{}}\njobs: {{a: {{steps: [{{uses: '{use}'}}]}}}}\n"
    assert not_ok(with_files({".github/workflows/other.yaml": text})) == {"workflows": State.PROBLEM}
    for good in ("./.github/actions/x", f"a/b/c@{PIN}", f"docker://alpine@sha256:{'0' * 64}"):
        assert not_ok(with_files({".github/workflows/other.yaml": text.replace(use, good)})) == {}


def test_pull_request_target_anywhere() -> None:
    text = "on: [pull_request_target]\npermissions: {}\njobs: {a: {steps: []}}\n"
    assert not_ok(with_files({".github/workflows/other.yml": text})) == {"workflows": State.PROBLEM}


@pytest.mark.parametrize("text", ["", "[", "a: 1", "jobs: 3", "on: push\njobs: []"])
def test_texts_that_are_no_workflow(text: str) -> None:
    assert parse("w.yml", text) is None
    assert not_ok(with_files({".github/workflows/plan.yml": text})) == {"workflow-plan": State.PROBLEM}


def test_findings_say_what_to_do() -> None:
    empty = Settings(REPO, "main", frozenset(), protection=Seen(None, 404), rules=Seen([]), environment=Seen(None, 404))
    check: Callable[[Settings], Finding]
    for check in CHECKS:
        found = check(empty)
        assert found.what.endswith("."), found
        assert found.state is State.OK or found.todo.endswith("."), found

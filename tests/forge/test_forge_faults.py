"""Trouble at every step of a proposal: it converges when run again, or ends in one clear message."""

from __future__ import annotations

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from forge_world import BASE, BRANCH, FORK, PATH, REGISTRY, RELEASE, edit_to, entry, proposal
from servers.forge_loopback import GH_ALICE, GH_APP, GH_FINE, GH_NO_SCOPE, GH_READ, GitHubServer

from saesync.cache import Cache
from saesync.errors import Conflict, Missing, NotVisible, SaesyncError, Unavailable
from saesync.forge import api, check_access, observe, propose
from saesync.forge.places import place_of
from saesync.forge.proposing import without_token
from saesync.forge.types import Proposed

JSON = {"Content-Type": "application/json"}
LIMITS: dict[str, dict[str, Any]] = {
    "primary": {
        "status": 403, "body": '{"message": "API rate limit exceeded for user ID 1."}',
        "headers": JSON | {"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": "{reset}"},
    },
    "secondary": {
        "status": 403, "body": '{"message": "You have exceeded a secondary rate limit. Please wait."}',
        "headers": JSON | {"Retry-After": "1"},
    },
    "429": {"status": 429, "body": '{"message": "Too many requests"}', "headers": JSON},
}  # fmt: skip


def summary(error: pytest.ExceptionInfo[SaesyncError]) -> str:
    return error.value.diagnostics[0].summary


def detail(error: pytest.ExceptionInfo[SaesyncError]) -> str:
    return error.value.diagnostics[0].detail


def limit(name: str, reset_in: float) -> dict[str, Any]:
    reset = str(int(time.time() + reset_in))
    headers = {key: value.format(reset=reset) for key, value in LIMITS[name]["headers"].items()}
    return LIMITS[name] | {"headers": headers}


def converged(github: GitHubServer, done: Proposed) -> None:
    """One commit on the base, one open pull request."""
    base = github.sha(REGISTRY, "main")
    assert github.commits(FORK, BRANCH, base) == [done.sha]
    assert github.file(FORK, BRANCH, PATH) == (BASE + entry(RELEASE, "tiny")).encode()
    (pull,) = github.pulls(REGISTRY)
    assert done.pull is not None
    assert (pull["number"], pull["state"], pull["head"]["sha"]) == (done.pull.number, "open", done.sha)


# ------------------------------------------------------------------------------------------------- tokens and rights


def test_wrong_token(github: GitHubServer, cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAESYNC_GITHUB_TOKEN", "ghp_mistyped")
    state = observe(REGISTRY, [RELEASE], cache)
    assert state.unknown is not None
    assert "Token is not valid" in str(state.unknown.data["detail"])
    with pytest.raises(NotVisible) as caught:
        propose(REGISTRY, proposal(), cache)
    assert summary(caught) == "Token is not valid"
    with pytest.raises(Missing, match="Token is not valid"):
        check_access(REGISTRY)


def test_unusable_token(github: GitHubServer, cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAESYNC_GITHUB_TOKEN", "two words")
    with pytest.raises(Missing, match="What SAESYNC_GITHUB_TOKEN holds") as caught:
        propose(REGISTRY, proposal(), cache)
    assert "two words" not in str(caught.value)


def test_no_token(github: GitHubServer, cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SAESYNC_GITHUB_TOKEN")
    for action in (lambda: propose(REGISTRY, proposal(), cache), lambda: check_access(REGISTRY)):
        with pytest.raises(Missing) as caught:
            action()
        assert summary(caught) == "No GitHub token"
        assert "SAESYNC_GITHUB_TOKEN" in detail(caught)
        assert "SAESYNC_FORK" in detail(caught)


def test_no_token_but_a_fork_that_can_be_pushed_to(
    github: GitHubServer, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    github.fork(REGISTRY)
    base = github.commit(REGISTRY, "main", {"src/code.py": "x = 2\n"})
    monkeypatch.delenv("SAESYNC_GITHUB_TOKEN")
    monkeypatch.setenv("SAESYNC_FORK", str(github.folder(FORK)))
    check_access(REGISTRY)
    done = propose(REGISTRY, proposal(), cache)
    assert (done.pull, done.changed) == (None, True)
    assert github.commits(FORK, BRANCH, base) == [done.sha]
    assert done.compare is not None
    assert done.compare.startswith(f"git -C {github.folder(FORK)} diff main...")
    assert not propose(REGISTRY, proposal(), cache).changed


def test_compare_address_of_a_fork_by_ssh(github: GitHubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GITHUB_API_URL", "https://api.github.com")
    monkeypatch.setenv("GITHUB_SERVER_URL", "https://github.com")
    monkeypatch.setenv("SAESYNC_FORK", "git@github.com:me/SAELens.git")
    route = without_token(place_of(REGISTRY))
    assert route.compare("main", BRANCH) == f"https://github.com/{REGISTRY}/compare/main...me:SAELens:{BRANCH}?expand=1"


def test_token_without_scopes(github: GitHubServer, cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAESYNC_GITHUB_TOKEN", GH_NO_SCOPE)
    with pytest.raises(Missing) as caught:
        check_access(REGISTRY)
    assert summary(caught) == "Token lacks a scope"
    assert "has the scopes: none" in detail(caught)
    with pytest.raises(Missing) as caught:
        propose(REGISTRY, proposal(), cache)
    assert summary(caught) == "Token may not do this"
    assert "fork acme/SAELens" in detail(caught)


def test_token_that_may_not_push_to_the_fork(github: GitHubServer, cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    github.fork(REGISTRY)
    monkeypatch.setenv("SAESYNC_GITHUB_TOKEN", GH_READ)
    with pytest.raises(Missing) as caught:
        propose(REGISTRY, proposal(), cache)
    assert summary(caught) == "Token may not push"
    assert FORK in detail(caught)


def test_fine_grained_token_that_cannot_open_pull_requests(
    github: GitHubServer, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    monkeypatch.setenv("SAESYNC_GITHUB_TOKEN", GH_FINE)
    with pytest.raises(Missing) as caught:
        propose(REGISTRY, proposal(), cache)
    assert summary(caught) == "Token may not open pull requests"
    assert f"{github.base}/{REGISTRY}/compare/main...bot:SAELens:{BRANCH}?expand=1" in detail(caught)
    pushed = github.sha(FORK, BRANCH)
    with pytest.raises(Missing):
        propose(REGISTRY, proposal(), cache)
    assert github.sha(FORK, BRANCH) == pushed
    # Opened by hand, at that address.
    github.api("POST", f"repos/{REGISTRY}/pulls", {"title": "by hand", "head": f"bot:{BRANCH}", "base": "main"}, "ghp_bot")
    monkeypatch.setenv("SAESYNC_GITHUB_TOKEN", "ghp_bot")
    done = propose(REGISTRY, proposal(), cache)
    assert done.sha == pushed
    converged(github, done)


def test_apps_token(github: GitHubServer, cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAESYNC_GITHUB_TOKEN", GH_APP)
    for action in (lambda: propose(REGISTRY, proposal(), cache), lambda: check_access(REGISTRY)):
        with pytest.raises(Missing) as caught:
            action()
        assert summary(caught) == "Token may not push"
        assert "bot user" in detail(caught)
    github.create("acme/own", {PATH: BASE}, app=True)
    done = propose("acme/own", proposal(), cache)
    assert done.pull is not None
    assert done.sha == github.sha("acme/own", BRANCH)


def test_protected_branch(github: GitHubServer, cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAESYNC_GITHUB_TOKEN", GH_ALICE)
    github.hook(REGISTRY, "pre-receive", "echo 'GH006: Protected branch update failed for refs/heads/saesync/*' >&2; exit 1")
    with pytest.raises(Missing) as caught:
        propose(REGISTRY, proposal(), cache)
    assert summary(caught) == "Branch is protected"
    assert "GH006: Protected branch update failed" in detail(caught)
    assert github.pulls(REGISTRY) == []


def test_token_without_workflow_scope(github: GitHubServer, cache: Cache) -> None:
    github.fork(REGISTRY)
    words = "refusing to allow a Personal Access Token to create or update workflow `.github/ci.yml` without `workflow` scope"
    github.hook(FORK, "pre-receive", f"echo '{words}' >&2; exit 1")
    with pytest.raises(Missing) as caught:
        propose(REGISTRY, proposal(), cache)
    assert summary(caught) == "Token lacks the workflow scope"
    assert "Sync fork" in detail(caught)


def test_archived_registry(github: GitHubServer, cache: Cache) -> None:
    github.create("acme/old", {PATH: BASE}, archived=True)
    for action in (lambda: propose("acme/old", proposal(), cache), lambda: check_access("acme/old")):
        with pytest.raises(Missing, match="acme/old is archived"):
            action()


def test_nobody_to_name_as_the_author(
    github: GitHubServer, cache: Cache, monkeypatch: pytest.MonkeyPatch, git_user: Path
) -> None:  # fmt: skip
    (git_user / ".gitconfig").unlink()
    for action in (lambda: propose(REGISTRY, proposal(), cache), lambda: check_access(REGISTRY)):
        with pytest.raises(Missing, match="git does not know who you are"):
            action()
    monkeypatch.setenv("CI", "true")
    check_access(REGISTRY)
    done = propose(REGISTRY, proposal(), cache)
    converged(github, done)
    identity = github.message(FORK, BRANCH).splitlines()[0]
    assert identity.startswith("bot <")
    assert identity.endswith("+bot@users.noreply.127.0.0.1>")
    assert f"Signed-off-by: {identity}" in github.message(FORK, BRANCH)


def test_author_of_the_environment_comes_first(github: GitHubServer, cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_AUTHOR_NAME", "Eve Environment")
    monkeypatch.setenv("GIT_AUTHOR_EMAIL", "eve@example.org")
    propose(REGISTRY, proposal(), cache)
    assert github.git(FORK, "log", "-1", "--format=%an %ae %cn %ce", BRANCH).split("\n")[0] == (
        "Eve Environment eve@example.org Eve Environment eve@example.org"
    )


def test_settings_of_the_environment_do_not_steer_git(
    github: GitHubServer, cache: Cache, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:  # fmt: skip
    other = tmp_path / "other.git"
    subprocess.run(["git", "init", "--quiet", "--bare", str(other)], check=True)
    monkeypatch.setenv("GIT_DIR", str(other))
    monkeypatch.setenv("GIT_INDEX_FILE", str(tmp_path / "index"))
    monkeypatch.setenv("GIT_OBJECT_DIRECTORY", str(other / "objects"))
    monkeypatch.setenv("GIT_TRACE_CURL", str(tmp_path / "trace"))
    monkeypatch.setenv("GIT_TRACE_REDACT", "0")
    converged(github, propose(REGISTRY, proposal(), cache))
    assert not (tmp_path / "trace").exists()
    assert not (tmp_path / "index").exists()
    assert [path for path in (other / "objects").rglob("*") if path.is_file()] == []


def test_git_is_not_installed(cache: Cache, git_user: Path, tmp_path: Path) -> None:
    program = (
        "from saesync.cache import Cache\n"
        "from saesync.errors import Missing\n"
        "from saesync.forge import observe, check_access\n"
        "print(observe('acme/SAELens', ['tiny-res'], Cache()).unknown.data['detail'])\n"
        "try:\n    check_access('acme/SAELens')\nexcept Missing as error:\n    print(error)\n"
    )
    environment = {"PATH": str(tmp_path), "HOME": str(git_user), "SAESYNC_CACHE": str(cache.root), "GH_TOKEN": "ghp_x"}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.stdout.count("git is not here: Registering needs the program git") == 2, done.stderr


def test_whoever_may_push_upstream_but_whose_token_may_not(
    github: GitHubServer, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    """GitHub's permissions are the user's; a fine-grained token may have fewer."""
    monkeypatch.setenv("SAESYNC_GITHUB_TOKEN", GH_ALICE)
    github.fault(route="git.*", path="git-receive-pack", status=403, body="Write access to repository not granted.", times=-1)
    with pytest.raises(Missing) as caught:
        propose(REGISTRY, proposal(), cache)
    assert summary(caught) == "Token may not push"
    assert REGISTRY in detail(caught)


# ------------------------------------------------------------------------------------------------------- the network


@pytest.mark.parametrize(("route", "name"), [
    ("user", "primary"), ("repos.get", "secondary"), ("repos.pulls.get", "429"),
    ("repos.pulls.post", "primary"), ("repos.pulls.post", "secondary"), ("repos.forks.post", "secondary"),
])  # fmt: skip
def test_a_short_rate_limit_is_waited_for(github: GitHubServer, cache: Cache, route: str, name: str) -> None:
    api._ACCOUNTS.clear()  # learnt by an earlier test
    github.fault(route=route, **limit(name, 1))
    converged(github, propose(REGISTRY, proposal(), cache))


@pytest.mark.parametrize("name", sorted(LIMITS))
def test_a_long_rate_limit_ends_in_one_message(
    github: GitHubServer, cache: Cache, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:  # fmt: skip
    monkeypatch.setenv("SAESYNC_RETRY_SECONDS", "1")
    found = limit(name, 3_000)
    if name == "secondary":
        found["headers"] = {"Retry-After": "3000"}
    github.fault(route="repos.pulls.post", times=-1, **found)
    began = time.monotonic()
    with pytest.raises(Unavailable) as caught:
        propose(REGISTRY, proposal(), cache)
    assert time.monotonic() - began < 10
    assert summary(caught) == "GitHub rations requests"
    github.restart_counters()
    converged(github, propose(REGISTRY, proposal(), cache))


@pytest.mark.parametrize("fault", [
    {"route": "git.refs", "status": 503},
    {"route": "git.git-upload-pack", "action": "reset"},
    {"route": "git.git-upload-pack", "action": "truncate", "after_bytes": 50},
    {"route": "git.git-receive-pack", "action": "reset"},
    {"route": "git.git-receive-pack", "action": "reset", "when": "after"},
    {"route": "git.git-receive-pack", "status": 502},
    {"route": "repos.forks.post", "status": 502},
    {"route": "repos.forks.post", "action": "reset", "when": "after"},
    {"route": "repos.pulls.get", "action": "close"},
    {"route": "repos.pulls.get", "body": "<html>", "status": 200},
    {"route": "repos.pulls.post", "action": "reset"},
    {"route": "repos.pulls.post", "action": "reset", "when": "after"},
    {"route": "repos.pulls.post", "status": 502, "when": "after"},
], ids=lambda fault: "-".join(str(value) for value in fault.values()))  # fmt: skip
def test_one_bad_answer_is_got_over(github: GitHubServer, cache: Cache, fault: dict[str, object]) -> None:
    github.fault(**fault)
    converged(github, propose(REGISTRY, proposal(), cache))


def test_network_loss_between_push_and_pull_request(
    github: GitHubServer, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    monkeypatch.setenv("SAESYNC_RETRY_SECONDS", "1")
    github.fault(route="repos.pulls*", action="reset", times=-1)
    with pytest.raises(Unavailable) as caught:
        propose(REGISTRY, proposal(), cache)
    assert summary(caught) == "GitHub cannot be reached"
    pushed = github.sha(FORK, BRANCH)
    github.restart_counters()
    done = propose(REGISTRY, proposal(), cache)
    assert done.sha == pushed
    assert github.pushes() == 0
    converged(github, done)


def test_the_answer_to_opening_is_lost_for_good(github: GitHubServer, cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAESYNC_RETRY_SECONDS", "1")
    github.fault(route="repos.pulls.post", action="reset", when="after", times=1)
    github.fault(route="repos.pulls.get", action="reset", skip=1, times=-1)
    with pytest.raises(Unavailable):
        propose(REGISTRY, proposal(), cache)
    github.restart_counters()
    converged(github, propose(REGISTRY, proposal(), cache))


def test_a_pull_request_that_shows_up_late_is_found_by_the_refusal(github: GitHubServer, cache: Cache) -> None:
    """The list is behind: it does not show the pull request yet, but opening a second one is refused with 422."""
    propose(REGISTRY, proposal(), cache)
    github.fault(route="repos.pulls.get", body="[]", status=200, headers=JSON)
    done = propose(REGISTRY, proposal(), cache)
    assert github.count("repos.pulls.post") == 2
    converged(github, done)


def test_no_commits_between_is_taken_for_done(github: GitHubServer, cache: Cache) -> None:
    github.fault(
        route="repos.pulls.post", status=422, headers=JSON,
        body='{"message": "Validation Failed", "errors": [{"message": "No commits between main and bot:x"}]}',
    )  # fmt: skip
    done = propose(REGISTRY, proposal(), cache)
    assert done.pull is None
    assert done.sha == github.sha(FORK, BRANCH)


def test_other_refusals_say_what_github_said(github: GitHubServer, cache: Cache) -> None:
    github.fault(
        route="repos.pulls.post", status=422, headers=JSON,
        body='{"message": "Validation Failed", "errors": [{"field": "body", "message": "body is too long\\u001b[31m"}]}',
    )  # fmt: skip
    with pytest.raises(SaesyncError) as caught:
        propose(REGISTRY, proposal(), cache)
    assert "422: Validation Failed; body is too long\\x1b[31m" in detail(caught)


@pytest.mark.parametrize("route", ["git.refs", "repos.get"])
def test_a_silent_server(github: GitHubServer, cache: Cache, monkeypatch: pytest.MonkeyPatch, route: str) -> None:
    monkeypatch.setenv("SAESYNC_RETRY_SECONDS", "1")
    github.fault(route=route, action="hang", seconds=20, times=-1)
    began = time.monotonic()
    with pytest.raises(Unavailable):
        propose(REGISTRY, proposal(), cache)
    assert time.monotonic() - began < 15


def test_nobody_listens(cache: Cache, monkeypatch: pytest.MonkeyPatch, git_user: Path) -> None:
    monkeypatch.setenv("GITHUB_SERVER_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("SAESYNC_GITHUB_TOKEN", "ghp_x")
    monkeypatch.setenv("SAESYNC_RETRY_SECONDS", "1")
    state = observe(REGISTRY, [RELEASE], cache)
    assert state.unknown is not None
    assert "Registry cannot be reached" in str(state.unknown.data["detail"])


def test_a_fork_takes_its_time(github: GitHubServer, cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    github.config(fork_delay=1.0)
    converged(github, propose(REGISTRY, proposal(), cache))


def test_a_fork_takes_too_long(github: GitHubServer, cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAESYNC_RETRY_SECONDS", "1")
    github.config(fork_delay=3.0)
    with pytest.raises(Unavailable, match="bot/SAELens was made, but is not ready yet"):
        propose(REGISTRY, proposal(), cache)
    time.sleep(2.5)
    converged(github, propose(REGISTRY, proposal(), cache))


# ------------------------------------------------------------------------------------------------------ several at once


def test_runs_at_once_converge(github: GitHubServer, cache: Cache) -> None:
    with ThreadPoolExecutor(4) as pool:
        done = list(pool.map(lambda _: propose(REGISTRY, proposal(), cache), range(4)))
    assert len({one.sha for one in done}) == 1
    converged(github, done[0])


def test_processes_at_once_converge(github: GitHubServer, cache: Cache) -> None:
    program = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from forge_world import REGISTRY, proposal\n"
        "from saesync.cache import Cache\n"
        "from saesync.forge import propose\n"
        "print(propose(REGISTRY, proposal(), Cache()).sha)\n"
    )
    command = [sys.executable, "-c", program, str(Path(__file__).parent)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    out = [process.communicate(timeout=60) for process in running]
    assert [process.returncode for process in running] == [0, 0], out
    assert out[0][0] == out[1][0] != ""
    converged(github, propose(REGISTRY, proposal(), cache))


def test_a_commit_that_lands_while_we_push_is_kept(github: GitHubServer, cache: Cache) -> None:
    """The lease is pinned to what was looked at: somebody's commit in between is seen, and kept."""
    first = propose(REGISTRY, proposal(), cache)
    base = github.sha(REGISTRY, "main")
    landed: list[str] = []

    def edit(data: bytes) -> bytes:
        if not landed:  # after the look at the branch, before the push
            landed.append(github.commit(FORK, BRANCH, {"note.md": "theirs\n"}, author="Rita"))
        return edit_to("other")(data)

    done = propose(REGISTRY, proposal(edit=edit), cache)
    assert github.commits(FORK, BRANCH, base) == [done.sha, landed[0], first.sha]


def test_a_branch_that_never_rests(github: GitHubServer, cache: Cache) -> None:
    propose(REGISTRY, proposal(), cache)
    count = 0

    def edit(data: bytes) -> bytes:
        nonlocal count
        count += 1
        github.commit(FORK, BRANCH, {"note.md": f"{count}\n"}, author="Rita")
        return edit_to("other")(data)

    with pytest.raises(Conflict) as caught:
        propose(REGISTRY, proposal(edit=edit), cache)
    assert summary(caught) == "Branch keeps changing"


def test_a_merge_that_needs_a_person(github: GitHubServer, cache: Cache) -> None:
    propose(REGISTRY, proposal(), cache)
    theirs = github.commit(
        FORK, BRANCH, {PATH: BASE.replace("acme/first", "acme/theirs") + entry(RELEASE, "tiny")}, author="Rita"
    )
    github.commit(REGISTRY, "main", {PATH: BASE.replace("acme/first", "acme/upstreams")})
    with pytest.raises(Conflict) as caught:
        propose(REGISTRY, proposal("other"), cache)
    assert f"both changed the same lines of {PATH}" in detail(caught)
    assert github.sha(FORK, BRANCH) == theirs


def test_a_plain_file_edited_at_once(tmp_path: Path, cache: Cache) -> None:
    path = tmp_path / "saes.yaml"
    path.write_text(BASE)
    names = [f"release-{number}" for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: propose(str(path), proposal(release=name, edit=edit_to("x", name)), cache), names))
    text = path.read_text()
    assert text.startswith(BASE)
    assert all(text.count(f"{name}:\n") == 1 for name in names)

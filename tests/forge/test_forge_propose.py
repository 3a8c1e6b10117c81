"""From an edited file to a branch and one pull request: real git and PyGithub against a loopback GitHub."""

from __future__ import annotations

import pytest
from forge_world import BASE, BRANCH, FORK, PATH, REGISTRY, RELEASE, edit_to, entry, proposal
from servers.forge_loopback import GH_ALICE, GitHubServer

from saesync.cache import Cache
from saesync.forge import observe, propose


def test_a_fork_is_made_and_one_pull_request_opened(github: GitHubServer, cache: Cache) -> None:
    base = github.sha(REGISTRY, "main")
    done = propose(REGISTRY, proposal(), cache)
    assert done.changed
    assert done.pull is not None
    (pull,) = github.pulls(REGISTRY)
    assert (done.pull.number, done.pull.url, done.pull.state) == (pull["number"], pull["html_url"], "open")
    assert pull["head"]["label"] == f"bot:{BRANCH}"
    assert pull["title"] == proposal().title
    assert pull["body"] == proposal().body
    assert pull["maintainer_can_modify"]
    assert done.sha == github.sha(FORK, BRANCH)
    assert github.commits(FORK, BRANCH, base) == [done.sha]
    assert github.file(FORK, BRANCH, PATH) == (BASE + entry(RELEASE, "tiny")).encode()
    assert github.git(FORK, "diff", "--name-only", base, BRANCH).split() == [PATH]
    message = github.message(FORK, BRANCH)
    assert message.startswith(f"Ann Author <ann@example.org>\n{proposal().title}\n")
    assert f"Saesync-Release: {RELEASE}\n" in message
    assert "Signed-off-by: Ann Author <ann@example.org>\n" in message


def test_second_run_changes_nothing(github: GitHubServer, cache: Cache) -> None:
    first = propose(REGISTRY, proposal(), cache)
    github.restart_counters()
    second = propose(REGISTRY, proposal(), cache)
    assert not second.changed
    assert (second.sha, second.pull) == (first.sha, first.pull)
    assert github.pushes() == 0
    assert github.fetches() == 0
    assert {route for route in github.calls() if not route.endswith(".get")} == {"user"} & set(github.calls())

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


def test_an_existing_fork_that_is_behind_is_used(github: GitHubServer, cache: Cache) -> None:
    github.fork(REGISTRY)
    for number in range(3):
        github.commit(
            REGISTRY, "main", {"src/code.py": f"x = {number + 2}\n", PATH: BASE + f"third:\n  repo_id: acme/{number}\n"}
        )
    base = github.sha(REGISTRY, "main")
    behind = github.sha(FORK, "main")
    done = propose(REGISTRY, proposal(), cache)
    assert done.pull is not None
    assert github.sha(FORK, "main") == behind != base
    assert github.commits(FORK, BRANCH, base) == [done.sha]
    assert github.file(FORK, BRANCH, "src/code.py") == b"x = 4\n"
    assert github.file(FORK, BRANCH, PATH) == (BASE + "third:\n  repo_id: acme/2\n" + entry(RELEASE, "tiny")).encode()
    github.git(FORK, "fsck", "--full", "--strict")
    assert propose(REGISTRY, proposal(), cache).changed is False


def test_whoever_may_push_upstream_needs_no_fork(
    github: GitHubServer, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    monkeypatch.setenv("SAESYNC_GITHUB_TOKEN", GH_ALICE)
    base = github.sha(REGISTRY, "main")
    done = propose(REGISTRY, proposal(), cache)
    assert done.pull is not None
    assert github.commits(REGISTRY, BRANCH, base) == [done.sha]
    assert github.count("repos.forks.post") == 0
    assert done.compare == f"{github.base}/{REGISTRY}/compare/main...{BRANCH}?expand=1"


def test_a_pull_request_from_a_fork_goes_on_there_for_somebody_who_may_push_by_now(
    github: GitHubServer, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    monkeypatch.setenv("SAESYNC_GITHUB_TOKEN", GH_ALICE)
    github.fork(REGISTRY, GH_ALICE)
    github.commit("alice/SAELens", BRANCH, {PATH: "old"}, parent=github.sha(REGISTRY, "main"))
    body = {"title": "t", "body": "b", "head": f"alice:{BRANCH}", "base": "main"}
    number = github.api("POST", f"repos/{REGISTRY}/pulls", body)["number"]
    assert observe(REGISTRY, [RELEASE], cache).pulls[RELEASE].number == number
    github.commit("alice/SAELens", BRANCH, {PATH: BASE})
    done = propose(REGISTRY, proposal(), cache)
    assert done.pull is not None
    assert done.pull.number == number
    assert BRANCH not in github.branches(REGISTRY)


def test_a_changed_manifest_updates_branch_and_pull_request(github: GitHubServer, cache: Cache) -> None:
    base = github.sha(REGISTRY, "main")
    first = propose(REGISTRY, proposal(), cache)
    second = propose(REGISTRY, proposal("other", title="fix: mend it", body="new\r\nevidence"), cache)
    assert second.changed
    assert second.sha != first.sha
    assert second.pull is not None
    assert first.pull is not None
    assert second.pull.number == first.pull.number
    (pull,) = github.pulls(REGISTRY)
    assert (pull["title"], pull["body"]) == ("fix: mend it", "new\r\nevidence")
    assert github.commits(FORK, BRANCH, base) == [second.sha]
    assert github.message(FORK, BRANCH).splitlines()[1] == "fix: mend it"
    assert not propose(REGISTRY, proposal("other", title="fix: mend it", body="new\nevidence\n"), cache).changed


def test_only_the_body_changes(github: GitHubServer, cache: Cache) -> None:
    first = propose(REGISTRY, proposal(), cache)
    github.restart_counters()
    second = propose(REGISTRY, proposal(body="better evidence"), cache)
    assert second.changed
    assert second.sha == first.sha
    assert github.pushes() == 0
    assert github.pulls(REGISTRY)[0]["body"] == "better evidence"


def test_branch_is_rebuilt_when_the_base_moved(github: GitHubServer, cache: Cache) -> None:
    first = propose(REGISTRY, proposal(), cache)
    moved = BASE + entry("third", "third")
    base = github.commit(REGISTRY, "main", {PATH: moved})
    second = propose(REGISTRY, proposal(), cache)
    assert second.sha != first.sha
    assert github.commits(FORK, BRANCH, base) == [second.sha]
    assert github.git(FORK, "rev-parse", f"{BRANCH}^").strip() == base
    assert github.file(FORK, BRANCH, PATH) == (moved + entry(RELEASE, "tiny")).encode()
    assert len(github.pulls(REGISTRY)) == 1


def test_a_moved_base_without_a_change_to_the_file_leaves_the_branch_alone(github: GitHubServer, cache: Cache) -> None:
    first = propose(REGISTRY, proposal(), cache)
    github.commit(REGISTRY, "main", {"src/code.py": "x = 2\n"})
    github.restart_counters()
    assert propose(REGISTRY, proposal(), cache).sha == first.sha
    assert github.pushes() == 0


def test_the_base_moved_and_the_cache_was_lost(github: GitHubServer, cache: Cache) -> None:
    propose(REGISTRY, proposal(), cache)
    base = github.commit(REGISTRY, "main", {PATH: BASE + entry("third", "third")})
    other = Cache(cache.root.parent / "another")
    done = propose(REGISTRY, proposal(), other)
    assert github.commits(FORK, BRANCH, base) == [done.sha]


# ----------------------------------------------------------------------------------------------- commits of others


def test_foreign_commit_is_kept_and_ours_comes_after_it(github: GitHubServer, cache: Cache) -> None:
    base = github.sha(REGISTRY, "main")
    first = propose(REGISTRY, proposal(), cache)
    noted = (BASE + entry(RELEASE, "tiny") + "  note: by hand\n").encode()
    theirs = github.commit(FORK, BRANCH, {PATH: noted.decode(), "docs/note.md": "theirs\n"}, author="Rita Reviewer")
    again = propose(REGISTRY, proposal(), cache)
    assert again.sha == theirs, "the edit keeps their line, so there is nothing to add"
    second = propose(REGISTRY, proposal("other"), cache)
    assert github.commits(FORK, BRANCH, base) == [second.sha, theirs, first.sha]
    assert github.file(FORK, BRANCH, PATH) == (BASE + entry(RELEASE, "other") + "  note: by hand\n").encode()
    assert github.file(FORK, BRANCH, "docs/note.md") == b"theirs\n"
    (line,) = observe(REGISTRY, [RELEASE], cache).branches[RELEASE].foreign
    assert line == f"{theirs[:8]} Rita Reviewer"


def test_foreign_commit_and_a_moved_base_are_merged(github: GitHubServer, cache: Cache) -> None:
    first = propose(REGISTRY, proposal(), cache)
    touched = BASE.replace("acme/first", "acme/first-renamed") + entry(RELEASE, "tiny")
    theirs = github.commit(FORK, BRANCH, {PATH: touched, "docs/note.md": "theirs\n"}, author="Rita")
    # Upstream adds an entry just where ours is: at the end of the file.
    base = github.commit(REGISTRY, "main", {PATH: BASE + entry("third", "third"), "src/code.py": "x = 2\n"})
    done = propose(REGISTRY, proposal("other"), cache)
    newest, merge, *rest = github.git(FORK, "rev-list", "--topo-order", BRANCH, f"^{base}").split()
    assert newest == done.sha
    assert github.git(FORK, "rev-parse", f"{merge}^1", f"{merge}^2").split() == [theirs, base]
    assert rest == [theirs, first.sha]
    assert (
        github.file(FORK, BRANCH, PATH)
        == (BASE.replace("acme/first", "acme/first-renamed") + entry("third", "third") + entry(RELEASE, "other")).encode()
    )
    assert github.file(FORK, BRANCH, "src/code.py") == b"x = 2\n"
    assert github.file(FORK, BRANCH, "docs/note.md") == b"theirs\n"
    assert "Signed-off-by: Ann Author" in github.message(FORK, merge)
    assert not propose(REGISTRY, proposal("other"), cache).changed
    (line,) = observe(REGISTRY, [RELEASE], Cache(cache.root.parent / "another")).branches[RELEASE].foreign
    assert line == f"{theirs[:8]} Rita"


def test_an_amended_commit_of_ours_is_somebody_elses(github: GitHubServer, cache: Cache) -> None:
    """Amending keeps our trailers; what was amended must not be lost for that."""
    base = github.sha(REGISTRY, "main")
    first = propose(REGISTRY, proposal(), cache)
    message = github.git(FORK, "log", "-1", "--format=%B", BRANCH)
    amended = BASE.replace("acme/second", "acme/second-fixed") + entry(RELEASE, "tiny")
    github.git(FORK, "update-ref", f"refs/heads/{BRANCH}", base)
    theirs = github.commit(FORK, BRANCH, {PATH: amended}, message=message, author="Rita")
    assert theirs != first.sha
    done = propose(REGISTRY, proposal("other"), cache)
    assert github.commits(FORK, BRANCH, base) == [done.sha, theirs]
    assert b"acme/second-fixed" in github.file(FORK, BRANCH, PATH)


# ---------------------------------------------------------------------------------------- closed, merged, done already


def test_a_closed_pull_request_is_seen_and_a_new_one_opened(github: GitHubServer, cache: Cache) -> None:
    first = propose(REGISTRY, proposal(), cache)
    assert first.pull is not None
    github.close(REGISTRY, first.pull.number)
    assert observe(REGISTRY, [RELEASE], cache).pulls[RELEASE].state == "closed"
    second = propose(REGISTRY, proposal(), cache)
    assert second.pull is not None
    assert second.pull.number != first.pull.number
    assert second.sha == first.sha
    assert observe(REGISTRY, [RELEASE], cache).pulls[RELEASE] == second.pull


@pytest.mark.parametrize("squash", [True, False])
def test_a_merged_pull_request_is_recognised_and_the_next_change_opens_another(
    github: GitHubServer, cache: Cache, squash: bool
) -> None:  # fmt: skip
    first = propose(REGISTRY, proposal(), cache)
    assert first.pull is not None
    github.merge(REGISTRY, first.pull.number, squash)
    state = observe(REGISTRY, [RELEASE], cache)
    assert state.pulls[RELEASE].state == "merged"
    assert state.data == (BASE + entry(RELEASE, "tiny")).encode()
    assert state.branches[RELEASE].foreign == ()
    again = propose(REGISTRY, proposal(), cache)
    assert not again.changed
    assert again.pull is not None
    assert (again.pull.number, again.pull.state) == (first.pull.number, "merged")
    base = github.sha(REGISTRY, "main")
    second = propose(REGISTRY, proposal("other"), cache)
    assert second.pull is not None
    assert second.pull.number != first.pull.number
    assert github.commits(FORK, BRANCH, base) == [second.sha]


def test_nothing_to_propose_makes_nothing(github: GitHubServer, cache: Cache) -> None:
    done = propose(REGISTRY, proposal(edit=lambda data: data), cache)
    assert (done.sha, done.pull, done.changed) == (None, None, False)
    assert github.pulls(REGISTRY) == []
    assert github.pushes() == 0


def test_two_releases_have_a_branch_and_a_pull_request_each(github: GitHubServer, cache: Cache) -> None:
    propose(REGISTRY, proposal(), cache)
    other = proposal(release="tiny-mlp", edit=edit_to("mlp", "tiny-mlp"), title="feat: add tiny-mlp")
    propose(REGISTRY, other, cache)
    assert sorted(github.branches(FORK)) == ["main", "saesync/tiny-mlp", "saesync/tiny-res"]
    assert len(github.pulls(REGISTRY)) == 2
    assert set(observe(REGISTRY, [RELEASE, "tiny-mlp", "absent"], cache).pulls) == {RELEASE, "tiny-mlp"}


def test_draft(github: GitHubServer, cache: Cache) -> None:
    propose(REGISTRY, proposal(draft=True), cache)
    assert github.pulls(REGISTRY)[0]["draft"] is True

"""What is seen of a registry: on GitHub, in any git repository, in a plain file."""

from __future__ import annotations

import importlib.util
import os
import subprocess
from pathlib import Path

import pytest
from forge_world import BASE, BRANCH, FORK, PATH, REGISTRY, RELEASE, entry, proposal
from servers.forge_loopback import GH_ALICE, GH_APP, GH_BOT, GitHubServer

from saesync.cache import Cache
from saesync.errors import Missing, NotVisible, Refused, SaesyncError
from saesync.forge import check_access, observe, propose, read_registry, status_of
from saesync.forge.credentials import find_credentials
from saesync.forge.places import compare_by_hand, server
from saesync.forge.types import RegistryState
from saesync.reason import ReasonCode

GIT = {"GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": os.devnull}
for _who in ("AUTHOR", "COMMITTER"):
    GIT |= {f"GIT_{_who}_NAME": "Uma Upstream", f"GIT_{_who}_EMAIL": "uma@example.org"}


def git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ | GIT).stdout.strip()


@pytest.fixture
def repository(tmp_path: Path, git_user: Path) -> Path:
    """A bare git repository with a registry file at its root and a default branch of another name."""
    work, bare = tmp_path / "work", tmp_path / "registry.git"
    work.mkdir()
    git(work, "init", "--quiet", "--initial-branch=trunk")
    (work / "pretrained_saes.yaml").write_text(BASE)
    git(work, "add", ".")
    git(work, "commit", "--quiet", "--message", "first")
    git(tmp_path, "clone", "--quiet", "--bare", str(work), str(bare))
    return bare


def detail(state: RegistryState) -> str:
    assert state.unknown is not None
    assert state.unknown.code is ReasonCode.NOT_VISIBLE
    return str(state.unknown.data["detail"])


# ------------------------------------------------------------------------------------------------------------ GitHub


def test_a_registry_without_a_branch(github: GitHubServer, cache: Cache) -> None:
    state = observe(REGISTRY, [RELEASE], cache)
    assert state == RegistryState(
        REGISTRY, "github", "main", github.sha(REGISTRY, "main"), PATH, BASE.encode(), branches={}, pulls={}
    )  # fmt: skip
    data, label = read_registry(REGISTRY, cache)
    assert data == BASE.encode()
    assert label == f"{REGISTRY} ({PATH})"


def test_only_the_registry_file_is_fetched(github: GitHubServer, cache: Cache) -> None:
    big = os.urandom(300_000).hex()
    github.commit(REGISTRY, "main", {"big.bin": big})
    for number in range(5):
        github.commit(REGISTRY, "main", {"big.bin": f"{number}{big}"})
    github.restart_counters()
    assert observe(REGISTRY, [RELEASE], cache).data == BASE.encode()
    assert github.fetched_bytes() < 20_000


def test_branch_and_pull_request_are_seen_and_a_warm_look_fetches_nothing(github: GitHubServer, cache: Cache) -> None:
    done = propose(REGISTRY, proposal(), cache)
    fresh = Cache(cache.root.parent / "fresh")
    state = observe(REGISTRY, [RELEASE], fresh)
    branch = state.branches[RELEASE]
    assert (branch.name, branch.sha, branch.foreign) == (BRANCH, done.sha, ())
    assert branch.data == (BASE + entry(RELEASE, "tiny")).encode()
    pull = state.pulls[RELEASE]
    assert pull == done.pull
    assert (pull.state, pull.head_sha, pull.author) == ("open", done.sha, "bot")
    github.restart_counters()
    assert observe(REGISTRY, [RELEASE], fresh) == state
    assert github.fetches() == 0
    assert github.calls() == {"repos.pulls.get": 1}


def test_a_damaged_cache_costs_time_not_truth(github: GitHubServer, cache: Cache) -> None:
    propose(REGISTRY, proposal(), cache)
    state = observe(REGISTRY, [RELEASE], cache)
    for path in cache.root.rglob("*"):
        if path.is_file():
            path.write_bytes(b"damaged")
    assert observe(REGISTRY, [RELEASE], cache) == state


def test_many_releases_are_asked_for_together(github: GitHubServer, cache: Cache) -> None:
    done = propose(REGISTRY, proposal(), cache)
    names = [RELEASE, *(f"release-{number}" for number in range(40))]
    github.restart_counters()
    assert observe(REGISTRY, names, cache).pulls == {RELEASE: done.pull}
    assert github.calls()["repos.pulls.get"] == 1


def test_without_a_token_public_things_are_seen(
    github: GitHubServer, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    done = propose(REGISTRY, proposal(), cache)
    monkeypatch.delenv("SAESYNC_GITHUB_TOKEN")
    github.restart_counters()
    state = observe(REGISTRY, [RELEASE], Cache(cache.root.parent / "fresh"))
    assert state.pulls == {RELEASE: done.pull}
    assert state.branches[RELEASE].data == (BASE + entry(RELEASE, "tiny")).encode()
    assert state.pulls_unknown is None
    assert {entry["auth"] for entry in github.log()} == {None}


def test_without_a_token_and_with_the_api_rationed_the_pull_requests_are_unknown(
    github: GitHubServer, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    monkeypatch.delenv("SAESYNC_GITHUB_TOKEN")
    github.fault(
        route="repos.pulls.get", status=403, body='{"message": "API rate limit exceeded for 127.0.0.1."}',
        headers={"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": "99999999999", "Content-Type": "application/json"}, times=-1,
    )  # fmt: skip
    state = observe(REGISTRY, [RELEASE], cache)
    assert state.unknown is None
    assert state.data == BASE.encode()
    assert state.pulls_unknown is not None
    assert "GitHub rations requests" in str(state.pulls_unknown.data["detail"])
    assert "Without a token it allows few." in str(state.pulls_unknown.data["detail"])
    assert github.count("repos.pulls.get") == 1, "waiting an hour does not help, nor does asking again"


def test_an_apps_token_sees_the_bots_pull_request(github: GitHubServer, cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan in GitHub Actions reads with GITHUB_TOKEN, which is no user's."""
    done = propose(REGISTRY, proposal(), cache)
    monkeypatch.delenv("SAESYNC_GITHUB_TOKEN")
    monkeypatch.setenv("GITHUB_TOKEN", GH_APP)
    state = observe(REGISTRY, [RELEASE], Cache(cache.root.parent / "fresh"))
    assert state.pulls == {RELEASE: done.pull}
    assert set(state.branches) == {RELEASE}


def test_tokens_are_looked_for_in_order(github: GitHubServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GITHUB_TOKEN", GH_APP)
    monkeypatch.setenv("GH_TOKEN", GH_ALICE)
    assert find_credentials(server()).token == GH_BOT
    monkeypatch.delenv("SAESYNC_GITHUB_TOKEN")
    assert find_credentials(server()).token == GH_APP
    monkeypatch.delenv("GITHUB_TOKEN")
    assert find_credentials(server()).token == GH_ALICE
    monkeypatch.delenv("GH_TOKEN")
    program = tmp_path / "bin" / "gh"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\n[ "$*" = "auth token --hostname {server().host}" ] && echo {GH_BOT}\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    assert find_credentials(server()).token == GH_BOT
    program.write_text("#!/bin/sh\nexit 1\n")
    assert find_credentials(server()).token is None


def test_addresses_of_github_are_github(github: GitHubServer, cache: Cache) -> None:
    state = observe(f"{github.base}/{REGISTRY}.git", [RELEASE], cache)
    assert (state.kind, state.data) == ("github", BASE.encode())


def test_repository_that_is_not_there(github: GitHubServer, cache: Cache) -> None:
    state = observe("acme/absent", [RELEASE], cache)
    assert state.kind == "github"
    assert "There is no repository at acme/absent" in detail(state)
    with pytest.raises(NotVisible, match="acme/absent"):
        read_registry("acme/absent", cache)
    with pytest.raises(NotVisible):
        propose("acme/absent", proposal(), cache)


def test_renamed_repository_is_named_not_followed(github: GitHubServer, cache: Cache) -> None:
    github.rename(REGISTRY, "acme/NewName")
    assert "acme/SAELens is called acme/NewName now" in detail(observe(REGISTRY, [RELEASE], cache))
    with pytest.raises(NotVisible, match="called acme/NewName now"):
        propose(REGISTRY, proposal(), cache)
    assert github.branches("acme/NewName") == ["main"]


def test_repository_without_a_registry_file(github: GitHubServer, cache: Cache) -> None:
    github.create("acme/other", {"README.md": "x"})
    state = observe("acme/other", [RELEASE], cache)
    assert (state.unknown, state.data) == (None, None)
    assert state.head is not None
    for action in (lambda: propose("acme/other", proposal(), cache), lambda: read_registry("acme/other", cache)):
        with pytest.raises(Missing, match="Registry file is missing"):
            action()
    with pytest.raises(Missing, match=r"holds neither sae_lens/pretrained_saes\.yaml nor pretrained_saes\.yaml"):
        check_access("acme/other")


def test_empty_repository(github: GitHubServer, cache: Cache) -> None:
    github.create("acme/empty", {}, empty=True)
    state = observe("acme/empty", [RELEASE], cache)
    assert (state.unknown, state.head, state.data) == (None, None, None)
    with pytest.raises(Missing, match="Registry is empty"):
        propose("acme/empty", proposal(), cache)


def test_registry_file_at_the_root(github: GitHubServer, cache: Cache) -> None:
    github.create("acme/flat", {"pretrained_saes.yaml": BASE})
    assert observe("acme/flat", [RELEASE], cache).path == "pretrained_saes.yaml"
    done = propose("acme/flat", proposal(), cache)
    assert done.pull is not None
    assert github.file("bot/flat", BRANCH, "pretrained_saes.yaml") == (BASE + entry(RELEASE, "tiny")).encode()


def test_checks_are_reported(github: GitHubServer, cache: Cache) -> None:
    done = propose(REGISTRY, proposal(), cache)
    assert done.pull is not None
    assert status_of(REGISTRY, done.pull) == ()
    github.admin("checks", {
        "repo": REGISTRY, "sha": done.sha,
        "checks": [
            {"name": "build", "status": "completed", "conclusion": "success"},
            {"name": "lint", "status": "completed", "conclusion": "failure"},
            {"name": "slow", "status": "in_progress"},
        ],
        "statuses": [{"context": "license/cla", "state": "pending"}, {"context": "docs", "state": "success"}],
    })  # fmt: skip
    assert status_of(REGISTRY, done.pull) == ("license/cla (pending)", "lint (failure)", "slow (pending)")


def test_a_branch_that_lost_the_file(github: GitHubServer, cache: Cache) -> None:
    propose(REGISTRY, proposal(), cache)
    github.commit(FORK, BRANCH, {PATH: None}, author="Rita")
    branch = observe(REGISTRY, [RELEASE], cache).branches[RELEASE]
    assert branch.data is None
    assert len(branch.foreign) == 1
    with pytest.raises(SaesyncError, match="does not hold the registry file any more"):
        propose(REGISTRY, proposal(), cache)


# ---------------------------------------------------------------------------------------------- any git repository


@pytest.mark.parametrize("form", ["{}", "file://{}"])
def test_plain_repository(repository: Path, cache: Cache, form: str) -> None:
    registry = form.format(repository)
    base = git(repository, "rev-parse", "trunk")
    state = observe(registry, [RELEASE], cache)
    assert (state.kind, state.default_branch, state.head, state.path) == ("git", "trunk", base, "pretrained_saes.yaml")
    check_access(registry)
    done = propose(registry, proposal(), cache)
    assert (done.changed, done.pull, done.sha) == (True, None, git(repository, "rev-parse", BRANCH))
    assert git(repository, "rev-list", BRANCH, "^trunk").split() == [done.sha]
    assert done.compare is not None
    shown = subprocess.run(done.compare, shell=True, check=True, capture_output=True, text=True).stdout
    assert "+tiny-res:" in shown
    assert not propose(registry, proposal(), cache).changed
    branch = observe(registry, [RELEASE], cache).branches[RELEASE]
    assert (branch.sha, branch.foreign) == (done.sha, ())
    assert set(git(repository, "for-each-ref", "--format=%(refname)").split()) == {"refs/heads/trunk", f"refs/heads/{BRANCH}"}
    git(repository, "fsck", "--strict")


def test_plain_repository_with_foreign_commits_and_a_moved_base(repository: Path, cache: Cache, tmp_path: Path) -> None:
    propose(str(repository), proposal(), cache)
    work = tmp_path / "theirs"
    git(tmp_path, "clone", "--quiet", "--branch", BRANCH, str(repository), str(work))
    (work / "note.md").write_text("theirs\n")
    git(work, "add", ".")
    git(work, "commit", "--quiet", "--message", "a note")
    git(work, "push", "--quiet", "origin", BRANCH)
    git(work, "checkout", "--quiet", "trunk")
    (work / "pretrained_saes.yaml").write_text(BASE + entry("third", "third"))
    git(work, "commit", "--quiet", "--all", "--message", "third")
    git(work, "push", "--quiet", "origin", "trunk")
    propose(str(repository), proposal("other"), cache)
    held = git(repository, "show", f"{BRANCH}:pretrained_saes.yaml")
    assert held + "\n" == BASE + entry("third", "third") + entry(RELEASE, "other")
    assert git(repository, "show", f"{BRANCH}:note.md") == "theirs"


@pytest.mark.parametrize("settings", [
    {"uploadpack.allowFilter": "false"},
    {"uploadpack.allowFilter": "true", "uploadpackfilter.allow": "false"},
])  # fmt: skip
def test_servers_that_cannot_filter(github: GitHubServer, cache: Cache, settings: dict[str, str]) -> None:
    for name, value in settings.items():
        github.git(REGISTRY, "config", name, value)
    assert observe(REGISTRY, [RELEASE], cache).data == BASE.encode()
    propose(REGISTRY, proposal(), cache)
    base = github.commit(REGISTRY, "main", {PATH: BASE + entry("third", "third")})
    done = propose(REGISTRY, proposal(), Cache(cache.root.parent / "fresh"))
    assert github.commits(FORK, BRANCH, base) == [done.sha]


@pytest.mark.parametrize("registry", [
    "ext::sh -c touch% /tmp/pwned", "--upload-pack=touch /tmp/pwned", "-owner/name", "owner/-/name", "owner/..", "git://host/repo",
    "ssh://-oProxyCommand=x/repo", "git@-oProxyCommand=x:repo", "git@host:-x", "https://", "nonsense", "", "a\nb/c",
    "/nowhere/at/all",
])  # fmt: skip
def test_what_is_no_registry(registry: str, cache: Cache, git_user: Path) -> None:
    state = observe(registry, [RELEASE], cache)
    assert state.unknown is not None
    with pytest.raises(SaesyncError):
        propose(registry, proposal(), cache)


def test_an_address_with_a_password_is_refused_and_not_repeated(cache: Cache, git_user: Path) -> None:
    with pytest.raises(Refused) as caught:
        propose("https://user:hunter2@example.org/repo.git", proposal(), cache)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("release", ["--force", "a..b", "x.lock", "a b", "../main", "a~1", ""])
def test_a_release_that_can_be_no_branch(repository: Path, cache: Cache, release: str) -> None:
    with pytest.raises(Refused, match="Release cannot be a branch"):
        propose(str(repository), proposal(release=release), cache)


# ------------------------------------------------------------------------------------------------------ a plain file


def test_plain_file(tmp_path: Path, cache: Cache, git_user: Path) -> None:
    path = tmp_path / "registry" / "my_saes.yaml"
    path.parent.mkdir()
    path.write_text(BASE)
    path.chmod(0o640)
    state = observe(str(path), [RELEASE], cache)
    assert (state.kind, state.path, state.data, state.head) == ("file", "my_saes.yaml", BASE.encode(), None)
    check_access(str(path))
    done = propose(str(path), proposal(), cache)
    assert (done.changed, done.sha, done.pull) == (True, None, None)
    assert path.read_text() == BASE + entry(RELEASE, "tiny")
    assert path.stat().st_mode & 0o777 == 0o640
    assert not propose(str(path), proposal(), cache).changed
    assert list(path.parent.iterdir()) == [path]
    assert read_registry(str(path), cache) == (path.read_bytes(), str(path))


def test_a_link_to_a_file_stays_a_link(tmp_path: Path, cache: Cache) -> None:
    path, link = tmp_path / "real.yaml", tmp_path / "link.yaml"
    path.write_text(BASE)
    link.symlink_to(path)
    propose(str(link), proposal(), cache)
    assert link.is_symlink()
    assert path.read_text() == BASE + entry(RELEASE, "tiny")


def test_a_failing_edit_leaves_the_file_alone(tmp_path: Path, cache: Cache) -> None:
    path = tmp_path / "saes.yaml"
    path.write_text(BASE)

    def edit(data: bytes) -> bytes:
        raise Refused("No", "It cannot be edited.")

    with pytest.raises(Refused):
        propose(str(path), proposal(edit=edit), cache)
    assert path.read_text() == BASE


def test_the_file_of_the_installed_sae_lens(github: GitHubServer, cache: Cache) -> None:
    spec = importlib.util.find_spec("sae_lens")
    assert spec is not None
    assert spec.origin is not None
    text = (Path(spec.origin).parent / "pretrained_saes.yaml").read_text()
    github.create("acme/real", {PATH: text})
    assert observe("acme/real", [RELEASE], cache).data == text.encode()
    done = propose("acme/real", proposal(), cache)
    assert done.pull is not None
    assert github.file("bot/real", BRANCH, PATH) == (text + entry(RELEASE, "tiny")).encode()
    assert github.git("bot/real", "diff", "--shortstat", "main", BRANCH).split()[3:4] == ["6"]


def test_a_fork_that_cannot_be_reached_leaves_the_registry_visible(
    github: GitHubServer, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    propose(REGISTRY, proposal(), cache)
    monkeypatch.setenv("SAESYNC_RETRY_SECONDS", "1")
    github.fault(route="git.refs", path=f"^/{FORK}", status=503, times=-1)
    state = observe(REGISTRY, [RELEASE], cache)
    assert (state.unknown, state.data) == (None, BASE.encode())
    assert state.pulls_unknown is not None
    assert FORK in str(state.pulls_unknown.data["detail"])


@pytest.mark.parametrize(("url", "expected"), [
    ("git@gitlab.com:lab/saes.git", "https://gitlab.com/lab/saes/-/compare/main...saesync/x"),
    ("ssh://git@codeberg.org/lab/saes", "https://codeberg.org/lab/saes/compare/main...saesync/x"),
    ("git@github.com:lab/saes.git", "https://github.com/lab/saes/compare/main...saesync/x?expand=1"),
    ("https://git.lab.org/a b.git", "git fetch 'https://git.lab.org/a b.git' +main:refs/saesync/base +saesync/x:refs/saesync/new "
     "&& git diff refs/saesync/base...refs/saesync/new"),
    ("file:///srv/a%20b.git", "git -C '/srv/a b.git' diff main...saesync/x"),
])  # fmt: skip
def test_how_a_branch_is_looked_at(url: str, expected: str) -> None:
    assert compare_by_hand(url, "main", "saesync/x") == expected

"""A loopback GitHub with a registry on it, and a clean environment for git."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from forge_world import BASE, PATH, REGISTRY
from servers.forge_loopback import GitHubServer, running_github

from saesync.cache import Cache


@pytest.fixture(scope="module")
def github_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GitHubServer]:
    with running_github(tmp_path_factory.mktemp("github")) as server:
        yield server


@pytest.fixture
def git_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A home with a git identity and settings that would do harm if they counted."""
    home = tmp_path / "home"
    home.mkdir()
    trap = home / "trap"
    trap.write_text(f"#!/bin/sh\ntouch {home}/sprung\n")
    trap.chmod(0o755)
    (home / "hooks").mkdir()
    for hook in ("pre-push", "post-commit", "reference-transaction", "post-index-change"):
        (home / "hooks" / hook).symlink_to(trap)
    settings = (
        "[user]\n\tname = Ann Author\n\temail = ann@example.org\n"
        f"[core]\n\thooksPath = {home}/hooks\n\tfsmonitor = {trap}\n\taskPass = {trap}\n"
        f'[credential]\n\thelper = "!{trap}"\n[push]\n\tgpgSign = true\n[http]\n\tproxy = http://127.0.0.1:9\n'
    )
    (home / ".gitconfig").write_text(settings)
    monkeypatch.setenv("HOME", str(home))
    for name in ("XDG_CONFIG_HOME", "EMAIL", "CI"):
        monkeypatch.delenv(name, raising=False)
    for what in ("NAME", "EMAIL"):
        for who in ("AUTHOR", "COMMITTER"):
            monkeypatch.delenv(f"GIT_{who}_{what}", raising=False)
    return home


@pytest.fixture
def github(github_process: GitHubServer, monkeypatch: pytest.MonkeyPatch, git_user: Path) -> Iterator[GitHubServer]:
    """A wiped loopback GitHub with the registry ``acme/SAELens`` on it; this process is the user bot, who works by forks.

    Another user: ``monkeypatch.setenv("SAESYNC_GITHUB_TOKEN", GH_ALICE)``.
    """
    github_process.wipe()
    github_process.create(REGISTRY, {PATH: BASE, "README.md": "read me\n", "src/code.py": "x = 1\n"})
    for name, value in github_process.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SAESYNC_RETRY_SECONDS", "4")
    yield github_process
    assert not (git_user / "sprung").exists(), "a setting of the user's acted"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cache:
    monkeypatch.setenv("SAESYNC_CACHE", str(tmp_path / "cache"))
    return Cache(tmp_path / "cache")

"""The token goes to GitHub in a header, and nowhere else."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from forge_world import BASE, BRANCH, FORK, PATH, REGISTRY, RELEASE, entry, proposal
from servers.forge_loopback import GH_BOT, GH_FINE, GH_READ, GitHubServer, encodings
from servers.holdings import holdings

from saesync.cache import Cache
from saesync.errors import SaesyncError
from saesync.forge import check_access, observe, propose, status_of
from saesync.forge.credentials import Credentials
from saesync.forge.places import Server

CANARY = "ghp_canary0123456789abcdefABCDEF"


@pytest.fixture
def recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A git on PATH that writes down its arguments, and those of what it starts, and then is git."""
    real = shutil.which("git")
    log = tmp_path / "arguments"
    program = tmp_path / "bin" / "git"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nprintf "%s\\n" "$0" "$@" >>{log}\nexec {real} "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    return log


def left_behind(cache: Cache) -> str:
    """All names and contents under the cache."""
    found = [str(path) for path in cache.root.rglob("*")]
    found += [path.read_bytes().decode("latin-1") for path in cache.root.rglob("*") if path.is_file()]
    return "\n".join(found)


def check_clean(text: str, token: str) -> None:
    for form in encodings(token):
        assert form not in text


@pytest.mark.parametrize("token", [GH_BOT, GH_FINE, GH_READ, CANARY])
def test_the_token_stays_out_of_arguments_addresses_files_and_messages(
    github: GitHubServer, cache: Cache, monkeypatch: pytest.MonkeyPatch, recorded: Path,
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str], token: str,
) -> None:  # fmt: skip
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("SAESYNC_GITHUB_TOKEN", token)
    watch = _Watch(cache)
    said = []
    with watch:
        for action in (
            lambda: check_access(REGISTRY),
            lambda: propose(REGISTRY, proposal(edit=watch.edit), cache),
            lambda: github.commit(REGISTRY, "main", {PATH: BASE + entry("third", "third")}),
            lambda: github.commit(FORK, BRANCH, {"note.md": "x"}, author="Rita"),
            lambda: propose(REGISTRY, proposal("other"), cache),
            lambda: observe(REGISTRY, [RELEASE], cache),
            lambda: status_of(REGISTRY, observe(REGISTRY, [RELEASE], cache).pulls[RELEASE]),
            lambda: observe("acme/absent", [RELEASE], cache),
            lambda: propose("acme/absent", proposal(), cache),
        ):
            try:
                said.append(repr(action()))
            except SaesyncError as error:
                said.append(f"{error} {error!r} {error.diagnostics} {error.__cause__!r} {error.__context__!r}")
            except (KeyError, OSError) as error:  # nothing to see for a token that may do nothing
                said.append(repr(error))
    out, err = capfd.readouterr()
    arguments = recorded.read_text()
    assert "ls-remote" in arguments
    everything = "\n".join((*said, out, err, arguments, left_behind(cache), watch.seen))
    check_clean(everything, token)
    check_clean("\n".join(f"{entry['path']} {entry['body']}" for entry in github.log()), token)
    for _, data in holdings(github.root):
        check_clean(data.decode("latin-1"), token)
    check_clean("\n".join(record.getMessage() for record in caplog.records if record.name != "asyncio"), token)


class _Watch:
    """Looks into the operation's temporary repositories while they exist."""

    def __init__(self, cache: Cache) -> None:
        self.cache, self.seen = cache, ""

    def __enter__(self) -> _Watch:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def edit(self, data: bytes) -> bytes:
        self.seen += left_behind(self.cache)
        assert "repo.git" in self.seen
        assert "[remote" in self.seen, "the repository's configuration was not looked at"
        return data + entry(RELEASE, "tiny").encode()


def test_the_token_does_not_follow_to_another_server(
    github: GitHubServer, cache: Cache, tmp_path: Path, git_user: Path
) -> None:  # fmt: skip
    """A registry on another host is asked without the token, whatever git's settings are."""
    other = github.base.replace("127.0.0.1", "localhost")
    state = observe(f"{other}/{REGISTRY}.git", [RELEASE], cache)
    assert (state.kind, state.data) == ("git", BASE.encode())
    assert {entry["auth"] for entry in github.log() if entry["route"].startswith("git.")} == {None}


def test_what_a_server_says_back_is_redacted(github: GitHubServer, cache: Cache) -> None:
    basic = encodings(GH_BOT)[1]
    github.fork(REGISTRY)
    github.hook(FORK, "pre-receive", f"echo 'hook declined you, {GH_BOT} alias {basic}' >&2; exit 1")
    with pytest.raises(SaesyncError) as caught:
        propose(REGISTRY, proposal(), cache)
    assert "hook declined you, *** alias ***" in str(caught.value)
    github.hook(FORK, "pre-receive", "exit 0")
    github.fault(
        route="repos.pulls.post", status=422, body=f'{{"message": "no, {GH_BOT}"}}', headers={"Content-Type": "application/json"}
    )
    with pytest.raises(SaesyncError) as caught:
        propose(REGISTRY, proposal(), cache)
    assert "no, ***" in str(caught.value)
    check_clean(str(caught.value), GH_BOT)


def test_credentials_show_nothing() -> None:
    found = Credentials(Server("https://api.github.com", "https://github.com"), CANARY)
    check_clean(repr(found) + str(found), CANARY)
    assert found.redact(f"https://x-access-token:{CANARY}@github.com/a/b") == "https://github.com/a/b"
    assert list(found.git_config()) == ["http.https://github.com/.extraHeader"]


def test_a_crash_of_git_shows_nothing(
    github: GitHubServer, cache: Cache, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A git that prints its environment and dies."""
    program = tmp_path / "bin" / "git"
    program.parent.mkdir()
    real = shutil.which("git")
    program.write_text(f'#!/bin/sh\ncase "$1" in ls-remote) env >&2; exit 128;; esac\nexec {real} "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    with pytest.raises(SaesyncError) as caught:
        propose(REGISTRY, proposal(), cache)
    check_clean(str(caught.value), GH_BOT)
    state = observe(REGISTRY, [RELEASE], cache)
    check_clean(repr(state), GH_BOT)


def test_a_traceback_of_a_bug_shows_no_token(github: GitHubServer, cache: Cache) -> None:
    program = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from forge_world import REGISTRY, proposal\n"
        "from saesync.cache import Cache\n"
        "from saesync.forge import propose\n"
        "propose(REGISTRY, proposal(edit=lambda data: 1 / 0), Cache())\n"
    )
    command = [sys.executable, "-c", program, str(Path(__file__).parent)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "ZeroDivisionError" in done.stderr
    check_clean(done.stderr, GH_BOT)
    assert not any((cache.root / "tmp").iterdir())


@pytest.mark.parametrize("when", ["ls-remote", "fetch", "push"])
def test_killed_runs_leave_nothing_that_stands_in_the_way(
    github: GitHubServer, cache: Cache, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, when: str
) -> None:  # fmt: skip
    program = tmp_path / "bin" / "git"
    program.parent.mkdir()
    real = shutil.which("git")
    script = (
        f'#!/bin/sh\nif [ "$1" = {when} ]; then [ {when} = push ] && {real} "$@"; kill -9 $PPID; exit 1; fi\nexec {real} "$@"\n'
    )
    program.write_text(script)
    program.chmod(0o755)
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from forge_world import REGISTRY, proposal\n"
        "from saesync.cache import Cache\n"
        "from saesync.forge import propose\n"
        "propose(REGISTRY, proposal(), Cache())\n"
    )
    environment = os.environ | {"PATH": f"{program.parent}:{os.environ['PATH']}"}
    command = [sys.executable, "-c", code, str(Path(__file__).parent)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode != 0
    result = propose(REGISTRY, proposal(), cache)
    assert github.commits(FORK, BRANCH, github.sha(REGISTRY, "main")) == [result.sha]
    assert len(github.pulls(REGISTRY)) == 1
    with contextlib.suppress(FileNotFoundError):
        assert not any((cache.root / "tmp").iterdir())

"""A loopback GitHub in a process of its own, and what tests ask it. Standard library only."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

GH_ALICE = "ghp_alice"  # user alice, may push to every repository
GH_BOT = "ghp_bot"  # user bot, works by forks
GH_READ = "ghp_ro"  # user bot, may write nothing
GH_NO_SCOPE = "ghp_noscope"  # user bot, a classic token without scopes
GH_FINE = "github_pat_fine"  # user bot, a fine-grained token: pushes to its fork, opens no pull requests upstream
GH_APP = "ghs_app"  # an app's token, as in GitHub Actions: no user
GH_TOKENS = (GH_ALICE, GH_BOT, GH_READ, GH_NO_SCOPE, GH_FINE, GH_APP)


def encodings(token: str) -> tuple[str, ...]:
    """A token as it may show up: plain, and as git sends it."""
    return (
        token,
        base64.b64encode(f"x-access-token:{token}".encode()).decode().rstrip("="),
        base64.b64encode(token.encode()).decode().rstrip("="),
    )


class GitHubServer:
    """A running loopback GitHub. Repositories are bare git repositories under ``root``."""

    def __init__(self, base: str, root: Path) -> None:
        self.base, self.root = base, root

    # ------------------------------------------------------------------------------------------- control
    def admin(self, path: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        with urllib.request.urlopen(urllib.request.Request(f"{self.base}/_admin/{path}", data), timeout=30) as reply:
            return json.loads(reply.read())

    def wipe(self) -> None:
        """No repositories, counters at zero, no faults, default settings."""
        self.admin("reset", {"repos": True})

    def restart_counters(self) -> None:
        """Counters, log and faults start again; repositories stay."""
        self.admin("reset", {})

    def config(self, **settings: Any) -> None:
        """Change settings: ``fork_delay`` (seconds until a fork is ready)."""
        self.admin("config", settings)

    def fault(self, **fault: Any) -> None:
        """Inject a fault, e.g. ``fault(route="repos.pulls.post", status=503, times=2)``; the fields are in hubserver.Fault."""
        self.admin("faults", fault)

    # ---------------------------------------------------------------------------------------- repositories
    def create(self, full_name: str, files: Mapping[str, str], **more: Any) -> str:
        """A repository with one commit on main; its hash."""
        self.admin("repos", {"full_name": full_name, "files": dict(files), **more})
        return "" if more.get("empty") else self.sha(full_name, "main")

    def commit(self, full_name: str, branch: str, files: Mapping[str, str | None], author: str = "somebody", **more: Any) -> str:
        """A commit by somebody else (None deletes a file); its hash. A new branch starts at ``parent``."""
        body = {
            "repo": full_name,
            "branch": branch,
            "files": dict(files),
            "message": "by somebody else",
            "author": author,
            **more,
        }
        return str(self.admin("commit", body)["sha"])

    def merge(self, full_name: str, number: int, squash: bool = True) -> str:
        """Merge a pull request as a maintainer would; the new commit."""
        return str(self.admin("merge", {"repo": full_name, "number": number, "squash": squash})["sha"])

    def close(self, full_name: str, number: int) -> None:
        """Close a pull request without merging it."""
        self.api("PATCH", f"repos/{full_name}/pulls/{number}", {"state": "closed"})

    def rename(self, full_name: str, to: str) -> None:
        self.admin("rename", {"from": full_name, "to": to})

    def fork(self, full_name: str, token: str = GH_BOT) -> str:
        """Fork a repository as a user; the fork's name."""
        return str(self.api("POST", f"repos/{full_name}/forks", {}, token)["full_name"])

    def folder(self, full_name: str) -> Path:
        return self.root / f"{full_name}.git"

    def git(self, full_name: str, *arguments: str) -> str:
        """Run git in the server's own bare repository."""
        return self._git(full_name, *arguments).decode()

    def _git(self, full_name: str, *arguments: str) -> bytes:
        command = ["git", "--git-dir", str(self.folder(full_name)), *arguments]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
        environment |= {"GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": os.devnull}
        return subprocess.run(command, check=True, capture_output=True, env=environment).stdout

    def sha(self, full_name: str, branch: str) -> str:
        return self.git(full_name, "rev-parse", f"refs/heads/{branch}").strip()

    def branches(self, full_name: str) -> list[str]:
        return self.git(full_name, "for-each-ref", "--format=%(refname:short)", "refs/heads").split()

    def file(self, full_name: str, branch: str, path: str) -> bytes:
        return self._git(full_name, "cat-file", "blob", f"refs/heads/{branch}:{path}")

    def commits(self, full_name: str, branch: str, since: str) -> list[str]:
        """Commits of a branch that are not in ``since``, newest first."""
        return self.git(full_name, "rev-list", f"refs/heads/{branch}", f"^{since}").split()

    def message(self, full_name: str, commit: str) -> str:
        return self.git(full_name, "log", "-1", "--format=%an <%ae>%n%B", commit)

    def hook(self, full_name: str, name: str, script: str) -> None:
        """A hook of the server, e.g. a ``pre-receive`` that protects branches."""
        path = self.folder(full_name) / "hooks" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    # ------------------------------------------------------------------------------------------------- api
    def api(self, method: str, path: str, body: Any = None, token: str = GH_ALICE) -> Any:
        """A request as another client would make it (counted)."""
        data = None if body is None else json.dumps(body).encode()
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        request = urllib.request.Request(f"{self.base}/api/v3/{path}", data, headers, method=method)
        with urllib.request.urlopen(request, timeout=30) as reply:
            return json.loads(reply.read() or b"null")

    def pulls(self, full_name: str, state: str = "all") -> list[dict[str, Any]]:
        """Pull requests, the newest first."""
        found = self.api("GET", f"repos/{full_name}/pulls?state={state}&per_page=100")
        assert isinstance(found, list)
        return found

    # ---------------------------------------------------------------------------------------- what happened
    def log(self) -> list[dict[str, Any]]:
        found = self.admin("log")
        assert isinstance(found, list)
        return found

    def count(self, route: str, method: str | None = None) -> int:
        """Requests of one route (``user``, ``repos.pulls.post``, ``git.git-receive-pack`` ...)."""
        return sum(1 for entry in self.log() if entry["route"] == route and method in (None, entry["method"]))

    def fetches(self) -> int:
        """Times git fetched objects (listing references does not count)."""
        return sum(1 for entry in self.log() if entry["route"] == "git.git-upload-pack" and "command=fetch" in entry["body"])

    def fetched_bytes(self) -> int:
        """Bytes of objects that git fetched."""
        found = [entry for entry in self.log() if entry["route"] == "git.git-upload-pack" and "command=fetch" in entry["body"]]
        return sum(entry["bytes_out"] for entry in found)

    def pushes(self) -> int:
        """Times git sent objects or moved a branch."""
        return self.count("git.git-receive-pack", "POST")

    def calls(self) -> dict[str, int]:
        """API requests by route."""
        found: dict[str, int] = {}
        for entry in self.log():
            if not entry["route"].startswith("git."):
                found[entry["route"]] = found.get(entry["route"], 0) + 1
        return found

    # ------------------------------------------------------------------------------------------- clients
    def environment(self, token: str | None = GH_BOT) -> dict[str, str]:
        """What a client needs in its environment to talk to this GitHub."""
        found = {"GITHUB_API_URL": f"{self.base}/api/v3", "GITHUB_SERVER_URL": self.base}
        return found if token is None else found | {"SAESYNC_GITHUB_TOKEN": token}


@contextlib.contextmanager
def running_github(root: Path) -> Iterator[GitHubServer]:
    """Start a loopback GitHub with its data under ``root`` and stop it at the end."""
    root.mkdir(parents=True, exist_ok=True)
    ready = root / "ready.json"
    ready.unlink(missing_ok=True)
    program = [
        sys.executable, str(Path(__file__).with_name("githubserver.py")),
        "--root", str(root / "repos"), "--ready-file", str(ready),
    ]  # fmt: skip
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("GIT_", "GITHUB_", "SAESYNC_"))}
    with subprocess.Popen(program, stdout=subprocess.DEVNULL, env=environment) as process:
        try:
            limit = time.monotonic() + 30
            while not (ready.exists() and ready.read_text().endswith("}")):
                if process.poll() is not None or time.monotonic() > limit:
                    raise RuntimeError("the loopback GitHub did not start")
                time.sleep(0.02)
            yield GitHubServer(json.loads(ready.read_text())["base"], root / "repos")
        finally:
            process.terminate()
            process.wait(10)

"""A loopback GitHub with a repository of manifests, pull requests on it, and the events and artefacts of their runs."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from planning import World, release

from saesync.planfile import plan_json

REPO = "acme/saes"
FORK = "bob/saes"
BOT = "github-actions[bot]"
TOKEN = "ghs_actions"
PLAN, MARKER = ".github/workflows/plan.yml", "<!-- saesync:plan -->"
SEED = {"manifests/res.yaml": "release: res\n", PLAN: "name: plan\n", "README.md": "# SAEs\n"}
SERVER = Path(__file__).parent.parent / "servers" / "githubchecks.py"
PROGRAM = str(Path(sys.executable).with_name("saesync"))


def a_plan(*ids: str, name: str = "res") -> dict[str, Any]:
    """A plan as `saesync plan --format json` prints it."""
    world = World([release(name, ids or ("layer_0", "layer_1"))])
    found: dict[str, Any] = json.loads(json.dumps(plan_json(world.plan())))
    return found


@dataclass
class Forge:
    """A running loopback GitHub. Everything it is asked by tests goes around the API that is tested."""

    base: str
    root: Path
    waits: list[float] = field(default_factory=list)

    @property
    def api(self) -> str:
        return f"{self.base}/api/v3"

    def admin(self, action: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        with urllib.request.urlopen(urllib.request.Request(f"{self.base}/_admin/{action}", data), timeout=30) as reply:
            return json.loads(reply.read())

    def call(self, method: str, path: str, body: Any = None, token: str = "ghp_alice") -> Any:
        data = None if body is None else json.dumps(body).encode()
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        request = urllib.request.Request(f"{self.api}{path}", data, headers, method=method)
        with urllib.request.urlopen(request, timeout=30) as reply:
            return json.loads(reply.read() or b"null")

    def reset(self) -> None:
        self.admin("reset", {"repos": True})
        self.waits.clear()

    def fault(self, **fault: Any) -> None:
        self.admin("faults", fault)

    def seed(self, files: Mapping[str, str] = SEED, repo: str = REPO) -> None:
        self.admin("repos", {"full_name": repo, "files": dict(files)})

    def settings(self, **values: Any) -> None:
        for name, value in values.items():
            self.admin("settings", {"repo": REPO, "name": name, "value": value})

    def fork(self) -> None:
        self.call("POST", f"/repos/{REPO}/forks", {"organization": "bob"})

    def git(self, repo: str, *words: str, text: str | None = None, **variables: str) -> str:
        environment = {"GIT_DIR": str(self.root / f"{repo}.git"), "PATH": "/usr/bin:/bin", **variables}
        environment |= {f"GIT_{who}_{what}": "t@t" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
        done = subprocess.run(["git", *words], env=environment, input=text, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    def push(self, branch: str, files: Mapping[str, str | None], repo: str = REPO, moved: Mapping[str, str] | None = None) -> str:
        """One commit on top of the branch, or of main; None removes, ``moved`` maps old names to new ones. Its hash."""
        refs = self.git(repo, "for-each-ref", "--format=%(refname)").splitlines()
        parent = f"refs/heads/{branch}" if f"refs/heads/{branch}" in refs else "refs/heads/main"
        index = {"GIT_INDEX_FILE": str(self.root / "index")}
        self.git(repo, "read-tree", parent, **index)
        lines = []
        for before, after in (moved or {}).items():
            blob = self.git(repo, "rev-parse", f"{parent}:{before}")
            lines += [f"0 {'0' * 40}\t{before}", f"100644 {blob}\t{after}"]
        for path, text in files.items():
            blob = None if text is None else self.git(repo, "hash-object", "-w", "--stdin", text=text)
            lines.append(f"0 {'0' * 40}\t{path}" if blob is None else f"100644 {blob}\t{path}")
        self.git(repo, "update-index", "--add", "--index-info", text="\n".join(lines) + "\n", **index)
        tree = self.git(repo, "write-tree", **index)
        commit = self.git(repo, "commit-tree", tree, "-p", parent, "-m", f"change {time.monotonic_ns()}")
        self.git(repo, "update-ref", f"refs/heads/{branch}", commit)
        return commit

    def open(self, branch: str, repo: str = REPO, base: str = "main") -> int:
        body = {"title": "New SAEs", "head": f"{repo.partition('/')[0]}:{branch}", "base": base, "body": ""}
        return int(self.call("POST", f"/repos/{REPO}/pulls", body)["number"])

    def merge(self, number: int) -> str:
        return str(self.admin("merge", {"repo": REPO, "number": number})["sha"])

    def say(self, number: int, user: str, body: str) -> None:
        self.admin("comment", {"repo": REPO, "number": number, "user": user, "body": body})

    def comments(self, number: int) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.call("GET", f"/repos/{REPO}/issues/{number}/comments?per_page=100")
        return found

    def said(self, number: int) -> list[str]:
        """What the workflow's account has commented."""
        return [found["body"] for found in self.comments(number) if found["user"]["login"] == BOT]

    def checks(self, sha: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.call("GET", f"/repos/{REPO}/commits/{sha}/check-runs?per_page=100")["check_runs"]
        return found

    def count(self, route: str) -> int:
        return int(self.admin("stats")["routes"].get(route, {}).get("requests", 0))

    def writes(self) -> int:
        """Requests that could have changed anything."""
        log = self.admin("log")
        return sum(entry["method"] != "GET" and entry["auth"] != "alice:write" for entry in log)


@contextmanager
def running_forge(root: Path) -> Iterator[Forge]:
    ready = root / "ready.json"
    repos = root / "repos"
    program = [sys.executable, str(SERVER), "--root", str(repos), "--ready-file", str(ready)]
    with subprocess.Popen(program, stdout=subprocess.DEVNULL) as process:
        try:
            limit = time.monotonic() + 30
            while not ready.exists():
                assert process.poll() is None, "the loopback GitHub did not start"
                assert time.monotonic() < limit, "the loopback GitHub did not start"
                time.sleep(0.02)
            yield Forge(json.loads(ready.read_text())["base"], repos)
        finally:
            process.terminate()
            process.wait(10)


def run_event(file: Path, sha: str, head: str | None = REPO, **changes: Any) -> Path:
    """The event of a finished run of plan.yml, as comment.yml gets it."""
    run = {
        "id": 77,
        "name": "plan",
        "path": PLAN,
        "event": "pull_request",
        "status": "completed",
        "conclusion": "success",
        "head_sha": sha,
        "head_branch": "new",
        "head_repository": None if head is None else {"full_name": head},
        "html_url": f"https://github.com/{REPO}/actions/runs/77",
        "pull_requests": [],
        **changes,
    }
    repository = {"full_name": REPO, "default_branch": "main"}
    file.write_text(json.dumps({"action": "completed", "workflow_run": run, "repository": repository}))
    return file


def push_event(file: Path, sha: str, ref: str = "refs/heads/main") -> Path:
    repository = {"full_name": REPO, "default_branch": "main"}
    file.write_text(json.dumps({"ref": ref, "after": sha, "repository": repository}))
    return file


def artifact(folder: Path, plan: Any) -> Path:
    """The folder that the run uploaded; ``plan`` is JSON, or text as it is."""
    folder.mkdir(exist_ok=True)
    (folder / "plan.json").write_text(plan if isinstance(plan, str) else json.dumps(plan))
    (folder / "plan.md").write_text("<img src=x onerror=alert(1)> @everyone")
    return folder


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str


def saesync(forge: Forge, *words: str, token: str = TOKEN, **variables: str) -> Done:
    """The command line, as a workflow's step runs it."""
    environment = {"PATH": "/usr/bin:/bin", "GITHUB_API_URL": forge.api, "GITHUB_REPOSITORY": REPO, "GITHUB_TOKEN": token}
    done = subprocess.run(
        [PROGRAM, *words], env=environment | variables, capture_output=True, text=True, timeout=120, check=False
    )
    assert "Traceback" not in done.stderr, done.stderr
    assert "bug in saesync" not in done.stderr, done.stderr
    return Done(done.returncode, done.stdout, done.stderr)

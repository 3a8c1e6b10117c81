"""A loopback Hub in a process of its own, and what tests ask it. Standard library only."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from surroundings import GIT_ALONE

ALICE = "hf_alice_write"  # user alice, write role in the organisation sae-org
ALICE_READ = "hf_alice_read"
BOB = "hf_bob_write"
SECRETS = (ALICE, ALICE_READ, BOB, "hf_carol_fine")


class HubServer:
    """A running loopback Hub. ``mode`` is "xet" or "lfs": how clients are to upload and download large files."""

    def __init__(self, base: str, cdn: str, mode: str, root: Path) -> None:
        self.base, self.cdn, self.mode, self.root = base, cdn, mode, root

    # ------------------------------------------------------------------------------------------- control
    def admin(self, path: str, body: Any = None, method: str | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.base}/_admin/{path}", data, method=method)
        with urllib.request.urlopen(request, timeout=30) as reply:
            return json.loads(reply.read())

    def wipe(self) -> None:
        """No repos, counters at zero, no faults, default configuration of this mode.

        Xet chunks stay in the store, for clients remember them: content sent before the wipe is not sent again.
        """
        self.admin("reset", {"repos": True, "config": True})
        self.admin("config", {"xet": "http" if self.mode == "xet" else "off"})

    def config(self, **settings: Any) -> None:
        """Change the server's CONFIG (lfs_threshold, tree_page, commits_page ...)."""
        self.admin("config", settings)

    def fault(self, *faults: Mapping[str, Any], **fault: Any) -> None:
        """Inject faults, e.g. ``fault(route="commit", status=503, times=2)``; the fields are in hubserver.Fault."""
        self.admin("faults", [*faults, *([fault] if fault else [])])

    def ration(self, **buckets: Mapping[str, Any]) -> None:
        """Rate limits: ``ration(commit={"quota": 60, "window": 3600})``; buckets are api, resolvers and commit."""
        self.admin("ratelimit", buckets)

    def restart_counters(self) -> None:
        """Counters, log, faults and rate limits start again; repos stay."""
        self.admin("reset", {})

    # ---------------------------------------------------------------------------------------- what happened
    def stats(self) -> dict[str, Any]:
        return self.admin("stats")

    def count(self, route: str | None = None) -> int:
        """Requests of one route (names are in hubserver), or of all but telemetry."""
        routes = self.stats()["routes"]
        if route is not None:
            return routes.get(route, {}).get("requests", 0)
        return sum(entry["requests"] for name, entry in routes.items() if name not in ("telemetry", "cas.telemetry"))

    def commits_landed(self) -> int:
        """Commit requests that were answered with 200."""
        return self.stats()["routes"].get("commit", {}).get("status", {}).get("200", 0)

    def bytes_sent(self, *routes: str) -> int:
        """Bytes of response bodies of these routes."""
        found = self.stats()["routes"]
        return sum(found.get(route, {}).get("bytes_out", 0) for route in routes)

    def uploaded_bytes(self) -> int:
        """Bytes of large-file uploads, by either protocol."""
        found = self.stats()["routes"]
        return sum(found.get(route, {}).get("bytes_in", 0) for route in ("lfs.put", "lfs.put-part", "cas.xorbs"))

    def log(self, route: str = "*") -> list[dict[str, Any]]:
        return self.admin(f"log?route={route}")

    # --------------------------------------------------------------------------------------------- repos
    def call(self, method: str, path: str, body: bytes | None = None, token: str = ALICE, ctype: str = "application/json") -> Any:
        """A request as another client would make it (counted)."""
        headers = {"Authorization": f"Bearer {token}", "Content-Type": ctype}
        request = urllib.request.Request(f"{self.base}{path}", body, headers, method=method)
        with urllib.request.urlopen(request, timeout=30) as reply:
            data = reply.read()
        return json.loads(data) if data.startswith((b"[", b"{")) else data

    def create_repo(self, repo: str, private: bool = False, token: str = ALICE, kind: str = "model") -> None:
        owner, name = repo.split("/")
        visibility = "private" if private else "public"
        body = {"name": name, "organization": owner, "type": kind, "visibility": visibility}
        self.call("POST", "/api/repos/create", json.dumps(body).encode(), token)

    def gate(self, repo: str, token: str = ALICE) -> None:
        """Make a repo gated: readable only by those who were granted access."""
        self.call("PUT", f"/api/models/{repo}/settings", json.dumps({"gated": "manual"}).encode(), token)

    def move(self, repo: str, to: str, token: str = ALICE) -> None:
        body = {"fromRepo": repo, "toRepo": to, "type": "model"}
        self.call("POST", "/api/repos/move", json.dumps(body).encode(), token)

    def push(
        self, repo: str, files: Mapping[str, bytes | None], message: str = "by somebody else", token: str = ALICE,
        revision: str = "main", kind: str = "model", lfs: tuple[str, ...] = (), create_pr: bool = False,
    ) -> str:  # fmt: skip
        """One commit by another client (None deletes; paths in ``lfs`` go through the object store). Returns its hash."""
        lines: list[dict[str, Any]] = [{"key": "header", "value": {"summary": message, "description": ""}}]
        for path, data in files.items():
            if data is None:
                lines.append({"key": "deletedFile", "value": {"path": path}})
            elif path in lfs:
                lines.append({"key": "lfsFile", "value": {"path": path, **self._store(repo, data, token)}})
            else:
                content = base64.b64encode(data).decode()
                lines.append({"key": "file", "value": {"path": path, "encoding": "base64", "content": content}})
        body = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
        query = "?create_pr=1" if create_pr else ""
        path = f"/api/{kind}s/{repo}/commit/{revision.replace('/', '%2F')}{query}"
        return str(self.call("POST", path, body, token, "application/x-ndjson")["commitOid"])

    def _store(self, repo: str, data: bytes, token: str) -> dict[str, Any]:
        oid = hashlib.sha256(data).hexdigest()
        batch = {"operation": "upload", "transfers": ["basic"], "objects": [{"oid": oid, "size": len(data)}]}
        reply = self.call("POST", f"/{repo}.git/info/lfs/objects/batch", json.dumps(batch).encode(), token)
        actions = reply["objects"][0].get("actions")
        if actions:
            request = urllib.request.Request(actions["upload"]["href"], data, method="PUT")
            urllib.request.urlopen(request, timeout=30).close()
            verify = actions["verify"]["href"][len(self.base) :]
            self.call("POST", verify, json.dumps({"oid": oid, "size": len(data)}).encode(), token)
        return {"algo": "sha256", "oid": oid, "size": len(data)}

    def head(self, repo: str, token: str = ALICE, kind: str = "model") -> str:
        return str(self.call("GET", f"/api/{kind}s/{repo}", token=token)["sha"])

    def git(self, repo: str, *args: str, kind: str = "model") -> str:
        """Run git in the server's own bare repository."""
        folder = self.root / "repos" / f"{kind}s" / f"{repo}.git"
        command, env = ["git", "--git-dir", str(folder), *args], os.environ | GIT_ALONE
        done = subprocess.run(command, check=True, capture_output=True, text=True, env=env)
        return done.stdout

    def commits(self, repo: str, kind: str = "model") -> list[str]:
        """Commit hashes on main, newest first."""
        return self.git(repo, "rev-list", "main", kind=kind).split()

    def tree_of(self, repo: str, revision: str = "main") -> dict[str, str]:
        """Path -> git object id (of the pointer for large files): equal trees have equal bytes."""
        lines = self.git(repo, "ls-tree", "-r", revision).splitlines()
        return {line.split("\t", 1)[1]: line.split()[2] for line in lines}

    def file(self, repo: str, path: str, revision: str = "main", token: str = ALICE) -> bytes:
        data = self.call("GET", f"/{repo}/resolve/{revision}/{path}", token=token)
        return data if isinstance(data, bytes) else json.dumps(data).encode()

    # ------------------------------------------------------------------------------------------- clients
    def environment(self, token: str | None = ALICE, **more: str) -> dict[str, str]:
        """What a client process needs in its environment to talk to this Hub in this mode. Add it to a clean os.environ."""
        found = {"HF_ENDPOINT": self.base, "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        if self.mode == "lfs":
            found["HF_HUB_DISABLE_XET"] = "1"
        if token is not None:
            found["HF_TOKEN"] = token
        return found | more


@contextlib.contextmanager
def running_hub(root: Path, mode: str = "lfs") -> Iterator[HubServer]:
    """Start a loopback Hub with its data under ``root`` and stop it at the end."""
    root.mkdir(parents=True, exist_ok=True)
    ready = root / "ready.json"
    ready.unlink(missing_ok=True)
    program = [sys.executable, str(Path(__file__).with_name("hubserver.py")), "--root", str(root), "--ready-file", str(ready)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment["HF_HOME"] = str(root / "home")
    with subprocess.Popen(program, stdout=subprocess.DEVNULL, env=environment) as process:
        try:
            limit = time.monotonic() + 30
            while not ready.exists():
                if process.poll() is not None or time.monotonic() > limit:
                    raise RuntimeError("the loopback Hub did not start")
                time.sleep(0.02)
            found = json.loads(ready.read_text())
            server = HubServer(found["base"], found["cdn"], mode, root)
            server.wipe()
            yield server
        finally:
            process.terminate()
            process.wait(10)

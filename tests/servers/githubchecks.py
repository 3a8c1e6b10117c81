"""githubserver with what workflows and repository settings need besides: checks, comparisons, comments that can be edited,
branch protection, rulesets, environments, secrets.

    python githubchecks.py --root DIR --port 8820 [--ready-file F]

More tokens: ``ghs_actions`` (an installation's token, as jobs have it: writes comments and checks, cannot ask who it is),
``ghs_read`` (the same, read only), ``ghp_admin`` (sees settings that only administrators see).
More of ``/_admin``: ``POST settings {"repo", "name", "value"}`` with the names in ``SETTINGS``, ``POST comment {"repo", "number",
"user", "body"}``, ``POST pull {"repo", "number", ...}`` overrides fields of a pull request's answer.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

sys.path.insert(0, str(Path(__file__).parent))

import githubserver as G
import hubserver as H

G.TOKENS |= {
    "ghs_actions": {"user": "github-actions[bot]", "role": "write", "app": "github-actions"},
    "ghs_read": {"user": "github-actions[bot]", "role": "read", "app": "github-actions"},
    "ghp_admin": {"user": "alice", "role": "write", "admin": True},
}
SETTINGS = ("protection", "rules", "environments", "branch_policies", "secrets", "owners_errors")
MOST_FILES = 300
Route = tuple[str, Callable[[], None]]


def fail(status: int, message: str) -> H.Fail:
    """An error in the form that GitHub's API has."""
    body = json.dumps({"message": message, "documentation_url": "https://docs.github.com/rest", "status": str(status)})
    return H.Fail(status, message, body=body.encode(), headers={"Content-Type": "application/json"})


class Handler(G.Handler):
    """The routes of githubserver, and those below before them."""

    def admin(self) -> None:
        action = self.parts[1]
        if action not in ("settings", "comment", "pull"):
            return super().admin()
        asked = self.json()
        repo = self.hub.repos[asked.pop("repo")]
        if action == "settings":
            assert asked["name"] in SETTINGS, asked
            repo.setdefault("settings", {})[asked["name"]] = asked["value"]
            return self.reply(200, {})
        pull = self.pull(repo, asked.pop("number"))
        if action == "comment":
            return self.reply(201, self.new_comment(repo, pull, asked["user"], asked["body"]))
        pull.setdefault("override", {}).update(asked)
        return self.reply(200, {})

    def route_hub(self) -> Route:
        # components are split before they are unquoted: a branch's slash is not the path's
        parts = [unquote(part) for part in urlsplit(self.path).path.split("/")[1:]]
        parts = parts[2:] if parts[:2] == ["api", "v3"] else parts
        if parts == ["user"]:
            return "user", self.h_user
        if len(parts) > 3 and parts[0] == "repos":
            repo = self.hub.repos.get(f"{parts[1]}/{parts[2]}")
            found = self.route_repo(repo, parts[3:], self.command) if repo else None
            if found is not None:
                name, action = found
                return name, lambda: self.locked(repo, action)
        return super().route_hub()

    def locked(self, repo: Any, action: Callable[[], None]) -> None:
        self.token = self.gh_user(need=self.command != "GET")
        if self.command != "GET" and self.token["role"] != "write":
            raise fail(403, "Resource not accessible by integration")
        with repo["lock"]:
            action()

    def route_repo(self, repo: Any, rest: list[str], method: str) -> Route | None:
        match [method, *rest]:
            case ["GET", "compare", spec]:
                return "compare", lambda: self.h_compare(repo, spec)
            case ["GET", "commits", sha, "pulls"]:
                return "commit-pulls", lambda: self.h_commit_pulls(repo, sha)
            case ["GET", "commits", sha, "check-runs"]:
                return "check-runs.list", lambda: self.h_check_runs(repo, sha)
            case ["POST", "check-runs"]:
                return "check-runs.post", lambda: self.h_new_check(repo)
            case ["PATCH", "check-runs", number]:
                return "check-runs.patch", lambda: self.h_edit_check(repo, int(number))
            case ["GET" | "POST", "issues", number, "comments"]:
                name = {"GET": "comments.list", "POST": "comments.post"}[method]
                return name, lambda: self.h_comments(repo, int(number))
            case ["PATCH" | "DELETE", "issues", "comments", number]:
                return f"comments.{method.lower()}", lambda: self.h_one_comment(repo, int(number))
        return self.route_settings(repo, rest) if method == "GET" else None

    def route_settings(self, repo: Any, rest: list[str]) -> Route | None:
        settings = repo.get("settings", {})
        match rest:
            case ["branches", _, "protection"]:
                return "protection", lambda: self.h_protection(settings)
            case ["rules", "branches", _]:
                return "rules", lambda: self.page(settings.get("rules", []))
            case ["environments", name]:
                return "environment", lambda: self.h_environment(settings, name)
            case ["environments", name, "deployment-branch-policies"]:
                policies = settings.get("branch_policies", [])
                return "branch-policies", lambda: self.reply(200, {"total_count": len(policies), "branch_policies": policies})
            case ["actions", "secrets"]:
                return "secrets", lambda: self.h_secrets(settings)
            case ["codeowners", "errors"]:
                return "codeowners-errors", lambda: self.reply(200, {"errors": settings.get("owners_errors", [])})
        return None

    # ----------------------------------------------------------------------------------------------- settings
    def h_user(self) -> None:
        token = self.gh_user()
        if "app" in token:
            raise fail(403, "Resource not accessible by integration")
        self.reply(200, self.user(token["user"]))

    def h_protection(self, settings: Any) -> None:
        if not (self.token or {}).get("admin"):
            raise fail(404, "Not Found")
        if settings.get("protection") is None:
            raise fail(404, "Branch not protected")
        self.reply(200, settings["protection"])

    def h_environment(self, settings: Any, name: str) -> None:
        found = settings.get("environments", {}).get(name)
        if found is None:
            raise fail(404, "Not Found")
        self.reply(200, {"name": name, **found})

    def h_secrets(self, settings: Any) -> None:
        if not (self.token or {}).get("admin"):
            raise fail(403, "Resource not accessible by personal access token")
        names = settings.get("secrets", [])
        self.reply(200, {"total_count": len(names), "secrets": [{"name": name} for name in names]})

    # ------------------------------------------------------------------------------------------- pull requests
    def user(self, n: str) -> dict[str, Any]:
        return {**super().user(n), "type": "Bot" if n.endswith("[bot]") else "User"}

    def pull_json(self, r: Any, x: Any) -> dict[str, Any]:
        found = super().pull_json(r, x)
        found["merged_at"] = x["at"] if x["merged"] else None
        found["changed_files"] = len(self.files(r, x["base_ref"], found["head"]["sha"]))
        return {**found, **x.get("override", {})}

    def h_commit_pulls(self, repo: Any, sha: str) -> None:
        self.page([self.pull_json(repo, pull) for pull in repo["pulls"] if sha in (pull["sha"], pull.get("merge_sha"))])

    def gather(self, repo: Any) -> None:
        """Heads of pull requests from forks become known to the base repository, as on GitHub."""
        for pull in repo["pulls"]:
            head = self.hub.repos.get(pull["head_repo"])
            if head is not None:
                ref = f"+refs/heads/{pull['head_ref']}:refs/pull/{pull['number']}/head"
                repo["git"].run("fetch", "-q", head["git"].path, ref, check=False)

    def files(self, repo: Any, base: str, head: str) -> list[dict[str, Any]]:
        """What ``head`` changes since it left ``base``."""
        self.gather(repo)
        git = repo["git"]
        one, two = git.resolve(base), git.resolve(head)
        if one is None or two is None:
            raise fail(404, "Not Found")
        words = git.run("diff", "--name-status", "-M", "-z", f"{one}...{two}").decode().split("\0")[:-1]
        found = []
        while words:
            status = words.pop(0)
            before = words.pop(0) if status[0] in "RC" else None
            word = {"A": "added", "M": "modified", "D": "removed", "R": "renamed", "C": "copied", "T": "changed"}[status[0]]
            file = {"sha": "0" * 40, "filename": words.pop(0), "status": word, "additions": 0, "deletions": 0, "changes": 0}
            found.append(file if before is None else {**file, "previous_filename": before})
        return found

    def h_compare(self, repo: Any, spec: str) -> None:
        base, _, head = spec.partition("...")
        files = self.files(repo, base, head)
        merge_base = repo["git"].run("merge-base", repo["git"].resolve(base), repo["git"].resolve(head)).decode().strip()
        commit = {"sha": merge_base, "url": ""}
        self.reply(200, {"status": "ahead", "merge_base_commit": commit, "commits": [], "files": files[:MOST_FILES]})

    # ------------------------------------------------------------------------------------------------- comments
    def new_comment(self, repo: Any, pull: Any, user: str, body: str) -> dict[str, Any]:
        repo["comments"] = repo.get("comments", 1000) + 1
        made = {"id": repo["comments"], "node_id": "IC", "body": body, "user": self.user(user), "url": "", "html_url": ""}
        pull["comments"].append(made)
        return made

    def h_comments(self, repo: Any, number: int) -> None:
        pull = self.pull(repo, number)
        if self.command == "GET":
            return self.page(pull["comments"])
        body = self.json()["body"]
        if len(body) > 65_536:
            raise fail(422, "Validation Failed")
        return self.reply(201, self.new_comment(repo, pull, self.token["user"], body))

    def h_one_comment(self, repo: Any, number: int) -> None:
        for pull in repo["pulls"]:
            for comment in pull["comments"]:
                if comment["id"] == number:
                    if comment["user"]["login"] != self.token["user"]:
                        raise fail(403, "Resource not accessible by integration")
                    if self.command == "DELETE":
                        pull["comments"].remove(comment)
                        return self.reply(204)
                    comment["body"] = self.json()["body"]
                    return self.reply(200, comment)
        raise fail(404, "Not Found")

    # --------------------------------------------------------------------------------------------------- checks
    def h_check_runs(self, repo: Any, sha: str) -> None:
        name = self.q1.get("check_name")
        found = [run for run in repo.get("check_runs", []) if run["head_sha"] == sha and name in (None, run["name"])]
        number, size = int(self.q1.get("page", 1)), int(self.q1.get("per_page", 30))
        self.reply(200, {"total_count": len(found), "check_runs": found[(number - 1) * size : number * size]})

    def h_new_check(self, repo: Any) -> None:
        asked = self.json()
        self.gather(repo)
        if repo["git"].resolve(asked["head_sha"]) is None:
            raise fail(422, "No commit found for SHA: " + asked["head_sha"])
        runs = repo.setdefault("check_runs", [])
        run = {"id": 5000 + len(runs), "app": {"slug": self.token.get("app", self.token["user"])}, **asked}
        self.check_output(run)
        runs.append(run)
        self.reply(201, run)

    def h_edit_check(self, repo: Any, number: int) -> None:
        for run in repo.get("check_runs", []):
            if run["id"] == number:
                if run["app"]["slug"] != self.token.get("app", self.token["user"]):
                    raise fail(403, "Invalid app_id")
                changed = {**run, **self.json()}
                self.check_output(changed)
                run.update(changed)
                return self.reply(200, run)
        raise fail(404, "Not Found")

    def check_output(self, run: Any) -> None:
        output = run.get("output", {})
        if any(len(output.get(part, "")) > 65_535 for part in ("summary", "text")) or not output.get("title"):
            raise fail(422, "Invalid request. Only 65535 characters are allowed")


class Server(G.Server):
    def __init__(self, addr: tuple[str, int], hub: Any) -> None:
        self.hub, self.is_cdn = hub, False
        H.socketserver.TCPServer.__init__(self, addr, Handler)


def serve(root: str | Path, host: str = "127.0.0.1", port: int = 0, ready_file: str | None = None) -> tuple[Any, str]:
    """Start in this process; the hub, and the address that GitHub's own ``https://github.com`` would be."""
    hub = G.GH(str(root))
    server = Server((host, port), hub)
    hub.base = f"http://{host}:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    if ready_file:
        ready = Path(ready_file)
        part = ready.with_name(f"{ready.name}.part")
        part.write_text(json.dumps({"base": hub.base, "pid": os.getpid()}))
        part.replace(ready)
    return hub, hub.base


if __name__ == "__main__":
    import argparse

    parser = argparse.ArgumentParser()
    parser.add_argument("--root", required=True)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--ready-file")
    options = parser.parse_args()
    print("github", serve(options.root, port=options.port, ready_file=options.ready_file)[1], flush=True)
    threading.Event().wait()

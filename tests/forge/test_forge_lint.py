"""`saesync registry lint owner/repo`: the list of a repository, read without a checkout."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from forge_world import BASE, PATH, REGISTRY
from servers.forge_loopback import GitHubServer

PROGRAM = str(Path(sys.executable).with_name("saesync"))


def lint(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [PROGRAM, "registry", "lint", *words], env=dict(os.environ), capture_output=True, text=True, check=False
    )


def test_a_repository_on_github_is_linted_where_it_is(github: GitHubServer) -> None:
    github.commit(REGISTRY, "main", {PATH: BASE + "third:\n  repo_id: a/c\n  repo_id: a/d\n  saes: []\n"})
    done = lint(REGISTRY, "--format", "json")
    assert done.returncode == 1, done.stderr
    found = {finding["rule"] for finding in json.loads(done.stdout)["findings"]}
    assert "duplicate-key" in found


def test_a_repository_that_is_not_there_is_one_clear_message(github: GitHubServer) -> None:
    done = lint("acme/nothing")
    assert done.returncode == 1
    assert "acme/nothing" in done.stderr
    assert "Traceback" not in done.stderr

"""Git checkouts as pull requests bring them, some of them hostile, for the tests of `plan --untrusted`."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

COMMIT = "c5ebcd40d208330abc697524c919956e692655cf"
GIT = {
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_AUTHOR_NAME": "Author",
    "GIT_AUTHOR_EMAIL": "author@example.org",
    "GIT_COMMITTER_NAME": "Author",
    "GIT_COMMITTER_EMAIL": "author@example.org",
}


def git(folder: Path, *words: str, check: bool = True) -> str:
    """Run the real git there, with nobody's configuration but the checkout's."""
    done = subprocess.run(["git", *words], cwd=folder, env={**os.environ, **GIT}, capture_output=True, text=True, check=check)
    return done.stdout


def manifest(
    release: str, publish: str = "huggingface: acme/saes", source: str | None = None, ev: float = 0.7, more: str = ""
) -> str:
    """A manifest of two SAEs."""
    where = source or f"repo: acme/raw\n    revision: {COMMIT}\n    path: '{{layer}}.pth'"
    return f"""\
apiVersion: saesync/v1
release: {release}
model:
  name: google/gemma-2-2b
  revision: {COMMIT}
saes:
  for_each:
    layer: [0, 1]
  id: {release}/layer_{{layer}}
  hook: blocks.{{layer}}.hook_resid_post
  source:
    {where}
    format: goodfire
validate:
  dataset: {{repo: monology/pile, revision: {COMMIT}}}
  tokens: 204800
  context: 1024
  require:
    explained_variance: {{min: {ev}}}
publish:
  {publish}
  license: mit
{more}"""


class Checkout:
    """A repository with manifests, to be committed and changed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "manifests").mkdir(parents=True)
        git(folder, "init", "-q", "-b", "main")

    def write(self, name: str, text: str) -> Path:
        path = self.folder / "manifests" / name
        path.write_text(text, encoding="utf-8")
        return path

    def commit(self, message: str = "change") -> str:
        git(self.folder, "add", "-A")
        git(self.folder, "commit", "-q", "--allow-empty", "-m", message)
        return git(self.folder, "rev-parse", "HEAD").strip()


def set_traps(checkout: Checkout, marks: Path) -> None:
    """Everything in a checkout's .git that makes git run a program. Each program leaves its name in ``marks``."""
    marks.mkdir()
    hooks = checkout.folder / ".git" / "evil-hooks"
    hooks.mkdir()

    def trap(name: str, folder: Path = marks.parent) -> str:
        path = folder / name
        path.write_text(f"#!/bin/sh\ntouch '{marks / name}'\ncat >/dev/null 2>&1 </dev/null\n", encoding="utf-8")
        path.chmod(0o755)
        return str(path)

    for hook in ("post-checkout", "post-index-change", "pre-commit", "reference-transaction", "fsmonitor-watchman"):
        trap(hook, hooks)
    settings = {
        "core.fsmonitor": trap("fsmonitor"),
        "core.hooksPath": str(hooks),
        "core.sshCommand": trap("ssh"),
        "core.pager": trap("pager"),
        "core.editor": trap("editor"),
        "core.askPass": trap("askpass"),
        "core.gitProxy": trap("proxy"),
        "core.alternateRefsCommand": trap("alternates"),
        "diff.external": trap("diff-external"),
        "diff.evil.textconv": trap("textconv"),
        "diff.evil.command": trap("diff-command"),
        "filter.evil.clean": trap("clean"),
        "filter.evil.smudge": trap("smudge"),
        "filter.evil.process": trap("process"),
        "credential.helper": trap("credential"),
        "gpg.program": trap("gpg"),
        "pager.cat-file": trap("pager-cat-file"),
        "pager.ls-tree": trap("pager-ls-tree"),
        "pager.rev-parse": trap("pager-rev-parse"),
        "alias.cat-file": f"!{trap('alias')}",
        "remote.origin.url": f"ext::{trap('remote-helper')}",
        "remote.origin.uploadpack": trap("uploadpack"),
        "remote.origin.promisor": "true",
        "remote.origin.partialclonefilter": "blob:none",
        "extensions.partialClone": "origin",
        "protocol.ext.allow": "always",
        "protocol.file.allow": "always",
    }
    git(checkout.folder, "config", "core.repositoryformatversion", "1")
    for name, value in settings.items():
        git(checkout.folder, "config", name, value)
    (checkout.folder / ".git" / "info" / "attributes").write_text("* filter=evil diff=evil\n", encoding="utf-8")


def outdate(checkout: Checkout) -> None:
    """Give every file another time than git's index knows: whoever asks git what changed has it read them through the filters."""
    for path in checkout.folder.rglob("*"):
        if path.is_file() and ".git" not in path.parts:
            os.utime(path, (1_000_000_000, 1_000_000_000))


def sprung(marks: Path) -> list[str]:
    """Which traps ran since the last look."""
    found = sorted(path.name for path in marks.iterdir())
    for path in marks.iterdir():
        path.unlink()
    return found

"""Everyday speed on the demo world: a plan with everything published, and a second apply, against a folder and a loopback Hub."""

from __future__ import annotations

import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

from benchmarks.table import Row, best_of, run

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from servers.loopback import running_hub

TITLE = "The demo, everything published"
SAESYNC = [sys.executable, "-m", "saesync"]
BUILT = Path(__file__).parent.parent / "demo"
IMPORTS = [sys.executable, "-c", "import huggingface_hub, yaml, jsonschema, click"]
PUBLISH = re.compile(r"^(\s+)local:.*$", re.MULTILINE)


def rows() -> list[Row]:
    """Plan and second apply on a local target, then on a Hub target with its request counters."""
    with tempfile.TemporaryDirectory() as name:
        world = Path(name) / "demo"
        env = {**os.environ, "SAESYNC_CACHE": str(Path(name) / "cache"), "HF_HOME": str(Path(name) / "home")}
        if BUILT.is_dir():  # `make demo` was here: training again would measure nothing
            shutil.copytree(BUILT, world, ignore=shutil.ignore_patterns("published"))
        must([*SAESYNC, "demo", str(world)], env)
        good = str(world / "manifests" / "good.yaml")
        must([*SAESYNC, "apply", "-y", good], env)
        imports = best_of(5, IMPORTS, env)
        plan = best_of(5, [*SAESYNC, "plan", "--check", good], env)
        again = best_of(3, [*SAESYNC, "apply", "-y", good], env)
        assert plan.code == 0, plan.output
        assert again.code == 0, again.output
        return [
            Row("plan", plan.wall, "s", "", "<= 0.5"),
            Row("plan, over 1.5 x the imports it cannot avoid", plan.wall - 1.5 * imports.wall, "s",
                f"imports {imports.wall:.2f} s", "<= 0.2"),
            Row("second apply, local target", again.wall, "s", "", "<= 1"),
            *hub_rows(world, env, Path(name)),
        ]  # fmt: skip


def hub_rows(world: Path, env: dict[str, str], folder: Path) -> list[Row]:
    """The same manifest, published to a loopback Hub."""
    text = (world / "manifests" / "good.yaml").read_text(encoding="utf-8")
    manifest = world / "hub" / "good.yaml"
    manifest.parent.mkdir()
    manifest.write_text(PUBLISH.sub(r"\1huggingface: alice/demo", text, count=1), encoding="utf-8")
    with running_hub(folder / "hub") as server:
        env = env | server.environment()
        words = [*SAESYNC, "apply", "-y", str(manifest), "--root", str(world)]
        must(words, env)
        commits, uploaded = server.commits_landed(), server.uploaded_bytes()
        again = run(words, env)
        assert again.code == 0, again.output
        return [
            Row("second apply, Hub target", again.wall, "s", "", "<= 1"),
            Row("second apply: commits", server.commits_landed() - commits, "", f"first: {commits}", "<= 0"),
            Row("second apply: bytes uploaded", server.uploaded_bytes() - uploaded, "B", f"first: {uploaded:,} B", "<= 0"),
        ]


def must(words: list[str], env: dict[str, str]) -> None:
    """Run a command that has to succeed.

    Raises:
        RuntimeError: it did not.
    """
    done = run(words, env)
    if done.code != 0:
        raise RuntimeError(f"{' '.join(words)} ended with {done.code}:\n{done.output}")

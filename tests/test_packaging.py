"""The built wheel works when it is installed outside the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tiny import TinyWorld

ROOT = Path(__file__).parent.parent


def test_wheel_works_outside_the_checkout(tmp_path: Path, own_tiny_world: TinyWorld) -> None:
    wheels, site = tmp_path / "wheels", tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "--quiet", "--isolated", "--disable-pip-version-check"]
    source = tmp_path / "source"
    subprocess.run(["git", "clone", "--quiet", "--no-hardlinks", str(ROOT), str(source)], check=True)
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", str(wheels), str(source)]
    subprocess.run(build, check=True, cwd=tmp_path)
    (wheel,) = wheels.glob("saesync-*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", str(site), str(wheel)], check=True, cwd=tmp_path)
    env = {**os.environ, "PYTHONPATH": str(site), "SAESYNC_CACHE": str(tmp_path / "cache")}

    def run(*words: str) -> str:
        done = subprocess.run([sys.executable, *words], env=env, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert str(site) in run("-c", "import saesync; print(saesync.__file__)")
    assert "saesync" in run("-m", "saesync", "--version")
    assert "goodfire" in run("-m", "saesync", "formats")
    assert run("-m", "saesync", "schema") == (ROOT / "saesync/schema/manifest.json").read_text(encoding="utf-8")
    assert "published" in run("-m", "saesync", "apply", "-y", "--format", "json", str(own_tiny_world.good)), "with its workers"
    assert (own_tiny_world.published / "layer_0" / "topk" / "cfg.json").is_file()
    assert (site / "saesync" / "schema" / "manifest.json").is_file()
    assert (site / "saesync" / "py.typed").is_file()

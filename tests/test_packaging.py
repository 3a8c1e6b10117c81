"""The built wheel works when it is installed outside the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

from surroundings import GIT_ALONE
from tiny import TinyWorld

ROOT = Path(__file__).parent.parent


def test_wheel_works_outside_the_checkout(tmp_path: Path, own_tiny_world: TinyWorld) -> None:
    wheels, site = tmp_path / "wheels", tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "--quiet", "--isolated", "--disable-pip-version-check"]
    source = tmp_path / "source"
    settings = tmp_path / "gitconfig"
    settings.write_text("[safe]\n\tdirectory = *\n")  # a checkout may be another user's
    clone = ["git", "clone", "--quiet", "--no-hardlinks", str(ROOT), str(source)]
    subprocess.run(clone, check=True, env=os.environ | GIT_ALONE | {"GIT_CONFIG_GLOBAL": str(settings)})
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", str(wheels), str(source)]
    subprocess.run(build, check=True, cwd=tmp_path)
    (wheel,) = wheels.glob("saesync-*.whl")
    with zipfile.ZipFile(wheel) as packed:
        names = {name for name in packed.namelist() if ".dist-info/" not in name}
    assert names == {str(path.relative_to(source)) for path in (source / "saesync").rglob("*") if path.is_file()}
    subprocess.run([*pip, "install", "--no-deps", "--target", str(site), str(wheel)], check=True, cwd=tmp_path)
    env = {**os.environ, "PYTHONPATH": str(site), "SAESYNC_CACHE": str(tmp_path / "cache")}

    def run(*words: str) -> str:
        done = subprocess.run([sys.executable, *words], env=env, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert str(site) in run("-c", "import saesync; print(saesync.__file__)")
    said = run("-m", "saesync", "--version")
    assert "saesync" in said
    assert run(str(site / "bin" / "saesync"), "--version") == said, "by its installed name"
    assert "goodfire" in run("-m", "saesync", "formats")
    assert run("-m", "saesync", "schema") == (ROOT / "saesync/schema/manifest.json").read_text(encoding="utf-8")
    assert "published" in run("-m", "saesync", "apply", "-y", "--format", "json", str(own_tiny_world.good)), "with its workers"
    assert (own_tiny_world.published / "layer_0" / "topk" / "cfg.json").is_file()

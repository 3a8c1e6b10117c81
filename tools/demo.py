"""The newcomer's walk, as `make demo` runs it: build a small real world, plan it, apply it, load what was published.

Every command is printed as a user would type it. Exit codes are part of what is shown: 0 from the manifest that passes, exactly 1
from the one whose gate fails.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def saesync(*words: str, expect: int = 0) -> None:
    """Run one saesync command in front of the user.

    Raises:
        SystemExit: it did not end with the expected exit code.
    """
    print(f"\n$ saesync {' '.join(words)}", flush=True)
    code = subprocess.run([sys.executable, "-m", "saesync", *words], check=False).returncode
    if code != expect:
        raise SystemExit(f"expected exit code {expect}, got {code}")
    if code:
        print(f"(exit code {code}, as it should be)")


def load_one(published: Path) -> None:
    """Load one published SAE with stock sae_lens and say what it is.

    Raises:
        subprocess.CalledProcessError: sae_lens could not.
    """
    folder = sorted(path.parent for path in published.rglob("sae_weights.safetensors"))[0]
    shown = "cfg.architecture(), cfg.d_in, cfg.d_sae, cfg.metadata.hook_name"
    code = f'from sae_lens import SAE; cfg = SAE.load_from_disk("{folder}").cfg; print({shown})'
    print(f"\n$ python -c '{code}'", flush=True)
    subprocess.run([sys.executable, "-c", code], check=True)


def main(folder: str) -> None:
    """The whole walk."""
    world = Path(folder)
    good, failing = str(world / "manifests" / "good.yaml"), str(world / "manifests" / "failing.yaml")
    saesync("demo", folder)
    saesync("plan", str(world / "manifests"))
    saesync("apply", "-y", good)
    saesync("apply", "-y", failing, expect=1)
    saesync("plan", "--check", str(world / "manifests"), expect=1)  # 1: an SAE is failing; 3 would be: something is to be done
    load_one(world / "published")
    print(
        f"\nManifests {world}/manifests, published SAEs {world}/published, its card {world}/published/README.md."
        f"\nChange a bound in {good} and run `saesync plan {good}` again (.venv/bin/saesync)."
    )


if __name__ == "__main__":
    main(sys.argv[1])

"""Planning at the size of SAELens's real registry, and starting up, against a loopback Hub."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path

from benchmarks import registry_world
from benchmarks.table import Row, best_of, run

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from servers.loopback import running_hub

TITLE = "Plan of 14,000 SAEs in 170 releases and 90 repositories (loopback Hub, nothing pending)"


def rows() -> list[Row]:
    """Cold and warm plans, their requests and memory."""
    with tempfile.TemporaryDirectory() as name, running_hub(Path(name) / "hub") as server:
        folder = Path(name)
        # Importing the Hub client reads the endpoint, so the environment comes first.
        os.environ |= server.environment()
        import huggingface_hub.constants as constants

        constants.ENDPOINT = server.base
        manifests = registry_world.build(server, folder)
        env = {**os.environ, "SAESYNC_CACHE": str(folder / "cache"), "HF_HOME": str(folder / "home")}
        words = [sys.executable, "-m", "saesync", "plan", "--check", str(manifests)]
        server.restart_counters()
        cold = run(words, env)
        assert cold.code == 0, cold.output[-2000:]
        cold_requests = {route: entry["requests"] for route, entry in server.stats()["routes"].items()}
        server.restart_counters()
        warm = best_of(3, words, env)
        assert warm.code == 0, warm.output[-2000:]
        warm_requests = server.count() / 3
        shutil.rmtree(folder / "cache")
    told = ", ".join(f"{route} {count}" for route, count in sorted(cold_requests.items()))
    # Of each repository the head (with its tags) and the page of its tree; of each source the page of its tree; the records.
    once_each = 3 * registry_world.REPOS + registry_world.RELEASES
    return [
        Row("cold", cold.wall, "s", "", "<= 15"),
        Row("cold: requests", sum(cold_requests.values()), "", told, f"<= {once_each}"),
        Row("warm", warm.wall, "s", "", "<= 5"),
        Row("warm: requests", warm_requests, "", "90 repositories, 170 records: the head (with its tags) of each", "<= 260"),
        Row("peak resident memory", max(cold.peak, warm.peak) / 1e6, "MB", "", "<= 500"),
    ]

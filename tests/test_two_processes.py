"""Two processes that share one cache: nothing is spoiled, nothing is downloaded twice, and one that dies holds nobody up."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from servers.loopback import HubServer

from saesync.cache import Cache
from saesync.hub import Hub
from saesync.scratch import try_lock

REPO = "alice/source"
WEIGHTS = hashlib.shake_256(b"weights").digest(3_000_000)

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="file locks as Linux has them"),
    pytest.mark.parametrize("hub_process", ["lfs"], indirect=True),
]

PROGRAM = """
    import sys
    from pathlib import Path
    from saesync.cache import Cache
    from saesync.executors.fetch import Parcel, bring
    from saesync.hub import Hub
    from saesync.resolve import SourceFile
    cache = Cache(Path(sys.argv[1]))
    hub = Hub(cache)
    digest = hub.tree({repo!r}, {sha!r})["ae.pt"]
    seen = []
    def progress(done, total):
        if not seen and done > 500_000:
            seen.append(done)
            print("half", flush=True)
    folder = bring(Parcel({repo!r}, {sha!r}, "model", {{"ae.pt": SourceFile("ae.pt", digest)}}), hub, cache, progress)
    print((folder / "ae.pt").stat().st_size, flush=True)
"""


@pytest.fixture
def sha(hub_server: HubServer) -> str:
    hub_server.create_repo(REPO)
    return hub_server.push(REPO, {"ae.pt": WEIGHTS}, lfs=("ae.pt",))


def start(sha: str, cache: Path) -> subprocess.Popen[str]:
    program = textwrap.dedent(PROGRAM.format(repo=REPO, sha=sha))
    return subprocess.Popen(
        [sys.executable, "-c", program, str(cache)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def said(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    return out.split()[-1]


def broken_off(server: HubServer, times: int) -> None:
    """Transfers end early again and again, a second apart, so that both processes are at it at the same time."""
    server.fault(
        route="lfs.get", action="truncate", when="after", after_bytes=700_000, times=times, fin=True, delay=0.5, headers={}
    )


def whole(cache: Path) -> None:
    blobs = [path for path in (cache / "blob").rglob("*") if path.is_file()]
    assert [path.read_bytes() == WEIGHTS for path in blobs] == [True], [path.name for path in blobs]


def test_both_get_it_and_it_is_sent_once(hub_server: HubServer, sha: str, tmp_path: Path) -> None:
    broken_off(hub_server, 4)
    hub_server.restart_counters()
    processes = [start(sha, tmp_path) for _ in range(2)]
    assert [said(process) for process in processes] == [str(len(WEIGHTS))] * 2
    whole(tmp_path)
    assert hub_server.bytes_sent("lfs.get") < 1.2 * len(WEIGHTS)


def test_one_that_is_killed_lets_the_other_go_on(hub_server: HubServer, sha: str, tmp_path: Path) -> None:
    broken_off(hub_server, 3)
    first = start(sha, tmp_path)
    assert first.stdout is not None
    assert first.stdout.readline() == "half\n"
    second = start(sha, tmp_path)
    time.sleep(0.3)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    assert said(second) == str(len(WEIGHTS))
    whole(tmp_path)


def test_a_lock_ends_with_its_process(hub_server: HubServer, sha: str, tmp_path: Path) -> None:
    """What a stopped process holds is waited for; what a dead one held is free."""
    digest = Hub(Cache(tmp_path)).tree(REPO, sha)["ae.pt"]
    blob = Cache(tmp_path).path("blob", str(digest.sha256))
    blob.parent.mkdir(parents=True)
    part = blob.with_name(blob.name + ".part")
    part.write_bytes(WEIGHTS[:1_000_000])
    program = f"""
        import fcntl, time
        part = open({str(part)!r}, "a+b")
        fcntl.flock(part, fcntl.LOCK_EX)
        print("mine", flush=True)
        time.sleep(60)
    """
    holder = subprocess.Popen([sys.executable, "-c", textwrap.dedent(program)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "mine\n"
    hub_server.restart_counters()
    other = start(sha, tmp_path)
    assert other.stdout is not None
    assert other.stdout.readline() == "half\n", "what the other one has is shown while it is waited for"
    time.sleep(0.5)
    assert other.poll() is None
    assert hub_server.bytes_sent("lfs.get") == 0
    holder.kill()
    holder.communicate()
    assert said(other) == str(len(WEIGHTS))
    assert hub_server.bytes_sent("lfs.get") <= len(WEIGHTS) - 1_000_000, "and then continued"


def test_a_folder_that_somebody_fills_is_not_swept(hub_server: HubServer, tmp_path: Path) -> None:
    """Its owner may have a number that is nobody's here: in a container of its own."""
    place = tmp_path / "tmp" / "4194399-other"
    place.mkdir(parents=True)
    handle = os.open(place, os.O_RDONLY)
    assert try_lock(handle)
    Cache(tmp_path).sweep()
    assert place.exists()
    os.close(handle)
    Cache(tmp_path).sweep()
    assert not place.exists()
    with Cache(tmp_path).scratch() as mine:
        again = os.open(mine, os.O_RDONLY)
        assert not try_lock(again), "what is being filled is locked"
        os.close(again)

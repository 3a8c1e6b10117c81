"""Worker processes: no secrets, no network, no orphan, and every end of them becomes a clear diagnostic."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from unprivileged import no_privilege

from saesync.apply.crew import shares
from saesync.errors import Interrupted, Missing, Origin, Refused, SaesyncError
from saesync.isolation import REFUSED
from saesync.jobs import MeasureJob, MeasureSae
from saesync.nothing import nothing
from saesync.worker_main import JOBS, encode
from saesync.workers import Worker, WorkerLost, scrubbed, spawn

CANARY = "hf_canary_5f1d"
probe = partial(spawn, module="worker_probe")


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Worker]:
    found = Worker(tmp_path / "home", probe)
    yield found
    found.kill()
    found.close()


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


def test_no_secret_reaches_a_worker(worker: Worker, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("HF_TOKEN", "GITHUB_TOKEN", "NEURONPEDIA_DSN", "AWS_SECRET_ACCESS_KEY", "CUDA_TOKEN", "SOMETHING"):
        monkeypatch.setenv(name, CANARY)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "real"))
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "token").write_text(CANARY)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    told: list[tuple[int, int]] = []
    found = worker.run("look", {"x": [1, None]}, lambda done, total: told.append((done, total)))
    environment = found["environment"]
    assert CANARY not in str(found)
    assert found["given"] == {"x": [1, None]}
    assert found["tokens"] == []
    assert environment["OMP_NUM_THREADS"] == "1"
    assert environment["HF_HUB_OFFLINE"] == environment["TRANSFORMERS_OFFLINE"] == "1"
    assert (home := Path(environment["HOME"])) == Path(found["cwd"]) == Path(environment["TMPDIR"]).parent
    assert home.parent == tmp_path / "home"
    assert told[-1] == (2, 2)


def test_the_allow_list_is_an_allow_list(tmp_path: Path) -> None:
    environment = scrubbed({"PATH": "/bin", "LC_ALL": "C", "LC_SECRET": "s", "PGPASSWORD": "p", "OMP_NUM_THREADS": "2"}, tmp_path)
    assert (environment["PATH"], environment["LC_ALL"], environment["OMP_NUM_THREADS"]) == ("/bin", "C", "2")
    assert not {"LC_SECRET", "PGPASSWORD"} & set(environment)
    drivers = {"HSA_OVERRIDE_GFX_VERSION": "10.3.0", "CUBLAS_WORKSPACE_CONFIG": ":4096:8", "CUDA_VISIBLE_DEVICES": "1"}
    assert drivers.items() <= scrubbed(drivers, tmp_path).items(), "without these some GPUs cannot be used"
    assert environment["OMP_WAIT_POLICY"] == "passive"


def test_the_network_is_refused_by_name(worker: Worker, listener: socket.socket) -> None:
    with pytest.raises(SaesyncError) as caught:
        worker.run("dial", {"port": listener.getsockname()[1]})
    assert caught.value.diagnostics[0].summary == "Worker reached for the network"
    listener.settimeout(0.1)
    with pytest.raises(TimeoutError):
        listener.accept()


def test_a_hidden_refusal_is_still_a_refusal(worker: Worker, listener: socket.socket) -> None:
    assert worker.run("swallow", {"port": listener.getsockname()[1]}) != "connected"


@pytest.mark.skipif(sys.platform != "linux" or os.getuid() != 0, reason="needs the right to make a network namespace")
def test_the_kernel_takes_the_network_away(worker: Worker) -> None:
    assert worker.run("interfaces", {}) in ([], ["lo"])


@pytest.mark.skipif(sys.platform != "linux", reason="what the kernel of Linux offers")
def test_native_code_has_no_network_either(worker: Worker) -> None:
    refused = worker.run("native", {"families": [socket.AF_INET, socket.AF_INET6]})
    assert refused == [REFUSED, REFUSED]
    assert worker.run("native", {"families": [socket.AF_UNIX]}) == [0], "drivers talk to their daemons"


def test_where_the_kernel_takes_nothing_away_pythons_own_sockets_are_refused(listener: socket.socket) -> None:
    """As on macOS, in a process of its own: the hook is all there is."""
    program = f"""
        import os, socket, sys
        from saesync.isolation import isolate
        sys.platform = "darwin"
        isolate(os.getppid())
        try:
            socket.create_connection(("127.0.0.1", {listener.getsockname()[1]}), timeout=5)
        except PermissionError as error:
            print(error)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=60, check=False
    )  # fmt: skip
    assert "worker processes have no network" in done.stdout, done.stderr
    listener.settimeout(0.1)
    with pytest.raises(TimeoutError):
        listener.accept()


@pytest.mark.skipif(sys.platform != "linux", reason="what the kernel of Linux offers")
@pytest.mark.parametrize(
    ("module", "user"), [("worker_probe", None), ("bare_probe", no_privilege)], ids=["by-the-worker", "by-the-parent"]
)
def test_the_environment_of_the_parent_is_hidden(module: str, user: Callable[[], None] | None, tmp_path: Path) -> None:
    """In a process of its own: the environment a process was started with is what the kernel shows. A worker gives up root's
    right to see it; of an ordinary user, and where no namespaces are allowed, only the parent can hide it."""
    program = f"""
        from functools import partial
        from pathlib import Path
        from saesync.workers import Worker, spawn
        worker = Worker(Path({str(tmp_path)!r}), partial(spawn, module={module!r}))
        print(worker.run("peek", {{}}))
        worker.close()
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], env={**os.environ, "HF_TOKEN": CANARY},
        cwd=Path(__file__).parent, capture_output=True, text=True, timeout=60, check=False, preexec_fn=user,
    )  # fmt: skip
    assert done.stdout == "PermissionError\n", done.stderr


def test_threads_are_shared_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS")
    worker = Worker(tmp_path / "home", probe, preload=("torch",))
    worker.share(3)
    assert worker.run("threads", {}) == 3
    worker.share(2)
    assert worker.run("threads", {}) == 2
    worker.close()
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    worker = Worker(tmp_path / "home", probe, preload=("torch",))
    worker.share(3)
    assert worker.run("threads", {}) == 1, "what the user says counts"
    worker.close()


@pytest.mark.parametrize(
    ("cores", "gpus", "converters", "expected"),
    [(1, 0, 1, (1, 1)), (2, 0, 1, (1, 2)), (4, 0, 1, (1, 3)), (16, 0, 1, (4, 12)), (16, 0, 4, (1, 12)), (64, 8, 4, (12, 2))],
)
def test_shares(cores: int, gpus: int, converters: int, expected: tuple[int, int]) -> None:
    devices = tuple(f"cuda:{index}" for index in range(gpus)) or ("cpu",)
    convert, measure = shares(cores, converters, devices)
    assert (convert, measure) == expected
    assert convert * converters + measure * len(devices) <= max(cores, 3)


def test_errors_come_back_as_they_were_and_the_process_goes_on(worker: Worker) -> None:
    with pytest.raises(Refused) as caught:
        worker.run("refuse", {})
    assert [d.summary for d in caught.value.diagnostics] == ["One", "Two"]
    assert caught.value.diagnostics[0].origin == Origin("m.yaml", 3, 4)
    first = worker.run("look", {})["environment"]["SAESYNC_PARENT"]
    assert first == str(os.getpid())


def test_a_package_that_is_not_installed_is_named_and_ours_is_a_bug(worker: Worker) -> None:
    with pytest.raises(Missing) as caught:
        worker.run("lack", {"module": "nowhere_at_all.inside"})
    assert "the Python module nowhere_at_all, which is not installed" in caught.value.diagnostics[0].detail
    with pytest.raises(SaesyncError) as ours:
        worker.run("lack", {"module": "saesync.nowhere"})
    assert ours.value.diagnostics[0].summary == "Worker failed unexpectedly"


@pytest.mark.parametrize(
    ("job", "summary", "words"),
    [
        ("fail", "Worker failed unexpectedly", "ValueError: third-party trouble"),
        ("exhaust", "Worker failed unexpectedly", "MemoryError: memory ran out."),
        ("die", "Worker process died", "about to run out of memory"),
        ("segfault", "Worker process died", "SIGSEGV"),
    ],
)
def test_every_end_is_a_diagnostic_and_the_next_job_gets_a_new_process(
    worker: Worker, job: str, summary: str, words: str
) -> None:
    with pytest.raises(SaesyncError) as caught:
        worker.run(job, {})
    assert caught.value.diagnostics[0].summary == summary
    assert words in caught.value.diagnostics[0].detail
    said = "\n".join(traceback.format_exception(caught.value))  # what --debug shows
    assert {"fail": ", in fail\n", "exhaust": ", in exhaust\n", "die": "\nabout to run out of memory", "segfault": "SIGSEGV"}[
        job
    ] in said
    assert worker.run("look", {"again": 1})["given"] == {"again": 1}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a disk that is always full")
@pytest.mark.parametrize("how", ["write", "numpy", "safetensors"])
def test_a_full_disk_is_called_by_its_name(worker: Worker, how: str) -> None:
    first = worker.run("look", {})["pid"]
    with pytest.raises(SaesyncError) as caught:
        worker.run("fill", {"how": how})
    assert caught.value.diagnostics[0].summary == "Disk is full"
    with pytest.raises(SaesyncError, match="File trouble: No such file or directory"):
        worker.run("unreadable", {"path": "/nowhere/at/all"})
    assert worker.run("look", {})["pid"] == first, "the process goes on"


def test_killed_on_request(worker: Worker) -> None:
    timer = threading.Timer(0.2, worker.kill)
    with pytest.raises(Interrupted):
        worker.run("wait", {}, lambda _done, _total: timer.start())


@pytest.mark.parametrize("job", ["wait", pytest.param("hold", marks=pytest.mark.skipif(sys.platform != "linux", reason="Linux"))])
def test_a_worker_dies_with_its_parent(job: str, tmp_path: Path) -> None:
    program = f"""
        import sys
        from functools import partial
        from pathlib import Path
        from saesync.workers import Worker, spawn
        worker = Worker(Path({str(tmp_path)!r}), partial(spawn, module="worker_probe"))
        worker.run({job!r}, {{}}, lambda pid, _: print(pid, flush=True))
    """
    parent = subprocess.Popen([sys.executable, "-c", textwrap.dedent(program)], stdout=subprocess.PIPE, cwd=Path(__file__).parent)
    assert parent.stdout is not None
    with parent.stdout:
        pid = int(parent.stdout.readline())
        time.sleep(0.5)  # until it is deep in what it does
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    assert gone(pid), "the worker outlived its parent"


def gone(pid: int) -> bool:
    """Whether a process ends within five seconds; a zombie waiting for init counts."""
    for _ in range(100):
        stat = Path(f"/proc/{pid}/stat")
        if not stat.exists() or stat.read_text().rsplit(")", 1)[1].split()[0] == "Z":
            return True
        time.sleep(0.05)
    return False


def test_a_forked_worker_is_cut_off_in_the_same_way(tmp_path: Path) -> None:
    """In a process of its own: pytest's has threads and captured files."""
    program = f"""
        import os, sys
        os.environ["HF_TOKEN"] = {CANARY!r}
        import worker_probe as probe
        from saesync import worker_main, workers
        from pathlib import Path
        jobs = {{f.__name__: worker_main.Job("worker_probe", f.__name__, dict) for f in probe.FUNCTIONS}}
        worker = workers.Worker(Path({str(tmp_path)!r}), lambda home: workers.fork(home, jobs))
        found = worker.run("look", {{"x": 1}})
        assert "HF_TOKEN" not in found["environment"], found
        assert found["given"] == {{"x": 1}}
        try:
            worker.run("dial", {{"port": 9}})
        except workers.SaesyncError as error:
            assert error.diagnostics[0].summary == "Worker reached for the network", error
        else:
            raise AssertionError("connected")
        try:
            worker.run("die", {{}})
        except workers.SaesyncError as error:
            assert "SIGKILL" in str(error) and "about to run out" in str(error), error
        worker.close()
        print("ok")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        cwd=Path(__file__).parent, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.stdout == "ok\n", done.stderr


def test_modules_are_imported_before_anybody_asks(tmp_path: Path) -> None:
    worker = Worker(tmp_path / "home", probe, preload=("colorsys", "there_is_no_such_module"))
    worker.warm()
    assert worker.run("loaded", {"module": "colorsys"}) is True
    assert worker.run("loaded", {"module": "chunk_of_nothing"}) is False
    worker.close()


def test_jobs_survive_the_wire() -> None:
    sae = MeasureSae("r/a", "k", "/f", "blocks.0.hook_resid_post")
    job = MeasureJob(
        model="/m", loader="TransformerBridge", dtype="float32", kwargs=nothing(), dataset="/d", dataset_files=("a", "b"),
        column="text", split="train", tokens=10, context=5, prepend_bos=True, device="cpu", saes=(sae,), cache="/c",
    )  # fmt: skip
    assert JOBS["measure"].decode(encode(job)) == job


def litter(homes: Path) -> list[str]:
    return sorted(str(path.relative_to(homes)) for path in homes.rglob("*"))


@pytest.mark.parametrize("end", ["close", "die", "kill"])
def test_what_libraries_leave_goes_with_the_process(worker: Worker, tmp_path: Path, end: str) -> None:
    """They make temporary files that only an interpreter's orderly end removes, which a worker does not have."""
    place = Path(worker.run("drop", {}))
    assert place.read_text() == "left"
    assert place.is_relative_to(tmp_path / "home")
    match end:
        case "close":
            worker.close()
        case "die":
            with pytest.raises(WorkerLost):
                worker.run("die", {})
        case "kill":
            worker.kill()
            worker.bury()
    assert litter(tmp_path / "home") == []


def test_what_a_killed_parent_leaves_goes_with_the_next_process(worker: Worker, tmp_path: Path) -> None:
    program = """
        import os, signal, sys
        from functools import partial
        from pathlib import Path
        from saesync.workers import Worker, spawn
        print(Worker(Path(sys.argv[1]), partial(spawn, module="worker_probe")).run("drop", {}), flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    command = [sys.executable, "-c", textwrap.dedent(program), str(tmp_path / "home")]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert Path(done.stdout.strip()).exists()
    worker.run("look", {})
    assert not Path(done.stdout.strip()).exists()

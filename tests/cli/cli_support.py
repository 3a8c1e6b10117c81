"""The `saesync` program as its users have it: in a process of its own, by its installed name."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import re
import shutil
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tiny import TinyWorld

PROGRAM = str(Path(sys.executable).with_name("saesync"))
SGR = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@dataclass(frozen=True)
class Done:
    """How one command ended."""

    code: int
    out: str
    err: str

    @property
    def said(self) -> str:
        """Both streams, for messages of failing tests and for what may stand in either."""
        return self.out + self.err

    def events(self) -> list[dict[str, Any]]:
        """stdout as JSON lines."""
        return [json.loads(line) for line in self.out.splitlines()]


@dataclass(frozen=True)
class Place:
    """A tiny world to run commands in, with an environment of its own."""

    world: TinyWorld
    environment: Mapping[str, str]

    @property
    def folder(self) -> Path:
        return self.world.folder

    @property
    def cache(self) -> Path:
        return Path(self.environment["SAESYNC_CACHE"])

    def run(self, *words: str, timeout: float = 120, **variables: str) -> Done:
        """Run `saesync WORDS` in the world's folder; nobody is at a terminal."""
        done = subprocess.run(
            [PROGRAM, *words],
            cwd=self.folder,
            env={**self.environment, **variables},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert "Traceback" not in done.stderr or "--debug" in words, done.stderr
        return Done(done.returncode, done.stdout, done.stderr)

    def run_without_torch(self, *words: str) -> Done:
        """The same where nothing heavy can be imported: no worker can do anything, and no model is loaded."""
        trap = self.folder.parent / "no-torch"
        for name in ("torch", "sae_lens", "transformers"):
            (trap / name).mkdir(parents=True, exist_ok=True)
            (trap / name / "__init__.py").write_text(f"raise RuntimeError('{name} was imported')")
        return self.run(*words, PYTHONPATH=str(trap))

    def start(self, *words: str) -> subprocess.Popen[str]:
        """Start `saesync WORDS` in a process group of its own, as a shell does: Ctrl-C reaches its workers too."""
        return subprocess.Popen(
            [PROGRAM, *words],
            cwd=self.folder,
            env=dict(self.environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def published(self) -> set[str]:
        """Folders of SAEs in the local target, each of which must be whole and nothing left half-made beside them."""
        root = self.world.published
        configs = {path.parent for path in root.rglob("cfg.json")}
        weights = {path.parent for path in root.rglob("sae_weights.safetensors")}
        assert configs == weights
        return {str(path.relative_to(root)) for path in configs}


def shown_on_terminal(place: Place, *words: str, answer: str | None = None, **variables: str) -> tuple[int, str]:
    """Run a command on a terminal of 110 columns and answer its question. Returns the exit code and everything shown."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 110, 0, 0))
    environment = {name: value for name, value in place.environment.items() if name != "NO_COLOR"}
    environment |= {"TERM": "xterm-256color", **variables}
    with subprocess.Popen(
        [PROGRAM, *words], cwd=place.folder, env=environment, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
    ) as process:
        os.close(theirs)
        shown = b""
        with contextlib.suppress(OSError):  # EIO: the other end is closed
            while part := os.read(ours, 65536):
                shown += part
                if answer is not None and b"[y/N]" in shown:
                    os.write(ours, f"{answer}\n".encode())
                    answer = None
        os.close(ours)
        code = process.wait(60)
    return code, shown.decode().replace("\r\n", "\n")


def interrupted(process: subprocess.Popen[str], when: Callable[[str], bool], times: int) -> Done:
    """Let an apply run until it prints a line that fits (on either stream), then press Ctrl-C so many times."""
    assert process.stdout is not None
    assert process.stderr is not None
    watchdog = threading.Timer(120, process.kill)
    watchdog.start()
    found: dict[Any, list[str]] = {process.stdout: [], process.stderr: []}
    pressing = threading.Lock()
    pressed = False

    def read(stream: Any) -> None:
        nonlocal pressed
        for line in stream:
            found[stream].append(line)
            with pressing:
                now, pressed = not pressed and when(line), pressed or when(line)
                for _ in range(times if now else 0):
                    with contextlib.suppress(ProcessLookupError):  # one press was enough: nothing was running any more
                        os.killpg(process.pid, signal.SIGINT)
                    time.sleep(0.15)  # a terminal does not merge two key presses, a kernel merges signals

    readers = [threading.Thread(target=read, args=[stream]) for stream in found]
    for reader in readers:
        reader.start()
    code = process.wait()
    for reader in readers:
        reader.join()
    watchdog.cancel()
    done = Done(code, "".join(found[process.stdout]), "".join(found[process.stderr]))
    process.stdout.close()
    process.stderr.close()
    assert pressed, done.said
    return done


def files_below(*folders: Path) -> Iterator[tuple[Path, bytes]]:
    """Every file and its bytes."""
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                yield path, path.read_bytes()


def copy_of(place: Place, folder: Path, cache: Path | None = None, published: bool = True) -> Place:
    """The same world in another folder, with the same cache or a copy of it."""
    world = place.world.copy(folder)
    if not published:
        shutil.rmtree(world.published, ignore_errors=True)
    if cache is None:
        return Place(world, place.environment)
    shutil.copytree(place.cache, cache)
    return Place(world, {**place.environment, "SAESYNC_CACHE": str(cache)})


def masked(text: str, place: Place) -> str:
    """``text`` without what differs from run to run: folders, digests, sizes, measured numbers, versions, devices,
    times."""
    text = text.replace(str(place.folder), "WORLD")
    text = re.sub(r"\b[0-9a-f]{64}\b", "<sha256>", text)
    text = re.sub(r"\b[0-9a-f]{8}\b", "<digest>", text)
    text = re.sub(r"\d{4}-\d\d-\d\dT[\d:]+Z", "<time>", text)
    text = re.sub(r"\b\d+\.\d+\.\d+(\+\w+)?\b", "<version>", text)
    text = re.sub(r"-?\b\d[\d,]*(\.\d+)?(e-?\d+)?s\b", "<seconds>", text)
    text = re.sub(r"(max\|Δ\|) +\S+", r"\1 <n>", text)
    text = re.sub(r"\b(EV|CE|L0) +-?\d\S*", r"\1 <n>", text)
    text = re.sub(r"(?m)^(  device +)\S.*$", r"\1<device>", text)
    text = re.sub(r"-?\d\S* ± \d\S*", "<n> ± <n>", text)
    text = re.sub(r"(?m)^(  \w+ +)-?[\d.,]+(e-?\d+)?( bytes)?$", r"\1<n>", text)
    text = re.sub(r"\b[\d,]+ bytes", "<n> bytes", text)
    return re.sub(r"(explained_variance) -?0\.\d+", r"\1 <n>", text)

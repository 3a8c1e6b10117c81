"""The worker processes of one apply: some that convert, one per device that measures."""

from __future__ import annotations

import sys
from pathlib import Path

from saesync.cache import Cache
from saesync.errors import Missing
from saesync.workers import Launcher, Worker

_CONVERT_NEEDS = ("torch", "sae_lens", "saesync.executors.convert")
_MEASURE_NEEDS = ("torch", "sae_lens", "transformers", "transformer_lens", "saesync.executors.validate")
_GPU_NODES = ("nvidia[0-9]*", "kfd", "dxg")  # Linux device files without which there is no GPU to ask torch for


class Crew:
    """Workers by lane. They start when first used and end with ``close``, or at once with ``kill``."""

    def __init__(self, cache: Cache, start: Launcher, converters: int, devices: tuple[str, ...]) -> None:
        self._home = cache.root / "worker-home"
        self._probe = Worker(self._home, start, _MEASURE_NEEDS)
        self.converters = [Worker(self._home, start, _CONVERT_NEEDS) for _ in range(converters)]
        self.devices = devices
        self.measurers: list[Worker] = []
        self._start = start

    def find_devices(self) -> None:
        """Decide which devices to measure on, if nobody said: all GPUs, else the CPU. May start a worker to ask torch.

        Raises:
            SaesyncError: the worker could not say.
        """
        if not self.devices or self.devices == ("auto",):
            self.devices = devices_here(self._probe)
        rest = len(self.devices) - 1
        self.measurers = [self._probe, *(Worker(self._home, self._start, _MEASURE_NEEDS) for _ in range(rest))]

    def check_devices(self) -> None:
        """Ask torch for the devices that were named.

        Raises:
            Missing: one of them is not on this machine.
        """
        if self.devices == ("auto",):
            return
        here = tuple(self._probe.run("devices", {})["devices"])
        absent = [name for name in self.devices if name not in here]
        if absent:
            detail = f"There is no {', '.join(absent)}. This machine has {', '.join(here)}; name one of them with --device."
            raise Missing("Device is not here", detail)

    def warm(self, convert: bool, measure: bool) -> None:
        """Start the processes that will be needed, from this thread: they import what they need meanwhile.

        Raises:
            OSError: a process cannot be started.
        """
        for worker in (*(self.converters if convert else ()), *(self.measurers if measure else ())):
            worker.warm()

    def close(self) -> None:
        """Let all processes end."""
        for worker in {id(w): w for w in (*self.converters, self._probe, *self.measurers)}.values():
            worker.close()

    def kill(self) -> None:
        """End all processes now."""
        for worker in (*self.converters, self._probe, *self.measurers):
            worker.kill()


def devices_here(worker: Worker) -> tuple[str, ...]:
    """The devices to measure on when nobody named any: every GPU, else the CPU.

    Raises:
        SaesyncError: the worker could not say.
    """
    if sys.platform == "linux" and not any(found for pattern in _GPU_NODES for found in Path("/dev").glob(pattern)):
        return ("cpu",)
    return best(tuple(worker.run("devices", {})["devices"]))


def best(found: tuple[str, ...]) -> tuple[str, ...]:
    """Of all devices, those worth using together."""
    gpus = tuple(name for name in found if name.startswith("cuda"))
    return gpus or found[:1]

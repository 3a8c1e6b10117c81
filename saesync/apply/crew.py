"""The worker processes of one apply: some that convert, one per device that measures."""

from __future__ import annotations

import os
from collections.abc import Callable

from saesync.apply import gpus
from saesync.cache import Cache
from saesync.errors import Missing
from saesync.workers import Launcher, Worker

_CONVERT_NEEDS = ("torch", "sae_lens", "saesync.executors.convert")
_MEASURE_NEEDS = ("torch", "sae_lens", "transformers", "transformer_lens", "saesync.executors.validate")


class Crew:
    """Workers by lane. They start when first used and end with ``close``, or at once with ``kill``."""

    def __init__(self, cache: Cache, start: Launcher, converters: int, devices: tuple[str, ...]) -> None:
        self._homes = cache.root / "worker-home"
        self.devices = named(devices)
        self.measurers: list[Worker] = []
        self._start = start
        self._probe = self._measurer()
        self.converters = [Worker(self._homes, start, _CONVERT_NEEDS) for _ in range(converters)]

    def find_devices(self, tell: Callable[[str], None]) -> None:
        """Decide which devices to measure on, if nobody said: all GPUs, else the CPU. May start a worker to ask torch. ``tell``
        is told of a GPU that torch cannot use.

        Raises:
            SaesyncError: the worker could not say.
        """
        if self.devices != ("cpu",):
            gpus.wake()
        if not self.devices or "auto" in self.devices:
            self.devices = devices_here(self._probe, tell)
        rest = len(self.devices) - 1
        self.measurers = [self._probe, *(self._measurer() for _ in range(rest))]

    def _measurer(self) -> Worker:
        return Worker(self._homes, self._start, _MEASURE_NEEDS)

    def check_devices(self) -> None:
        """Ask torch for the devices that were named.

        Raises:
            Missing: one of them is not on this machine.
        """
        if "auto" in self.devices:
            return
        gpus.wake()
        said = self._probe.run("devices", {})
        here = tuple(said["devices"])
        absent = [name for name in self.devices if name not in here]
        if absent:
            why = f" ({said['why_not_mps']})" if "mps" in absent and said["why_not_mps"] else ""
            detail = f"There is no {', '.join(absent)}{why}. This machine has {', '.join(here)}; name one of them with --device."
            raise Missing("Device is not here", detail)

    def warm(self, convert: bool, measure: bool) -> None:
        """Start the processes that will be needed, from this thread, with their share of the cores: they import what they need
        meanwhile.

        Raises:
            OSError: a process cannot be started.
        """
        converting, measuring = shares(cores(), len(self.converters), self.devices or ("cpu",))
        for worker in self.converters:
            worker.share(converting)
        for worker in self.measurers:
            worker.share(measuring)
        for worker in (*(self.converters if convert else ()), *(self.measurers if measure else ())):
            worker.warm()

    def close(self) -> None:
        """Let all processes end."""
        for worker in self._all:
            worker.close()

    def kill(self) -> None:
        """End all processes now. May be called from a signal handler."""
        for worker in self._all:
            worker.kill()

    def bury(self) -> None:
        """Clear away what was killed."""
        for worker in self._all:
            worker.bury()

    @property
    def _all(self) -> tuple[Worker, ...]:
        return tuple({id(worker): worker for worker in (*self.converters, self._probe, *self.measurers)}.values())


def named(devices: tuple[str, ...]) -> tuple[str, ...]:
    """Each device once, by its full name: two workers on one GPU would take each other's memory."""
    return tuple(dict.fromkeys("cuda:0" if name == "cuda" else name for name in devices))


def devices_here(worker: Worker, tell: Callable[[str], None]) -> tuple[str, ...]:
    """The devices to measure on when nobody named any: every GPU, else the CPU.

    Raises:
        SaesyncError: the worker could not say.
    """
    if not gpus.may_be_here():
        return ("cpu",)
    said = worker.run("devices", {})
    chosen = best(tuple(said["devices"]))
    here = ("an NVIDIA", said["why"]) if gpus.nodes(gpus.NVIDIA) else ("an Apple", said["why_not_mps"])
    if chosen == ("cpu",) and here[1]:
        tell(f"Measuring on the CPU: this machine has {here[0]} GPU, but {here[1]}. With --device cpu this is not said.")
    return chosen


def cores() -> int:
    """The cores this process may use, which in a container can be fewer than the machine has."""
    affinity = getattr(os, "sched_getaffinity", None)  # Linux
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1


def shares(cores: int, converters: int, devices: tuple[str, ...]) -> tuple[int, int]:
    """Threads of each convert and of each measure worker, so that together they have about as many as there are cores.

    A function of the machine alone, never of the plan: the number of threads changes the last bits of sums, and a run that
    was stopped and resumed has to give the same numbers. Measuring on a CPU takes longest and gets three quarters, on two cores
    both of them, for converting is over first; a GPU needs two threads beside it.
    """
    if devices == ("cpu",):
        return max(1, cores // 4 // converters), max(1, cores - cores // 4)
    rest = cores - 2 * len(devices)
    return max(1, rest // converters), 2


def best(found: tuple[str, ...]) -> tuple[str, ...]:
    """Of all devices, those worth using together."""
    gpus = tuple(name for name in found if name.startswith("cuda"))
    return gpus or found[:1]

"""What all tests share: a clean environment, and loopback Hubs.

The Hub client reads HF_HOME, HF_ENDPOINT and others when it is first imported. They are set here, before anything imports it,
so that no test sees a developer's token, cache or endpoint.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import os
import re
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from saesync.scratch import scratch

sys.path.insert(0, str(Path(__file__).parent))

import surroundings

# Kept open until the end; what is left where that never comes, after a second Ctrl-C say, goes with the next run.
_UNTIL_THE_END = contextlib.ExitStack()
_HOME = _UNTIL_THE_END.enter_context(scratch(Path(tempfile.gettempdir(), f"saesync-tests-{os.getuid()}")))
atexit.register(_UNTIL_THE_END.close)


def _clean_environment() -> None:
    surroundings.forget()
    os.environ |= {
        "HF_HOME": str(_HOME / "huggingface"),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_ENDPOINT": "http://127.0.0.1:9",  # nothing listens there: a forgotten endpoint fails, it never leaves this machine
        "SAESYNC_CACHE": str(_HOME / "cache"),
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "NO_COLOR": "1",
    }


def pytest_configure(config: pytest.Config) -> None:
    # Torch, the registry and fixtures are millions of objects that stay: looking through them at every turn costs minutes.
    gc.set_threshold(100_000, 20, 100)
    # A shell starts what it runs in the background deaf to Ctrl-C, and deafness is inherited: programs under test have to hear.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    # huggingface_hub's plain LFS upload hands httpx2 a file in a way httpx2 deprecates.
    config.addinivalue_line("filterwarnings", "ignore:Use 'content=<...>' to upload raw bytes/text content:DeprecationWarning")


# Files that take longest come first, so that workers who run side by side end together.
_LONGEST = (
    "test_demo",
    "test_devices",
    "test_faults",
    "test_kill",
    "test_workflows_end_to_end",
    "test_importing",
    "test_doctor_sae",
    "test_apply",
    "test_usage",
    "test_convert_cli",
    "test_registry_overlay",
    "test_format_conformance",
    "test_fuzz_formats",
    "test_validate",
    "test_hub_cli",
    "test_hub_pull_request",
    "test_forge_faults",
    "test_apply_local",
    "test_evidence_only",
    "test_alone",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    ranks = {name: rank for rank, name in enumerate(_LONGEST)}
    items.sort(key=lambda item: ranks.get(item.path.stem, len(ranks)))


_clean_environment()

from servers.loopback import ALICE, HubServer, running_hub  # noqa: E402  (after the environment is clean)

pytest_plugins = ["tiny.plugin"]


@pytest.fixture
def clean_environ() -> dict[str, str]:
    """An environment for client processes without any Hub setting; add ``hub_server.environment(token)`` to it."""
    drop = ("HF_ENDPOINT", "HF_TOKEN", "HF_HUB_DISABLE_XET")
    return {name: value for name, value in os.environ.items() if name not in drop}


@pytest.fixture(scope="module", params=["lfs", "xet"])
def hub_process(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubServer]:
    """A loopback Hub for one test module, once per upload protocol. Its state stays from test to test.

    One protocol only: ``@pytest.mark.parametrize("hub_process", ["lfs"], indirect=True)``.
    """
    with running_hub(tmp_path_factory.mktemp("hub"), request.param) as server:
        yield server


@pytest.fixture
def hub_server(hub_process: HubServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    """A wiped loopback Hub; clients in this process and in its children talk to it as alice, who may write.

    Other users: ``monkeypatch.setenv("HF_TOKEN", BOB)``, or ``delenv`` for none.
    """
    import huggingface_hub.constants as constants

    hub_process.wipe()
    monkeypatch.setattr(constants, "ENDPOINT", hub_process.base)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", hub_process.mode == "lfs")
    monkeypatch.setenv("SAESYNC_CACHE", str(tmp_path / "saesync-cache"))
    for name, value in hub_process.environment(ALICE).items():
        monkeypatch.setenv(name, value)
    yield hub_process
    for thread in threading.enumerate():
        if re.fullmatch(r"(?!Thread).+-\d+", thread.name):  # a lane that nobody waits for: the program would end there
            thread.join(30)

"""Applies in this process. Workers are forked from it, so that the heavy imports are paid for once.

For conftest files: ``from apply_fixtures import *`` after this folder is on the path.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from apply_world import Run
from hub_world import HubWorld, put_on_hub
from servers.loopback import HubServer
from tiny import TinyWorld
from tiny.plugin import own_tiny_world, tiny_world

from saesync.cache import Cache
from saesync.workers import fork

__all__ = ["heavy_imports", "hub_world", "look", "own_tiny_world", "tiny_world", "world"]
Look = Callable[..., Run]


@pytest.fixture(scope="session")
def heavy_imports() -> None:
    """What workers need, here, before they are forked."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of third parties, about their own modules
        for name in ("sae_lens", "transformers", "transformer_lens", "saesync.executors.convert", "saesync.executors.validate"):
            importlib.import_module(name)


@pytest.fixture
def world(own_tiny_world: TinyWorld) -> TinyWorld:
    """A world of this test's own."""
    return own_tiny_world


@pytest.fixture
def look(world: TinyWorld, tmp_path: Path, heavy_imports: None) -> Look:
    """``look(world.good, ...)``: a fresh run over some manifests with this test's cache and forked workers."""

    def make(*manifests: Path, **more: Any) -> Run:
        return Run(manifests, Cache(tmp_path / "cache"), (world.folder,), start=fork, **more)

    return make


@pytest.fixture
def hub_world(hub_server: HubServer, world: TinyWorld) -> HubWorld:
    """The same on a loopback Hub, with the counters at zero."""
    found = put_on_hub(hub_server, world)
    hub_server.restart_counters()
    return found

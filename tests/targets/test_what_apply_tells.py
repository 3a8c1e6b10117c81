"""The end of an apply against a Hub: every sentence and every number of it is true."""

from __future__ import annotations

from pathlib import Path

import pytest
from release_world import REPO, Shop, asked
from servers.loopback import HubServer

from saesync.apply import Outcome

pytestmark = pytest.mark.parametrize("hub_process", ["lfs"], indirect=True)


@pytest.fixture
def shop(hub_server: HubServer, tmp_path: Path) -> Shop:
    return Shop(hub_server, tmp_path, [asked()])


def test_what_a_server_said_ends_as_a_sentence_does(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    shop.server.create_repo(REPO, private=True)
    monkeypatch.delenv("HF_TOKEN")
    result = shop.apply()
    assert set(result.outcomes.values()) == {Outcome.UNKNOWN}
    details = {found["detail"] for failure in shop.told("summary")[0]["failures"] for found in failure["diagnostics"]}
    assert details
    for detail in details:
        assert detail.startswith(f"cannot see {REPO}: ")
        assert detail.endswith("HF_TOKEN.")

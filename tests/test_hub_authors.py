"""Who wrote a record last: an account that a policy can trust, or nobody that it knows."""

from __future__ import annotations

from pathlib import Path

import pytest
from servers.loopback import ALICE, HubServer

from saesync.cache import Cache
from saesync.hub import Hub

REPO = "sae-org/saes"
RECORD = "saesync/res.json"
COLLEAGUE = "hf_dora_write"


@pytest.fixture
def hub(hub_server: HubServer, tmp_path: Path) -> Hub:
    return Hub(Cache(tmp_path / "cache"), patience=6)


def test_the_author_of_a_record_is_who_changed_it_last(hub: Hub, hub_server: HubServer):
    hub_server.admin("tokens", {COLLEAGUE: {"user": "dora", "role": "write", "orgs": {"sae-org": "write"}}})
    hub_server.create_repo(REPO)
    hub_server.push(REPO, {RECORD: b"{}"}, token=ALICE)
    beside = hub_server.push(REPO, {"README.md": b"hello"}, token=COLLEAGUE)
    assert hub.author(REPO, beside, RECORD) == "alice"
    changed = hub_server.push(REPO, {RECORD: b'{"version": 1}'}, token=COLLEAGUE)
    assert hub.author(REPO, changed, RECORD) == "dora"
    assert hub.author(REPO, beside, RECORD) == "alice"


def test_the_answer_is_kept_by_commit(hub: Hub, hub_server: HubServer):
    hub_server.create_repo(REPO)
    sha = hub_server.push(REPO, {RECORD: b"{}", "cfg.json": b"{}"})
    hub_server.restart_counters()
    assert hub.author(REPO, sha, RECORD) == "alice"
    assert hub_server.count() == 2
    assert hub.author(REPO, sha, RECORD) == "alice"
    assert hub_server.count() == 2


def test_a_file_that_is_not_there_has_no_author(hub: Hub, hub_server: HubServer):
    hub_server.create_repo(REPO)
    sha = hub_server.push(REPO, {RECORD: b"{}"})
    assert hub.author(REPO, sha, "saesync/other.json") is None

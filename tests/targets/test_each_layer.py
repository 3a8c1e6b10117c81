"""What is looked at twice: each layer does its part by itself, also where the next one would notice, later and at a cost."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from servers.loopback import HubServer
from target_support import Place, batch, upload

from saesync.cache import Cache
from saesync.errors import Refused
from saesync.targets.huggingface import HuggingFace

REPO = "alice/saes"


@pytest.fixture
def place(hub_server: HubServer, tmp_path: Path) -> Place:
    return Place(HuggingFace(Cache(tmp_path / "cache")), REPO, hub_server)


def test_a_file_of_another_size_is_not_sent(place: Place, hub_server: HubServer, tmp_path: Path) -> None:
    """Its digest would be compared when all of it was sent."""
    place.exists()
    one = upload(tmp_path / "one", 1, size=3_000_000)
    with one.files["sae_weights.safetensors"].open("ab") as stream:
        stream.write(b"more")
    with pytest.raises(Refused, match="digest of its proof"):
        place.publish(batch("res", {"layer_0": one}))
    assert hub_server.uploaded_bytes() == 0


def test_no_commit_is_tried_where_nothing_changes(place: Place, hub_server: HubServer, tmp_path: Path) -> None:
    """The client would not send an empty one either, with a warning that is not ours and one more look at the repo."""
    work = batch("res", {"layer_0": upload(tmp_path / "one", 1)})
    first = place.publish(work)
    hub_server.restart_counters()
    assert place.publish(work, first) == first
    asked = {route: entry["requests"] for route, entry in hub_server.stats()["routes"].items()}
    assert asked == {"repo.info": 1, "resolve.get": 1}, "the head, and the card"


def test_what_a_commit_left_out_is_told(place: Place, hub_server: HubServer, tmp_path: Path) -> None:
    """No .gitignore says so, and yet the Hub has the client drop a file."""
    place.exists()
    paths = ("layer_0/cfg.json", "layer_0/sae_weights.safetensors", "README.md", "saesync/res.json")
    files = [{"path": path, "uploadMode": "regular", "shouldIgnore": path == paths[0], "oid": None} for path in paths]
    hub_server.fault(route="preupload", status=200, body=json.dumps({"files": files}), times=9)
    with pytest.raises(Refused, match=r"took the commit without layer_0/cfg\.json"):
        place.publish(batch("res", {"layer_0": upload(tmp_path / "one", 1)}))

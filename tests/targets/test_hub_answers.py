"""What a Hub answers beside yes and no: what its token may, what it does not show, why it refuses, how long to wait."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from servers.loopback import SECRETS, HubServer
from target_support import Place, batch, upload

from saesync.cache import Cache
from saesync.errors import Missing, NotVisible, Refused, Unavailable
from saesync.hub import Hub
from saesync.targets.base import Upload
from saesync.targets.huggingface import HuggingFace

REPO = "alice/saes"
pytestmark = pytest.mark.parametrize("hub_process", ["lfs"], indirect=True)


@pytest.fixture
def place(hub_server: HubServer, tmp_path: Path) -> Place:
    cache = Cache(tmp_path / "cache")
    return Place(HuggingFace(cache, Hub(cache, patience=6)), REPO, hub_server)


def test_a_fine_grained_token_is_asked_what_it_may_before_any_work(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_carol_fine")
    for location in ("carol/new", "sae-org/new"):
        with pytest.raises(Missing, match="No write access"):
            place.target.check_write(location, private=False)
    monkeypatch.setenv("HF_TOKEN", "hf_carol_all")
    place.target.check_write("carol/new", private=False)
    with pytest.raises(Missing, match="No write access"):
        place.target.check_write("sae-org/new", private=False)


def test_a_repo_that_stands_but_is_not_shown_was_not_created(place: Place, tmp_path: Path) -> None:
    assert place.server is not None
    seen = place.observe()
    place.server.create_repo(REPO)
    place.server.fault(route="repo.info", status=404, headers={"X-Error-Code": "RepoNotFound"}, times=-1)
    with pytest.raises(NotVisible, match="is there already, but the Hub does not show it to this token"):
        place.publish(batch("res", {"layer_0": upload(tmp_path / "one", 1)}), seen)


@pytest.mark.parametrize(
    "body",
    ['{"error": "Storage quota is used up, %s"}', '{"message": "Storage quota is used up, %s"}',
     '{"errors": [{"message": "Storage quota is used up, %s"}]}'],
)  # fmt: skip
def test_the_reason_is_told_where_only_the_body_has_it(place: Place, tmp_path: Path, body: str) -> None:
    assert place.server is not None
    place.exists()
    place.server.fault(route="commit", status=413, body=body % SECRETS[0], headers={"X-Error-Message": ""})
    with pytest.raises(Refused, match="answered 413: Storage quota is used up, ") as caught:
        place.publish(batch("res", {"layer_0": upload(tmp_path / "one", 1)}))
    assert SECRETS[0] not in str(caught.value)


@pytest.mark.parametrize("body", ["<html>413</html>", '["x"]', '{"error": {"code": 7}}', '{"errors": []}', '"x"', ""])
def test_a_body_that_says_nothing(place: Place, body: str) -> None:
    assert place.server is not None
    place.server.fault(route="repo.info", status=418, body=body, headers={"X-Error-Message": ""})
    reason = place.observe().unknown
    assert reason is not None
    assert reason.data["detail"].endswith("answered 418.")


@pytest.mark.parametrize("wait", ["0", "Wed, 21 Oct 2015 07:28:00 GMT"])
def test_a_server_that_asks_for_no_wait_is_given_time(place: Place, wait: str) -> None:
    """Else a dozen attempts are used up in an instant, and trouble of a few seconds ends the run."""
    assert place.server is not None
    place.server.fault(route="repo.info", status=503, headers={"Retry-After": wait}, times=3)
    started = time.monotonic()
    assert place.observe().unknown is None
    assert time.monotonic() - started > 2.0


def test_a_long_wait_that_is_asked_for_is_told(place: Place, tmp_path: Path) -> None:
    assert place.server is not None
    place.exists()
    place.server.fault(route="commit", status=503, headers={"Retry-After": "1800"})
    with pytest.raises(Unavailable, match="answered with error 503 and asks to wait 1800 s"):
        place.publish(batch("res", {"layer_0": upload(tmp_path / "one", 1)}))


def test_weights_that_the_hub_keeps_as_a_regular_file_are_moved(place: Place, tmp_path: Path) -> None:
    """Of such a file the tree lists no sha256, and a large one is compared by it when it is sent."""
    assert place.server is not None
    place.server.config(lfs_threshold=1 << 30, binary_is_lfs=False)
    place.exists()
    place.server.push(REPO, {".gitattributes": b""})
    made: Any = upload(tmp_path / "one", 1, size=2_000_000)
    place.publish(batch("res", {"layer_0": made}))
    moved = batch("res", {"layer_1": Upload(made.record, {}, copy_from="layer_0")})
    after = place.publish(replace(moved, removed=frozenset({"layer_0"})))
    assert {name for name in after.files if name.startswith("layer_")} == {"layer_1/cfg.json", "layer_1/sae_weights.safetensors"}
    assert after.files["layer_1/sae_weights.safetensors"].same_bytes(made.record.files["sae_weights.safetensors"])

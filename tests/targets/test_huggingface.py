"""What only a Hub can do to a publish: races, lost replies, quotas, permissions, renames. Both upload protocols."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub.utils import _http
from servers.loopback import ALICE_READ, BOB, SECRETS, HubServer
from target_support import Place, batch, card, upload

from saesync.cache import Cache
from saesync.errors import Conflict, Missing, NotVisible, Refused, SaesyncError, Unavailable
from saesync.hub import Hub
from saesync.reason import ReasonCode
from saesync.targets.huggingface import HuggingFace

REPO = "alice/saes"


@pytest.fixture
def place(hub_server: HubServer, tmp_path: Path) -> Place:
    cache = Cache(tmp_path / "cache")
    return Place(HuggingFace(cache, Hub(cache, patience=6)), REPO, hub_server)


def server_of(place: Place) -> HubServer:
    assert place.server is not None
    return place.server


def says_no_secret(error: SaesyncError) -> bool:
    text = f"{error} {error!r} {error.__cause__!r} {[d.to_json() for d in error.diagnostics]}"
    return not any(secret in text for secret in SECRETS) and "sig=" not in text


def no_two_equal_trees(server: HubServer) -> bool:
    trees = [tuple(sorted(server.tree_of(REPO, sha).items())) for sha in server.commits(REPO)]
    return len(trees) == len(set(trees))


FAULTS: dict[str, dict[str, Any]] = {
    "lost reply by reset": {"route": "commit", "when": "after", "action": "reset"},
    "lost reply by 503": {"route": "commit", "when": "after", "status": 503},
    "lost reply by 500": {"route": "commit", "when": "after", "status": 500, "times": 2},
    "reset before": {"route": "commit", "action": "reset", "times": 2},
    "closed before": {"route": "commit", "action": "close"},
    "503 before": {"route": "commit", "status": 503},
    "429 with Retry-After": {"route": "commit", "status": 429, "headers": {"Retry-After": "1"}},
    "reset of the card check": {"route": "validate-yaml", "action": "reset"},
    "503 of the card check": {"route": "validate-yaml", "status": 503},
    "503 that is not JSON": {"route": "validate-yaml", "status": 503, "body": "<html>", "headers": {"Content-Type": "text/html"}},
    "503 of the head": {"route": "repo.info", "status": 503},
    "reset of the tree": {"route": "tree", "action": "reset"},
    "truncated tree": {"route": "tree", "action": "truncate", "after_bytes": 5},
    "reset of create": {"route": "repo.create", "action": "reset", "when": "after"},
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS.keys())
def test_transient_trouble_ends_in_one_commit(place: Place, tmp_path: Path, fault: dict[str, Any]) -> None:
    server = server_of(place)
    server.fault(fault)
    work = batch("res", {"layer_0": upload(tmp_path / "one", 1)})
    after = place.publish(work)
    assert after.records["res"].saes["layer_0"] == work.uploads["layer_0"].record
    assert len(server.commits(REPO)) == 2
    assert server.stats()["faults"][0]["hits"] >= 1
    assert after == place.observe()


def test_lost_reply_then_another_commit(place: Place, tmp_path: Path) -> None:
    """Ours landed, the reply was lost, and somebody else committed on top before we looked again."""
    server = server_of(place)
    server.create_repo(REPO)
    server.fault(route="commit", when="after", action="reset")
    seen = place.observe()

    def interfering(record: Any, found: str | None) -> tuple[str, str]:
        if len(server.commits(REPO)) == 2:
            server.push(REPO, {"notes.txt": b"on top"})
        return card(record, found)

    after = place.publish(replace(batch("res", {"layer_0": upload(tmp_path / "one", 1)}), card=interfering), seen)
    assert "layer_0/cfg.json" in after.files
    assert no_two_equal_trees(server)
    assert server.git(REPO, "log", "--format=%s", "main").splitlines().count("res: test") == 1


def test_concurrent_writer_elsewhere_is_merged_with(place: Place, tmp_path: Path) -> None:
    server = server_of(place)
    server.create_repo(REPO)
    pushed = []

    def racing(record: Any, found: str | None) -> tuple[str, str]:
        if not pushed:
            pushed.append(server.push(REPO, {"notes.txt": b"first", "README.md": b"---\nlicense: mit\n---\nTheirs.\n"}))
        return card(record, found)

    work = replace(batch("res", {"layer_0": upload(tmp_path / "one", 1)}), card=racing)
    after = place.publish(work)
    assert server.stats()["routes"]["commit"]["status"]["412"] == 1
    assert "notes.txt" in after.files
    assert "Theirs." in place.text("README.md")
    assert "layer_0" in place.text("README.md")


def test_concurrent_writer_of_the_same_folder_is_a_conflict(place: Place, tmp_path: Path) -> None:
    server = server_of(place)
    seen = place.publish(batch("res", {"layer_0": upload(tmp_path / "one", 1)}))
    pushed = []

    def racing(record: Any, found: str | None) -> tuple[str, str]:
        if not pushed:
            pushed.append(server.push(REPO, {"layer_0/cfg.json": b"{}"}))
        return card(record, found)

    with pytest.raises(Conflict, match=r"layer_0/cfg\.json"):
        place.publish(replace(batch("res", {"layer_0": upload(tmp_path / "two", 2)}), card=racing), seen)
    assert server.file(REPO, "layer_0/cfg.json") == b"{}"


def test_two_publishers_of_one_release_both_win(place: Place, tmp_path: Path) -> None:
    server = server_of(place)
    server.create_repo(REPO)
    seen = place.observe()
    errors: list[BaseException] = []

    def run(number: int) -> None:
        try:
            place.publish(batch("res", {f"layer_{number}": upload(tmp_path / str(number), number)}), seen)
        except SaesyncError as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert set(place.observe().records["res"].saes) == {"layer_0", "layer_1", "layer_2"}
    assert len(server.commits(REPO)) == 4


def test_quota_of_commits_becomes_unavailable(place: Place, tmp_path: Path) -> None:
    server = server_of(place)
    server.ration(commit={"quota": 1, "window": 3600})
    place.publish(batch("res", {"layer_0": upload(tmp_path / "one", 1)}))
    with pytest.raises(Unavailable, match="asks to wait") as caught:
        place.publish(batch("res", {"layer_1": upload(tmp_path / "two", 2)}))
    assert says_no_secret(caught.value)
    assert server.stats()["routes"]["commit"]["status"]["429"] == 1
    server.ration()
    place.publish(batch("res", {"layer_1": upload(tmp_path / "two", 2)}))
    assert len(server.commits(REPO)) == 3


def test_lasting_trouble_is_one_message(place: Place, tmp_path: Path) -> None:
    server = server_of(place)
    server.create_repo(REPO)
    cache = Cache(tmp_path / "other")
    hasty = HuggingFace(cache, Hub(cache, patience=1))
    for fault, summary in (({"status": 503}, "Hub is in trouble"), ({"action": "reset"}, "Connection to the Hub was lost")):
        server.fault(route="commit", times=-1, **fault)
        with pytest.raises(Unavailable, match=summary) as caught:
            hasty.publish(REPO, batch("res", {"layer_0": upload(tmp_path / "one", 1)}), place.observe())
        assert says_no_secret(caught.value)
        server.restart_counters()
    assert len(server.commits(REPO)) == 1


def test_broken_upload_is_taken_up_again(place: Place, tmp_path: Path) -> None:
    server = server_of(place)
    route = "lfs.put" if server.mode == "lfs" else "cas.xorbs"
    server.fault(route=route, action="reset", after_bytes=100_000)
    after = place.publish(batch("res", {"layer_0": upload(tmp_path / "one", 901, size=3_000_000)}))
    assert "layer_0/sae_weights.safetensors" in after.files
    assert len(server.commits(REPO)) == 2
    assert server.stats()["auth_leaks"] == 0


class NoWaiting:
    """The module ``time``, but that nothing sleeps."""

    def sleep(self, seconds: float) -> None:
        pass

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)


@pytest.mark.parametrize("route", ["preupload", "lfs.batch"])
def test_what_the_client_waits_by_itself_counts(
    hub_server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, route: str
) -> None:
    """huggingface_hub tries six times, 23 s in all, where a server fails before an upload: half a minute is two such rounds."""
    if hub_server.mode == "xet" and route != "preupload":
        pytest.skip("xet uploads go elsewhere")
    place = Place(HuggingFace(Cache(tmp_path), Hub(Cache(tmp_path), patience=30)), REPO, hub_server)
    hub_server.create_repo(REPO)
    hub_server.fault(route=route, status=503, times=-1)
    monkeypatch.setattr(_http, "time", NoWaiting())
    with pytest.raises(Unavailable, match="answered with error 503"):
        place.publish(batch("res", {"layer_0": upload(tmp_path / "one", 1, size=2_000_000)}))
    assert 2 <= hub_server.stats()["faults"][0]["hits"] <= 12


@pytest.mark.parametrize("route", ["xet-write-token", "cas.xorbs", "cas.shards"])
@pytest.mark.parametrize("status", [401, 403])
def test_what_refuses_an_upload_is_no_broken_connection(place: Place, tmp_path: Path, route: str, status: int) -> None:
    """hf_xet tells both by the same builtin errors, and what the server answered in words only."""
    server = server_of(place)
    if server.mode == "lfs":
        pytest.skip("only xet asks there")
    server.create_repo(REPO)
    server.fault(route=route, status=status, times=-1)
    with pytest.raises(SaesyncError) as caught:
        place.publish(batch("res", {"layer_0": upload(tmp_path / "one", 1 + len(route) + status)}))
    assert server.stats()["faults"][0]["hits"] >= 1
    (found,) = caught.value.diagnostics
    assert "connection" not in found.detail.lower(), found
    assert str(status) in found.detail or "token" in found.detail.lower()
    assert says_no_secret(caught.value)
    assert "http" not in found.detail, "addresses may be signed"
    assert len(server.commits(REPO)) == 1


def test_read_only_token(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = server_of(place)
    server.create_repo(REPO)
    seen = place.observe()
    monkeypatch.setenv("HF_TOKEN", ALICE_READ)
    for location in (REPO, "alice/not-there-yet", "sae-org/not-there-yet"):
        with pytest.raises(Missing, match="write access"):
            place.target.check_write(location, private=False)
    with pytest.raises(Missing, match="may not write") as caught:
        place.publish(batch("res", {"layer_0": upload(tmp_path / "one", 1)}), seen)
    assert says_no_secret(caught.value)
    assert len(server.commits(REPO)) == 1


def test_write_access_is_told_apart(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    server = server_of(place)
    server.create_repo(REPO)
    for location in (REPO, "alice/new", "sae-org/new"):
        place.target.check_write(location, private=True)
    for location in ("bob/new", "google/gemma"):
        with pytest.raises(Missing, match="No write access"):
            place.target.check_write(location, private=False)
    monkeypatch.setenv("HF_TOKEN", BOB)
    with pytest.raises(Missing, match="No write access"):
        place.target.check_write(REPO, private=False)
    monkeypatch.setenv("HF_TOKEN", "hf_revoked")
    with pytest.raises(Missing) as caught:
        place.target.check_write("alice/new", private=False)
    assert "hf_revoked" not in str(caught.value)
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(Missing, match="hf auth login"):
        place.target.check_write(REPO, private=False)


def test_private_repo(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = replace(batch("res", {"layer_0": upload(tmp_path / "one", 1)}), private=True)
    assert place.publish(work).visibility == "private"
    monkeypatch.setenv("HF_TOKEN", BOB)
    stranger = place.observe()
    assert (stranger.exists, stranger.unknown) == (False, None)  # a stranger is told that it is not there
    monkeypatch.delenv("HF_TOKEN")
    seen = place.observe()
    assert seen.unknown is not None
    assert seen.unknown.code is ReasonCode.NOT_VISIBLE
    assert "needs a token" in seen.unknown.data["detail"]
    with pytest.raises(NotVisible):
        place.publish(work, replace(seen, unknown=None))


def test_public_repo_is_never_used_for_a_private_release(place: Place, tmp_path: Path) -> None:
    server = server_of(place)
    server.create_repo(REPO)
    with pytest.raises(Conflict, match="public"):
        place.publish(replace(batch("res", {"layer_0": upload(tmp_path / "one", 1)}), private=True))
    assert len(server.commits(REPO)) == 1


def test_gated_repo(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = server_of(place)
    place.publish(batch("res", {"layer_0": upload(tmp_path / "one", 1)}))
    server.gate(REPO)
    assert place.observe().unknown is None
    monkeypatch.setenv("HF_TOKEN", BOB)
    cold = HuggingFace(Cache(tmp_path / "cold"), Hub(Cache(tmp_path / "cold"), patience=1))
    seen = cold.observe(REPO)
    assert seen.unknown is not None
    detail = seen.unknown.data["detail"]
    assert "has to be granted" in detail
    assert f" {server.base}/{REPO}." in detail, "the endpoint's own scheme: this one has no https"


def test_renamed_repo_is_named_not_followed(place: Place, tmp_path: Path) -> None:
    server = server_of(place)
    seen = place.publish(batch("res", {"layer_0": upload(tmp_path / "one", 1)}))
    server.move(REPO, "sae-org/renamed")
    found = place.observe()
    assert found.unknown is not None
    assert found.unknown.code is ReasonCode.REPO_RENAMED
    assert found.unknown.data["now"] == "sae-org/renamed"
    with pytest.raises(NotVisible, match="sae-org/renamed"):
        place.publish(batch("res", {"layer_1": upload(tmp_path / "two", 2)}), seen)
    with pytest.raises(NotVisible, match="sae-org/renamed"):
        place.target.fetch(REPO, seen, "layer_0/sae_weights.safetensors", tmp_path / "x")


def test_repo_deleted_meanwhile(place: Place, tmp_path: Path) -> None:
    seen = place.publish(batch("res", {"layer_0": upload(tmp_path / "one", 1)}))
    server_of(place).call("DELETE", "/api/repos/delete", b'{"name": "saes", "organization": "alice", "type": "model"}')
    with pytest.raises(Conflict, match="was deleted"):
        place.publish(batch("res", {"layer_1": upload(tmp_path / "two", 2)}), seen)
    assert not place.observe().exists


def test_invalid_card_is_refused_before_anything_is_sent(place: Place, tmp_path: Path) -> None:
    server = server_of(place)
    server.create_repo(REPO)
    bad = replace(
        batch("res", {"layer_0": upload(tmp_path / "one", 1)}), card=lambda record, found: ("---\ntags: 5\n---\n", "0" * 64)
    )
    with pytest.raises(Refused, match="front matter"):
        place.publish(bad)
    assert len(server.commits(REPO)) == 1


def test_gitattributes_stay_and_large_records_work(place: Place, tmp_path: Path) -> None:
    """A record above the threshold goes through the object store, and is read back from there."""
    server = server_of(place)
    server.create_repo(REPO)
    before = server.file(REPO, ".gitattributes")
    server.config(lfs_threshold=500)
    place.publish(batch("res", {"layer_0": upload(tmp_path / "one", 1)}))
    cold = HuggingFace(Cache(tmp_path / "cold"), Hub(Cache(tmp_path / "cold"), patience=1)).observe(REPO)
    assert cold.files["saesync/res.json"].sha256 is not None
    assert "layer_0" in cold.records["res"].saes
    assert server.file(REPO, ".gitattributes") == before


def test_cost_of_observing(place: Place, tmp_path: Path) -> None:
    """Cold: head and tags at once, tree pages, one record per release, and no README that these vouch for. Warm: head and tags.
    What cannot be seen without a token costs one request more."""
    server = server_of(place)
    for release in ("res", "mlp"):
        saes = {f"{release}_{n}": upload(tmp_path / f"{release}{n}", n) for n in range(4)}
        place.publish(batch(release, saes))
    server.config(tree_page=10)
    server.restart_counters()
    cold = HuggingFace(Cache(tmp_path / "cold"), Hub(Cache(tmp_path / "cold"), patience=1))
    seen = cold.observe(REPO)
    assert len(seen.files) == 16 + 4  # README, .gitattributes, two records
    assert (server.count("refs"), server.count("tree"), server.count("resolve.get"), server.count()) == (1, 3, 2, 6)
    assert seen.readme is None
    assert seen.card_vouched
    server.restart_counters()
    assert cold.observe(REPO) == seen
    assert (server.count("refs"), server.count()) == (1, 1)
    server.create_repo("alice/empty")
    server.restart_counters()
    cold.observe("alice/empty")
    assert (server.count("refs"), server.count("repo.info")) == (1, 0)
    server.call("PUT", f"/api/models/{REPO}/settings", b'{"visibility": "private"}')
    for asked in (2, 1):  # that it is hidden is remembered
        server.restart_counters()
        assert cold.observe(REPO) == replace(seen, visibility="private")
        assert (server.count("refs"), server.count("repo.info")) == (asked, 1)
    server.call("PUT", f"/api/models/{REPO}/settings", b'{"visibility": "public"}')
    for asked in (1, 0):  # and forgotten once it is not
        server.restart_counters()
        assert cold.observe(REPO) == seen
        assert (server.count("refs"), server.count("repo.info")) == (1, asked)


def test_name_no_hub_can_have(place: Place) -> None:
    for name in ("../etc", "a/b/c", "a b", "alice/x?y", "", "alice/..%2f"):
        seen = place.target.observe(name)
        assert seen.unknown is not None
        assert "Not a repository name" in seen.unknown.data["detail"]
    assert server_of(place).count() == 0


@pytest.mark.parametrize("route", ["preupload", "lfs.batch", "lfs.put"])
def test_quota_for_an_hour_is_not_waited_out_inside_the_client(hub_server: HubServer, tmp_path: Path, route: str) -> None:
    """huggingface_hub would sleep as long as the server asks, five times over."""
    if hub_server.mode == "xet" and route != "preupload":
        pytest.skip("xet uploads go elsewhere")
    place = Place(HuggingFace(Cache(tmp_path), Hub(Cache(tmp_path), patience=3)), REPO, hub_server)
    hub_server.create_repo(REPO)
    hub_server.fault(route=route, status=429, headers={"RateLimit": '"api";r=0;t=3000'}, times=100)
    started = time.monotonic()
    with pytest.raises(Unavailable, match="asks to wait 3000 s"):
        place.publish(batch("res", {"layer_0": upload(tmp_path / "one", 1, size=2_000_000)}))
    assert time.monotonic() - started < 8

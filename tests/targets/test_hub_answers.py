"""What a Hub answers beside yes and no: what its token may, what it does not show, why it refuses, how long to wait."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import pytest
from servers.loopback import SECRETS, HubServer, running_hub
from target_support import Place, batch, upload

from saesync.cache import Cache
from saesync.errors import Missing, NotVisible, Refused, Unavailable
from saesync.hub import Hub
from saesync.hub.trouble import CLIENT_WAITS, Asked, diagnose
from saesync.targets.base import Upload
from saesync.targets.huggingface import HuggingFace

REPO = "alice/saes"


@pytest.fixture(scope="module")
def hub_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubServer]:
    """What is answered does not depend on how files are brought."""
    with running_hub(tmp_path_factory.mktemp("hub"), "lfs") as server:
        yield server


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


def test_what_cannot_be_read_after_its_commit_is_told_as_committed(place: Place, tmp_path: Path) -> None:
    """A token may expire in between. The next look finds it, and nothing is sent again."""
    assert place.server is not None
    one = batch("res", {"layer_0": upload(tmp_path / "one", 1)})
    place.exists()
    place.server.fault(route="tree", status=401, skip=1, times=-1)
    with pytest.raises(NotVisible) as caught:
        place.publish(one)
    place.server.restart_counters()
    seen = place.observe()
    assert seen.head is not None
    said = f"Commit {seen.head[:7]} in {REPO} was made, and then could not be read. "
    assert caught.value.diagnostics[0].detail.startswith(said)
    assert set(seen.records["res"].saes) == {"layer_0"}
    place.publish(one)
    assert place.server.count("commit") == 0


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


MISREAD = [
    {"route": "commit", "status": 200, "body": "{}", "when": "after"},
    {"route": "commit", "status": 200, "body": "[]", "when": "after"},
    {"route": "commit", "status": 400, "body": "[1]"},
    {"route": "preupload", "status": 200, "body": '{"files": []}'},
    {"route": "validate-yaml", "status": 200, "body": "[]"},
    {"route": "repo.create", "status": 200, "body": "{}", "when": "after"},
]


@pytest.mark.parametrize("fault", MISREAD, ids=lambda f: "-".join(str(f[k]) for k in ("route", "status", "body")))
def test_an_answer_that_the_client_takes_apart_wrongly_is_no_bug(place: Place, tmp_path: Path, fault: dict[str, Any]) -> None:
    """The client raises a KeyError or worse, maybe after the commit has landed."""
    assert place.server is not None
    place.server.fault({**fault, "headers": {"Content-Type": "application/json"}})
    work = batch("res", {"layer_0": upload(tmp_path / "one", 1)})
    after = place.publish(work)
    assert after.records["res"].saes["layer_0"] == work.uploads["layer_0"].record
    assert len(place.server.commits(REPO)) == 2


def test_answers_that_stay_wrong_are_told(place: Place, tmp_path: Path) -> None:
    assert place.server is not None
    place.server.fault(route="commit", status=200, body="{}", headers={"Content-Type": "application/json"}, times=-1)
    target = HuggingFace(Cache(tmp_path / "cache"), Hub(Cache(tmp_path / "cache"), patience=1))
    with pytest.raises(Unavailable, match="its answer is not what a Hub sends"):
        target.publish(REPO, batch("res", {"layer_0": upload(tmp_path / "one", 1)}), place.observe())


def test_mistakes_of_our_own_code_stay_mistakes(place: Place) -> None:
    error = KeyError("ours")
    error.__traceback__ = None
    assert diagnose(error, Asked("commit", REPO, write=True), None, "https://hub.example") is None


@pytest.mark.parametrize("verbosity", [None, "debug"])
def test_no_signed_address_is_said(place: Place, tmp_path: Path, verbosity: str | None) -> None:
    """Of each upload that it tries again it would print the address, with what allows anybody to write there."""
    assert place.server is not None
    program = (
        "import sys; from pathlib import Path; sys.path[:0] = sys.argv[2:]\n"
        "from target_support import batch, upload; from saesync.cache import Cache\n"
        "from saesync.targets.huggingface import HuggingFace\n"
        "home = Path(sys.argv[1]); target = HuggingFace(Cache(home / 'cache'))\n"
        f"target.publish({REPO!r}, batch('res', {{'layer_0': upload(home / 'one', 1)}}), target.observe({REPO!r}))\n"
    )
    place.server.fault(route="lfs.put", status=503)
    tests = Path(__file__).parent
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_HUB_VERBOSITY")}
    environment |= place.server.environment(HF_HOME=str(tmp_path / "hf")) | ({"HF_HUB_VERBOSITY": verbosity} if verbosity else {})
    command = [sys.executable, "-c", program, str(tmp_path), str(tests), str(tests.parent)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=60)
    assert "sig=" not in done.stdout + done.stderr
    assert ("503" in done.stderr) is (verbosity is not None)


def test_the_time_that_the_client_waits_for_a_store_counts() -> None:
    """A store that cannot be reached is tried five times by the client at every attempt of ours."""
    asked = Asked("commit 2 files to alice/saes", REPO, write=True)
    for address, counts in (
        ("https://store.example/x?sig=1", True),
        (f"https://hub.example/{REPO}.git/info/lfs/objects/batch", True),
        (f"https://hub.example/api/models/{REPO}/commit/main", False),
    ):
        error = httpx2.ReadError("reset", request=httpx2.Request("PUT", address))
        trouble = diagnose(error, asked, None, "https://hub.example")
        assert trouble is not None
        assert (trouble.cost == CLIENT_WAITS) is counts


@pytest.mark.parametrize("pattern", [b"*.safetensors\n", b"saesync/\n", b"cfg.json\n"])
@pytest.mark.parametrize("size", [20_000, 2_000_000])
def test_gitignore_that_swallows_files_is_noticed(place: Place, tmp_path: Path, pattern: bytes, size: int) -> None:
    """Before the commit: else half of an SAE would be published, with a record that claims the whole."""
    assert place.server is not None
    place.exists()
    place.server.push(REPO, {".gitignore": pattern})
    before = place.server.commits(REPO)
    with pytest.raises(Refused, match=r"The \.gitignore in alice/saes excludes"):
        place.publish(batch("res", {"layer_0": upload(tmp_path / "one", 1, size=size)}))
    assert place.server.commits(REPO) == before

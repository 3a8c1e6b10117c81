"""Reads of the Hub: what is visible, what is told apart, how many requests it takes, and that wrong bytes never get through."""

from __future__ import annotations

import http.server
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import pytest
from servers.loopback import ALICE, BOB, SECRETS, HubServer, running_hub

from saesync.cache import Cache
from saesync.digest import FileDigest, digest_bytes
from saesync.errors import Missing, NotVisible, Refused, SaesyncError, Unavailable
from saesync.hub import Head, Hub
from saesync.hub.answers import asked_wait, wait_of
from saesync.hub.client import Client
from saesync.hub.reach import Reach
from saesync.hub.trouble import MAX_ATTEMPTS, Asked, Patience, Trouble, diagnose

REPO = "alice/source"
WEIGHTS = b"\0\1" + random.Random(7).randbytes(3_000_000)


@pytest.fixture(scope="module")
def hub_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubServer]:
    """Reading is the same whatever protocol brought the files in; the targets' suite does both."""
    with running_hub(tmp_path_factory.mktemp("hub"), "lfs") as server:
        yield server


@pytest.fixture
def hub(hub_server: HubServer, tmp_path: Path) -> Hub:
    return Hub(Cache(tmp_path / "cache"), patience=6)


@pytest.fixture
def source(hub_server: HubServer) -> str:
    """A repo with one large and one small file; its commit."""
    hub_server.create_repo(REPO)
    sha = hub_server.push(REPO, {"ae.pt": WEIGHTS, "cfg.json": b'{"d_in": 4}'}, lfs=("ae.pt",))
    hub_server.restart_counters()
    return sha


def leaks(error: BaseException) -> bool:
    text = f"{error} {error!r} {error.__cause__!r}"
    return any(secret in text for secret in SECRETS) or "sig=" in text


# ------------------------------------------------------------------------------------------------ what is visible


def test_head_is_one_request(hub: Hub, hub_server: HubServer, source: str) -> None:
    assert hub.head(REPO) == Head(source, private=False)
    assert hub.head(REPO, source[:40]) == Head(source, private=False)
    assert hub_server.count() == 2


def test_head_of_datasets_and_absent_repos(hub: Hub, hub_server: HubServer) -> None:
    hub_server.create_repo("alice/text", kind="dataset", private=True)
    found = hub.head("alice/text", kind="dataset")
    assert found is not None
    assert found.private
    assert hub.head("alice/text") is None
    assert hub.head("alice/never") is None


def test_unknown_revision_is_named(hub: Hub, source: str) -> None:
    with pytest.raises(Missing, match="no revision v9"):
        hub.head(REPO, "v9")


def test_without_a_token_absent_is_not_claimed(hub: Hub, hub_server: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(NotVisible, match="needs a token"):
        hub.head("alice/never")
    hub_server.create_repo("alice/open")
    assert hub.head("alice/open") is not None
    assert hub_server.log("repo.info")[-1]["auth"] is None


def test_what_is_not_found_without_a_token_is_not_called_absent(
    hub: Hub, hub_server: HubServer, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The Hub may call a private repo "not found"; only whoever has a token may believe it."""
    monkeypatch.delenv("HF_TOKEN")
    hub_server.fault(route="repo.info", status=404, headers={"X-Error-Code": "RepoNotFound"}, times=1)
    with pytest.raises(NotVisible, match="needs a token"):
        hub.head(REPO)


def test_bad_tokens_are_named_and_not_shown(hub: Hub, monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_revoked_canary")
    with pytest.raises(NotVisible, match="Token is not valid") as caught:
        hub.head(REPO)
    assert "canary" not in f"{caught.value} {caught.value.__cause__!r}"
    for odd in ("hf_canäry", "hf_ca nary"):
        monkeypatch.setenv("HF_TOKEN", odd)
        with pytest.raises(Missing, match="Token is not usable") as unusable:
            hub.head(REPO)
        assert odd not in str(unusable.value)


@pytest.mark.parametrize(
    ("endpoint", "site", "host"),
    [
        ("https://hub.example/", "https://hub.example", "hub.example"),
        ("http://me:secret@127.0.0.1:8000/hub", "http://127.0.0.1:8000/hub", "127.0.0.1:8000"),
    ],
)
def test_an_endpoint_is_shown_as_people_open_it(endpoint: str, site: str, host: str) -> None:
    client = Client(endpoint)
    assert (client.site, client.host) == (site, host)


def test_gated_files_say_how_to_ask(hub: Hub, hub_server: HubServer, source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    hub_server.gate(REPO)
    tree = hub.tree(REPO, source)
    for token in (BOB, None):
        monkeypatch.setenv("HF_TOKEN", token) if token else monkeypatch.delenv("HF_TOKEN")
        with pytest.raises(NotVisible, match=f"ask for it on {hub_server.base}/{REPO}"):
            hub.read(REPO, source, "cfg.json", tree["cfg.json"])


def test_renamed(hub: Hub, hub_server: HubServer, source: str, tmp_path: Path) -> None:
    hub_server.move(REPO, "sae-org/renamed")
    found = hub.head(REPO)
    assert found is not None
    assert found.renamed_to == "sae-org/renamed"
    for call in (
        lambda: hub.tree(REPO, source),
        lambda: hub.read_range(REPO, source, "ae.pt", 0, 8),
        lambda: hub.reachable(REPO, source),
    ):
        with pytest.raises(NotVisible, match="is called sae-org/renamed now"):
            call()


def test_unreachable_hub(tmp_path: Path) -> None:
    started = time.monotonic()
    with pytest.raises(Unavailable, match="No connection to 127"):
        Hub(Cache(tmp_path), "http://127.0.0.1:9", patience=0.5).head(REPO)
    with pytest.raises(Missing, match="HF_ENDPOINT"):
        Hub(Cache(tmp_path), "huggingface.co", patience=0.5).head(REPO)
    assert time.monotonic() - started < 5


def test_an_address_that_never_answered_is_soon_given_up(tmp_path: Path) -> None:
    """90 repositories behind it are not each waited for, with all the patience there is for a Hub in trouble."""
    started = time.monotonic()
    for number in range(90):
        hub = Hub(Cache(tmp_path), "http://127.0.0.1:1")  # as targets and sources: each its own
        with pytest.raises(Unavailable, match=f"needed to find model alice/r{number}"):
            hub.head(f"alice/r{number}")
    assert time.monotonic() - started < 7


def test_a_hub_that_answered_before_is_waited_for() -> None:
    reach = Reach()
    reach.failed(took=10.0)
    assert reach.gone(120.0)
    reach.answered()
    assert not reach.gone(120.0)
    reach.failed(took=10.0)
    assert not reach.gone(120.0)
    assert reach.gone(120.0, pause=115.0)
    assert reach.gone(120.0), "given up by one, given up by all"
    reach.answered()
    reach.failed()
    assert not reach.gone(120.0)


@pytest.mark.parametrize("endpoint", ["HTTP://LocalHost:{port}", "http://localhost:{port}"])
def test_one_address_in_other_spellings(endpoint: str, hub_server: HubServer, tmp_path: Path) -> None:
    """An answer of the Hub's own is never taken for one of an object store behind it."""
    hub = Hub(Cache(tmp_path / "c"), endpoint.format(port=hub_server.base.rpartition(":")[2]), patience=0)
    with pytest.raises(NotVisible):
        hub.tree("alice/never", "0" * 40)


def test_endpoint_with_credentials_is_not_shown(tmp_path: Path) -> None:
    with pytest.raises(Unavailable) as caught:
        Hub(Cache(tmp_path), "http://user:canary@127.0.0.1:9", patience=0).head(REPO)
    assert "canary" not in str(caught.value)


def test_offline_mode(hub: Hub, source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(Unavailable, match="HF_HUB_OFFLINE"):
        hub.head(REPO)


# -------------------------------------------------------------------------------------------------- trees, history


def test_tree_is_paged_and_cached_by_commit(hub: Hub, hub_server: HubServer) -> None:
    hub_server.create_repo(REPO)
    sha = hub_server.push(REPO, {f"deep/er {n}/cfg.json": b"%d" % n for n in range(20)} | {"w.bin": WEIGHTS}, lfs=("w.bin",))
    hub_server.config(tree_page=15)
    hub_server.restart_counters()
    tree = hub.tree(REPO, sha)
    assert hub_server.count() == 3  # 20 folders, "deep", 20 files, .gitattributes, w.bin
    assert tree["w.bin"] == FileDigest(len(WEIGHTS), sha256=digest_bytes(WEIGHTS).sha256)
    assert tree["deep/er 7/cfg.json"].same_bytes(digest_bytes(b"7"))
    assert len(tree) == 22
    assert hub.tree(REPO, sha) == tree
    assert hub_server.count() == 3


def test_damaged_cache_costs_time_not_truth(hub: Hub, hub_server: HubServer, source: str, tmp_path: Path) -> None:
    tree = hub.tree(REPO, source)
    text = hub.read(REPO, source, "cfg.json", tree["cfg.json"])
    for path in (tmp_path / "cache").rglob("*"):
        if path.is_file():
            path.write_bytes(b'[["cfg.json"]]')
    assert hub.tree(REPO, source) == tree
    assert hub.read(REPO, source, "cfg.json", tree["cfg.json"]) == text


def test_commits_of_pull_requests_are_not_reachable(hub: Hub, hub_server: HubServer, source: str) -> None:
    stray = hub_server.push(REPO, {"ae.pt": b"evil"}, token=BOB, create_pr=True)
    later = [hub_server.push(REPO, {"n.txt": b"%d" % n}) for n in range(3)]
    hub_server.config(commits_page=2)
    assert hub.tree(REPO, stray)  # anyone can read it under the repo's name
    assert not hub.reachable(REPO, stray)
    assert all(hub.reachable(REPO, sha) for sha in (source, *later))
    hub_server.restart_counters()
    assert hub.reachable(REPO, source)
    assert hub_server.count() == 0


def test_tags_count_as_reachable(hub: Hub, hub_server: HubServer, source: str) -> None:
    side = hub_server.push(REPO, {"x.txt": b"1"}, create_pr=True)
    hub_server.call("POST", f"/api/models/{REPO}/tag/{side}", b'{"tag": "v1"}')
    assert hub.reachable(REPO, side)


# ---------------------------------------------------------------------------------------------------- contents


def test_read_is_cached_by_content(hub: Hub, hub_server: HubServer, source: str) -> None:
    tree = hub.tree(REPO, source)
    assert hub.read(REPO, source, "cfg.json", tree["cfg.json"]) == b'{"d_in": 4}'
    asked = hub_server.count()
    assert hub.read("alice/elsewhere", "0" * 40, "other.json", tree["cfg.json"]) == b'{"d_in": 4}'
    assert hub_server.count() == asked
    with pytest.raises(Refused, match="too large"):
        hub.read(REPO, source, "ae.pt", tree["ae.pt"], limit=1000)


def test_read_range_moves_few_bytes(hub: Hub, hub_server: HubServer, source: str) -> None:
    assert hub.read_range(REPO, source, "ae.pt", 5, 105) == WEIGHTS[5:105]
    assert hub.read_range(REPO, source, "ae.pt", len(WEIGHTS) - 10, len(WEIGHTS) + 90) == WEIGHTS[-10:]
    assert hub.read_range(REPO, source, "ae.pt", len(WEIGHTS) + 1, len(WEIGHTS) + 9) == b""
    assert hub.read_range(REPO, source, "cfg.json", 0, 5) == b'{"d_i'
    assert hub.read_range(REPO, source, "cfg.json", 3, 3) == b""
    assert hub_server.bytes_sent("lfs.get", "resolve.get") < 2_000
    assert hub_server.stats()["auth_leaks"] == 0


def test_download_checks_every_byte(hub: Hub, hub_server: HubServer, source: str, tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []
    expect = hub.tree(REPO, source)["ae.pt"]
    found = hub.download(REPO, source, "ae.pt", expect, tmp_path / "in" / "ae.pt", lambda *step: steps.append(step))
    assert (tmp_path / "in" / "ae.pt").read_bytes() == WEIGHTS
    assert found == digest_bytes(WEIGHTS)
    assert steps[-1] == (len(WEIGHTS), len(WEIGHTS))
    assert [path.name for path in (tmp_path / "in").iterdir()] == ["ae.pt"]
    assert hub_server.stats()["auth_leaks"] == 0


def test_a_flipped_byte_is_noticed_and_fetched_again(hub: Hub, hub_server: HubServer, source: str, tmp_path: Path) -> None:
    hub_server.fault(route="lfs.get", action="corrupt", when="after", offset=1_234_567)
    hub.download(REPO, source, "ae.pt", hub.tree(REPO, source)["ae.pt"], tmp_path / "ae.pt")
    assert (tmp_path / "ae.pt").read_bytes() == WEIGHTS
    assert hub_server.count("lfs.get") == 2


def test_lasting_corruption_ends_in_one_message(hub: Hub, hub_server: HubServer, source: str, tmp_path: Path) -> None:
    expect = hub.tree(REPO, source)["ae.pt"]
    hub_server.admin("corrupt-lfs", {"sha256": expect.sha256})
    with pytest.raises(Unavailable, match="Download is corrupted"):
        hub.download(REPO, source, "ae.pt", expect, tmp_path / "ae.pt")
    assert not list(tmp_path.glob("ae.pt*"))
    hub_server.fault(route="resolve.get", action="corrupt", when="after", times=-1)
    with pytest.raises(Unavailable, match="Download is corrupted"):
        hub.read(REPO, source, "cfg.json", hub.tree(REPO, source)["cfg.json"])


@pytest.mark.parametrize("fin", [True, False], ids=["closed early", "reset"])
def test_truncated_download_goes_on_where_it_broke(
    hub: Hub, hub_server: HubServer, source: str, tmp_path: Path, fin: bool
) -> None:
    hub_server.fault(route="lfs.get", action="truncate", when="after", after_bytes=2_500_000, fin=fin, delay=0.3)
    hub.download(REPO, source, "ae.pt", hub.tree(REPO, source)["ae.pt"], tmp_path / "ae.pt")
    assert (tmp_path / "ae.pt").read_bytes() == WEIGHTS
    assert hub_server.bytes_sent("lfs.get") < len(WEIGHTS) + 2_000_000
    assert "range" in hub_server.log("lfs.get")[-1]["headers"]


def test_patience_starts_again_while_bytes_arrive(hub_server: HubServer, source: str, tmp_path: Path) -> None:
    """A line that breaks again and again is slow, not hopeless, as long as every attempt brings something."""
    hub = Hub(Cache(tmp_path / "cache"), patience=1)
    hub_server.fault(route="lfs.get", action="truncate", when="after", after_bytes=1_100_000, times=2, fin=True, delay=0.2)
    hub_server.fault(route="lfs.get", action="truncate", when="after", after_bytes=400_000, times=1, fin=True, delay=0.2)
    hub.download(REPO, source, "ae.pt", hub.tree(REPO, source)["ae.pt"], tmp_path / "ae.pt")
    assert (tmp_path / "ae.pt").read_bytes() == WEIGHTS


def test_part_of_an_earlier_run_is_continued(hub: Hub, hub_server: HubServer, source: str, tmp_path: Path) -> None:
    expect = hub.tree(REPO, source)["ae.pt"]
    part = tmp_path / "ae.pt.part"
    for left, most in ((WEIGHTS[:2_000_000], len(WEIGHTS) - 2_000_000), (WEIGHTS, 0)):
        part.write_bytes(left)
        hub_server.restart_counters()
        hub.download(REPO, source, "ae.pt", expect, tmp_path / "ae.pt")
        assert hub_server.bytes_sent("lfs.get") <= most
        assert (tmp_path / "ae.pt").read_bytes() == WEIGHTS
    for left in (b"other bytes", WEIGHTS + b"too long"):
        part.write_bytes(left)
        hub.download(REPO, source, "ae.pt", expect, tmp_path / "ae.pt")
        assert (tmp_path / "ae.pt").read_bytes() == WEIGHTS


def test_empty_files(hub: Hub, hub_server: HubServer, tmp_path: Path) -> None:
    hub_server.create_repo(REPO)
    sha = hub_server.push(REPO, {"empty": b""})
    expect = hub.tree(REPO, sha)["empty"]
    assert hub.read(REPO, sha, "empty", expect) == b""
    hub.download(REPO, sha, "empty", expect, tmp_path / "empty")
    assert (tmp_path / "empty").read_bytes() == b""


def test_missing_file(hub: Hub, source: str, tmp_path: Path) -> None:
    with pytest.raises(NotVisible, match="no such file"):
        hub.download(REPO, source, "nothing.bin", FileDigest(5, sha256="0" * 64), tmp_path / "x")


def test_full_disk_is_named(hub_server: HubServer, source: str, clean_environ: dict[str, str], tmp_path: Path) -> None:
    """In a process that may not write files of more than a megabyte."""
    program = (
        "import resource\nfrom pathlib import Path\nfrom saesync.cache import Cache\nfrom saesync.errors import Missing\n"
        "from saesync.hub import Hub\nresource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))\n"
        f"hub = Hub(Cache(Path({str(tmp_path / 'c')!r})))\ntree = hub.tree({REPO!r}, {source!r})\n"
        f"try:\n    hub.download({REPO!r}, {source!r}, 'ae.pt', tree['ae.pt'], Path({str(tmp_path / 'ae.pt')!r}))\n"
        "except Missing as error:\n    print(error)\n"
    )
    environment = clean_environ | hub_server.environment(ALICE)
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.startswith("Disk is full: No space is left to download ae.pt"), done.stderr
    assert not (tmp_path / "ae.pt").exists()


# ------------------------------------------------------------------------------------------------------ trouble

TRANSIENT: dict[str, dict[str, Any]] = {
    "429 with Retry-After": {"status": 429, "headers": {"Retry-After": "1"}},
    "429 with RateLimit": {"status": 429, "headers": {"RateLimit": '"api";r=0;t=1'}},
    "500": {"status": 500},
    "503 twice": {"status": 503, "times": 2},
    "reset": {"action": "reset"},
    "reset after": {"action": "reset", "when": "after"},
    "closed": {"action": "close"},
    "truncated": {"action": "truncate", "when": "after", "after_bytes": 3},
}


@pytest.mark.parametrize("fault", TRANSIENT.values(), ids=TRANSIENT.keys())
def test_transient_trouble_is_waited_out(hub: Hub, hub_server: HubServer, source: str, fault: dict[str, Any]) -> None:
    hub_server.fault(route="repo.info", **fault)
    started = time.monotonic()
    assert hub.head(REPO) == Head(source, private=False)
    if fault.get("status") == 429:
        assert time.monotonic() - started >= 1


def test_waiting_is_bounded(hub_server: HubServer, source: str, tmp_path: Path) -> None:
    hasty = Hub(Cache(tmp_path / "hasty"), patience=1)
    for fault, summary in (
        ({"status": 429, "headers": {"Retry-After": "3600"}}, "asks to wait 3600 s"),
        ({"status": 502}, "error 502"),
        ({"action": "reset"}, "broke again and again"),
    ):
        hub_server.restart_counters()
        hub_server.fault(route="repo.info", times=-1, **fault)
        started = time.monotonic()
        with pytest.raises(Unavailable, match=summary) as caught:
            hasty.head(REPO)
        assert time.monotonic() - started < 3
        assert not leaks(caught.value)
    hub_server.restart_counters()
    hub_server.fault(route="lfs.get", times=-1, status=403)
    with pytest.raises(Unavailable, match="object store") as store:
        hasty.read_range(REPO, source, "ae.pt", 0, 10)
    assert not leaks(store.value)


def test_server_messages_are_cleaned(hub: Hub, hub_server: HubServer, source: str) -> None:
    said = f"no {ALICE} at https://store/x?sig=abc \t."
    hub_server.fault(route="repo.info", status=418, message=said)
    with pytest.raises(Refused) as caught:
        hub.head(REPO)
    assert not leaks(caught.value)
    assert "answered 418: no *** at https://store/x" in str(caught.value)


@pytest.mark.parametrize(
    ("retry_after", "ratelimit", "seconds"),
    [
        ("7", None, 7.0),
        ("Thu, 01 Jan 1970 00:01:40 GMT", None, 100.0),
        ("Wed, 31 Dec 1969 00:00:00 GMT", None, 0.0),
        ("soon", None, None),
        (None, '"api";r=0;t=55', 55.0),
        (None, '"api";r=3;t=55', None),
        ("2", '"api";r=0;t=55', 2.0),
        (None, None, None),
    ],
)
def test_what_the_server_asks_to_wait(retry_after: str | None, ratelimit: str | None, seconds: float | None) -> None:
    assert asked_wait(retry_after, ratelimit, now=0.0) == seconds


@pytest.mark.parametrize(
    ("date", "seconds"), [("Wed, 21 Oct 2099 07:28:00 GMT", 5.0), ("Wed, 21 Oct 2099 07:29:00 GMT", 0.0), ("nonsense", None)]
)
def test_a_date_is_told_by_the_servers_clock(date: str, seconds: float | None) -> None:
    response = httpx2.Response(503, headers={"Date": date, "Retry-After": "Wed, 21 Oct 2099 07:28:05 GMT"})
    found = wait_of(response)
    assert found is not None
    assert found == seconds if seconds is not None else found > 1e9


XET_SAYS = [
    ("Server error: Request error: HTTP status server error (503 Service Unavailable), domain: {at}", "error 503"),
    ("Server error: Request error: HTTP status client error (429 Too Many Requests), domain: {at}", "no more requests"),
    ("Network error: Request middleware error: error sending request for url ({at})", "broke again and again"),
    ("Network error: Request error: error decoding response body, domain: no-url", "broke again and again"),
]


@pytest.mark.parametrize(("said", "told"), XET_SAYS)
def test_the_time_that_hf_xet_waits_by_itself_counts(said: str, told: str) -> None:
    """In the words of hf_xet 1.8, which tries for two to four minutes before it says them."""
    address = "https://cas.example/v1/xorbs/default/ab?X-Amz-Signature=secret"
    asked = Asked("commit 2 files to alice/saes", "alice/saes", write=True)
    trouble = diagnose(ConnectionError(said.format(at=address)), asked, "hf_x", "https://hub.example")
    assert trouble is not None
    assert trouble.retry
    (found,) = trouble.error.diagnostics
    assert told in found.detail
    assert "secret" not in found.detail
    patience = Patience(120.0)
    patience.wait(replace(trouble, wait=0.0))
    with pytest.raises(Unavailable):
        patience.wait(replace(trouble, wait=0.0))


def test_patience_counts_attempts_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", lambda _seconds: None)
    patience = Patience(1e9)
    error = Unavailable("s", "d.")
    with pytest.raises(SaesyncError):
        for _ in range(MAX_ATTEMPTS):
            patience.wait(Trouble(error, True, wait=0.0))


def test_whoami(hub: Hub, hub_server: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    who = hub.whoami()
    assert who is not None
    assert who["name"] == "alice"
    monkeypatch.setenv("HF_TOKEN", "hf_nobody")
    with pytest.raises(NotVisible, match="not valid"):
        hub.whoami()
    monkeypatch.delenv("HF_TOKEN")
    assert hub.whoami() is None


def test_endpoint_and_token_come_from_the_environment(
    hub_server: HubServer, source: str, clean_environ: dict[str, str], tmp_path: Path
) -> None:
    """In a process of its own, as users run it; and importing the module loads no HTTP client."""
    program = (
        "import sys\nfrom saesync.hub import Hub\nfrom saesync.cache import Cache\nfrom pathlib import Path\n"
        "assert 'huggingface_hub' not in sys.modules and 'httpx2' not in sys.modules\n"
        f"hub = Hub(Cache(Path({str(tmp_path / 'c')!r})))\nprint(hub.head({REPO!r}).sha, hub.can_write({REPO!r}))\n"
        "assert 'huggingface_hub.hf_api' not in sys.modules and 'torch' not in sys.modules\n"
    )
    environment = clean_environ | hub_server.environment(ALICE)
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.split() == [source, "True"], done.stderr
    implicit = environment | {"HF_HUB_DISABLE_IMPLICIT_TOKEN": "1"}
    done = subprocess.run([sys.executable, "-c", program], env=implicit, capture_output=True, text=True, check=False)
    assert done.stdout.split() == [source, "False"], done.stderr
    assert os.environ["HF_HOME"] in environment["HF_HOME"]


class Answering(http.server.BaseHTTPRequestHandler):
    """Answers every request with the same body."""

    body = b""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.body)))
        self.end_headers()
        self.wfile.write(self.body)

    def log_message(self, *args: object) -> None:
        """Say nothing."""


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[",
        b"[" * 100_000,
        b"[1]",
        b'[{"type": "file"}]',
        b'[{"type": "file", "path": 7, "oid": "b"}]',
        b'{"branches": [1]}',
    ],
)
def test_answers_that_no_hub_gives(body: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is one clear error, or nothing at all is claimed: never a crash, never a file less."""
    monkeypatch.setenv("HF_TOKEN", ALICE)
    handler = type("Handler", (Answering,), {"body": body})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        hub = Hub(Cache(tmp_path), f"http://127.0.0.1:{server.server_port}", patience=0)
        calls: list[Callable[[], object]] = [lambda: hub.head(REPO), lambda: hub.tree(REPO, "a" * 40)]
        if not body.startswith(b"{"):
            calls += [lambda: hub.reachable(REPO, "a" * 40), hub.whoami]
        elif hub.reachable(REPO, "a" * 40):
            pytest.fail("no tip was named")
        for call in calls:
            with pytest.raises((Unavailable, NotVisible), match="Unexpected answer"):
                call()
        server.shutdown()

"""Tokens exchanged for a CI job's identity: for writing to one repo, and for nothing else."""

from __future__ import annotations

import http.server
import io
import json
import subprocess
import sys
import threading
import time
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from release_world import REPO, Shop, asked
from servers.loopback import ALICE, ALICE_READ, BOB, HubServer

from saesync import preflight
from saesync.cache import Cache
from saesync.errors import Missing, Unavailable
from saesync.hub import Hub
from saesync.hub.client import Client
from saesync.streams import write_line

IDENTITY = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJyZXBvOmFjbWUvc2FlcyJ9.c2lnbmF0dXJl"
REQUEST_TOKEN = "ghs_request_an_identity"
READS = frozenset({"repo.info", "tree", "refs", "resolve.get", "resolve.head", "whoami", "commits", "xet-read-token"})


@dataclass
class Issuer:
    """What GitHub Actions gives a job with ``id-token: write``: an address that hands out identities."""

    url: str = ""
    asked: list[dict[str, Any]] = field(default_factory=list)
    answers: list[int] = field(default_factory=list)  # statuses of the next answers; 200 when there are none


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    known = Issuer()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            query = dict(urllib.parse.parse_qsl(urllib.parse.urlsplit(self.path).query))
            known.asked.append({"authorization": self.headers.get("Authorization"), **query})
            status = known.answers.pop(0) if known.answers else 200
            body = json.dumps({"value": IDENTITY} if status == 200 else {"message": "no"}).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            """Nothing is logged."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    known.url = f"http://127.0.0.1:{server.server_address[1]}/token?api-version=2.0"
    yield known
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def shop(hub_server: HubServer, issuer: Issuer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shop:
    """A CI job that may publish to REPO: a read-only token for sources, an identity for the rest."""
    hub_server.create_repo(REPO)
    hub_server.config(oidc={IDENTITY: {"user": "alice", "resource": REPO}})
    hub_server.restart_counters()
    monkeypatch.setenv("HF_TOKEN", ALICE_READ)
    monkeypatch.setenv("SAESYNC_HF_OIDC", "1")
    monkeypatch.setenv("ACTIONS_ID_TOKEN_REQUEST_URL", issuer.url)
    monkeypatch.setenv("ACTIONS_ID_TOKEN_REQUEST_TOKEN", REQUEST_TOKEN)
    return Shop(hub_server, tmp_path, [asked()])


def by_token(server: HubServer) -> dict[str | None, set[str]]:
    """Routes by the token that came with the request (origin "hub" only)."""
    found: dict[str | None, set[str]] = {}
    for entry in server.log():
        if entry["origin"] == "hub" and entry["route"] not in ("lfs.put", "telemetry"):
            found.setdefault(entry["auth"], set()).add(entry["route"])
    return found


def test_reads_with_one_token_writes_with_the_exchanged(shop: Shop, issuer: Issuer) -> None:
    plan, context = shop.look()
    assert preflight.check(plan, context) == ()
    assert shop.server.count("oauth.token") == 1, "one look at the rights"
    result = shop.carry_out(plan, context)
    assert result.exit_code == 0, result.failures
    assert len(shop.tags()) == 1
    assert shop.server.count("oauth.token") == 2, "and one for all that is written"
    used = by_token(shop.server)
    assert {"commit", "tag.create", "preupload", "auth-check"} <= used["alice:write"]
    assert used["alice:write"] & READS == set()
    assert used["alice:read"] <= READS
    assert used.get(None, set()) <= {"oauth.token", "lfs.verify", "refs"}
    assert issuer.asked[0] == {"authorization": f"Bearer {REQUEST_TOKEN}", "api-version": "2.0", "audience": shop.server.base}
    assert shop.server.stats()["auth_leaks"] == 0
    told = f"{shop.events} {result}"
    assert not any(secret in told for secret in (IDENTITY, REQUEST_TOKEN, "hf_oidc_", ALICE_READ))
    assert not [path for path in shop.cache.root.rglob("*") if path.is_file() and b"hf_oidc_" in path.read_bytes()]
    shop.server.restart_counters()
    assert shop.apply().exit_code == 0
    assert shop.server.count("oauth.token") == 0, "nothing to write, no token"


def test_public_reads_need_no_token(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    assert shop.apply().exit_code == 0
    used = by_token(shop.server)
    assert "tree" in used[None]
    assert used["alice:write"] & READS == set()


def test_switched_off_it_is_not_used(shop: Shop, issuer: Issuer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAESYNC_HF_OIDC", "0")
    monkeypatch.setenv("HF_TOKEN", ALICE)
    assert shop.apply().exit_code == 0
    assert issuer.asked == []
    assert shop.server.count("oauth.token") == 0


def test_each_repo_has_a_token_of_its_own(shop: Shop) -> None:
    """One that this job is not trusted with fails alone, and says what to do."""
    other = "alice/other"
    shop.server.create_repo(other)
    shop.releases.append(asked("mlp", ("layer_8",), other))
    result = shop.apply()
    assert {address: str(outcome) for address, outcome in result.outcomes.items()} == {
        "res/layer_0": "published",
        "res/layer_1": "published",
        "mlp/layer_8": "failed",
    }
    detail = result.failures[0].diagnostics[0].detail
    assert "no token for alice/other" in detail
    assert "trusted publisher" in detail
    (found,) = preflight.check(*shop.look())
    assert found.summary == "Hub does not trust this job"
    shop.server.config(oidc={IDENTITY: {"user": "alice", "resource": None}})
    assert shop.apply().exit_code == 0
    assert len(shop.tags(other)) == 1


def test_a_token_is_renewed_before_it_ends(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    client = Client(patience=2)
    shop.server.config(oidc={IDENTITY: {"user": "alice", "resource": None, "expires_in": 2}})
    first = client.write_token(REPO)
    assert client.write_token(REPO) == first != client.write_token("alice/other")
    time.sleep(1.05)
    assert client.write_token(REPO) != first
    shop.server.config(oidc={IDENTITY: {"user": "alice", "resource": None}})
    lasting = Client(patience=2)
    found = {lasting.write_token(REPO) for _ in range(3)}
    assert len(found) == 1


def test_threads_share_one_exchange(shop: Shop) -> None:
    client = Client(patience=2)
    found: list[str | None] = []
    threads = [threading.Thread(target=lambda: found.append(client.write_token(REPO))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 1
    assert shop.server.count("oauth.token") == 1


FAULTS: dict[str, dict[str, Any]] = {
    "503": {"status": 503},
    "reset": {"action": "reset"},
    "lost reply": {"when": "after", "action": "reset"},
    "429": {"status": 429, "headers": {"Retry-After": "1"}},
    "not JSON": {"action": "truncate", "after_bytes": 5},
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS.keys())
@pytest.mark.parametrize("hub_process", ["lfs"], indirect=True)
def test_transient_trouble_of_the_exchange_is_waited_out(shop: Shop, fault: dict[str, Any]) -> None:
    shop.server.fault(route="oauth.token", **fault)
    assert Client(patience=4).write_token(REPO)
    assert shop.server.stats()["faults"][0]["hits"] == 1


def test_what_is_wrong_is_said_in_words(shop: Shop, issuer: Issuer, monkeypatch: pytest.MonkeyPatch) -> None:
    issuer.answers += [500]
    assert Client(patience=2).write_token(REPO), "the CI system has its moments, too"
    for status in (401, 403, 302):
        issuer.answers += [status]
        with pytest.raises(Missing, match="id-token: write") as caught:
            Client(patience=2).write_token(REPO)
        assert IDENTITY not in str(caught.value) + str(caught.value.__context__)
    shop.server.fault(route="oauth.token", status=503, times=-1)
    with pytest.raises(Unavailable, match="exchange this job's identity"):
        Client(patience=1).write_token(REPO)
    shop.server.restart_counters()
    monkeypatch.delenv("ACTIONS_ID_TOKEN_REQUEST_URL")
    with pytest.raises(Missing, match="permissions: id-token: write"):
        Client(patience=1).write_token(REPO)
    monkeypatch.setenv("HF_OIDC_ID_TOKEN", IDENTITY)
    assert Client(patience=1).write_token(REPO), "other CI systems hand out the identity themselves"
    monkeypatch.setenv("HF_OIDC_ID_TOKEN", "eyJ.forged.identity")
    with pytest.raises(Missing, match="trusted publisher") as caught:
        Client(patience=1).write_token(REPO)
    assert "forged" not in str(caught.value)


def test_what_was_exchanged_is_never_printed(shop: Shop) -> None:
    token = Client(patience=2).write_token(REPO)
    assert token is not None
    stream = io.StringIO()
    write_line(stream, f"a library quotes Bearer {token} and {IDENTITY}")
    assert stream.getvalue() == "a library quotes Bearer *** and ***\n"


def test_a_pull_request_is_opened_by_the_account_of_the_token(
    shop: Shop, issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever asks for one may not write there, so that nobody would trust the job with a token to write."""
    monkeypatch.setenv("HF_TOKEN", BOB)
    shop.releases = [asked(pull_request=True)]
    assert preflight.check(*shop.look()) == ()
    assert shop.apply().exit_code == 0
    assert issuer.asked == []
    assert set(by_token(shop.server)) - {None} == {"bob:write"}


@pytest.mark.parametrize("hub_process", ["lfs"], indirect=True)
def test_the_clients_own_variable_is_refused(
    shop: Shop, issuer: Issuer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clean_environ: dict[str, str]
) -> None:
    """It would take the place of HF_TOKEN in every call, silently."""
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    before = Hub(Cache(tmp_path))
    monkeypatch.setenv("HF_OIDC_RESOURCE", REPO)
    with pytest.raises(Missing, match=r"HF_OIDC_RESOURCE is set.*SAESYNC_HF_OIDC=1"):
        Hub(Cache(tmp_path))
    with pytest.raises(Missing, match="HF_OIDC_RESOURCE is set"):
        before.head(REPO)
    assert issuer.asked == []
    manifest = tmp_path / "manifests" / "res.yaml"
    manifest.parent.mkdir()
    (tmp_path / "model").mkdir()
    manifest.write_text(
        "apiVersion: saesync/v1\nrelease: res\nmodel: {path: ../model}\nsaes:\n  id: x\n  hook: blocks.0.hook_resid_post\n"
        f"  source: {{path: ../x.pth, format: goodfire}}\npublish: {{huggingface: {REPO}}}\n"
    )
    environment = {**clean_environ, **shop.server.environment(ALICE_READ), "HF_OIDC_RESOURCE": REPO}
    words = [sys.executable, "-m", "saesync", "plan", str(manifest), "--root", str(tmp_path)]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "HF_OIDC_RESOURCE is set" in done.stderr
    assert "Traceback" not in done.stderr
    assert shop.server.count() == 0

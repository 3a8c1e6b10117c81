"""The program against a loopback Hub, in both upload protocols: nothing is sent twice, stock sae_lens loads what was
published, and no secret of the environment is ever shown or kept."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from cli_support import Done, Place, copy_of, files_below
from servers.loopback import ALICE, HubServer

TARGET = "sae-org/tiny"
AWS, DSN = "canary-aws-4f1e9c", "postgres://np:canary-dsn-77ab@db.example/np"
IDS = ("layer_0/topk", "layer_0/standard", "layer_1/batchtopk")


@pytest.fixture
def hub_place(applied: Place, hub_server: HubServer, tmp_path: Path) -> Place:
    """A world that publishes to the loopback Hub, in whose environment secrets lie about. Its cache is its own."""
    place = copy_of(applied, tmp_path / "world", cache=tmp_path / "cache", published=False)
    place.world.publish_to({"huggingface": TARGET})
    home = {"HF_HOME": str(tmp_path / "hf-home"), "SAESYNC_RETRY_SECONDS": "1"}
    secrets = {"AWS_SECRET_ACCESS_KEY": AWS, "NEURONPEDIA_DSN": DSN}
    base = {name: value for name, value in place.environment.items() if name != "HF_HUB_DISABLE_XET"}
    return Place(place.world, {**base, **hub_server.environment(ALICE), **home, **secrets})


def test_checking_asks_nobody_and_needs_no_torch(hub_place: Place, hub_server: HubServer) -> None:
    hub_server.restart_counters()
    assert hub_place.run_without_torch("check").code == 0
    assert hub_server.count() == 0
    hub_place.run_without_torch("plan")
    assert hub_server.count() > 0


LOAD = """
import json, sys, warnings
warnings.simplefilter("ignore")
from sae_lens import SAE
import torch
found = {}
for sae_id in json.loads(sys.argv[2]):
    sae = SAE.from_pretrained(sys.argv[1], sae_id, device="cpu")
    here = SAE.load_from_disk(sys.argv[3] + "/" + sae_id, device="cpu") if sys.argv[3] else sae
    rows = torch.randn(64, sae.cfg.d_in, generator=torch.Generator().manual_seed(0))
    equal = all(torch.equal(a, b) for a, b in zip(sae.state_dict().values(), here.state_dict().values(), strict=True))
    equal = equal and torch.equal(sae.encode(rows), here.encode(rows)) and sae.cfg.to_dict() == here.cfg.to_dict()
    meta = sae.cfg.metadata
    names = ("hook_name", "hf_hook_name", "model_name", "neuronpedia_id", "sae_lens_version")
    found[sae_id] = {"equal": equal, "architecture": sae.cfg.architecture(), **{n: getattr(meta, n, None) for n in names}}
print(json.dumps(found))
"""


def loaded(place: Place, local: Place | None, ids: Sequence[str]) -> dict[str, dict[str, Any]]:
    """What stock sae_lens makes of the published SAEs, in a process that knows nothing of saesync."""
    command = [sys.executable, "-c", LOAD, TARGET, json.dumps(ids), str(local.world.published) if local else ""]
    done = subprocess.run(command, env=dict(place.environment), capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_what_is_published_is_not_sent_again(hub_place: Place, hub_server: HubServer) -> None:
    first = hub_place.run("apply", "-y")
    assert first.code == 1, first.said
    assert "4 published, 1 failing" in first.err
    assert hub_server.stats()["auth_leaks"] == 0
    assert set(json.loads(hub_server.file(TARGET, "saesync/tiny-res.json"))["saes"]) == set(IDS)

    hub_server.restart_counters()
    before = hub_server.head(TARGET)
    again = hub_place.run_without_torch("apply", "-y", "--format", "json")
    assert again.code == 1
    assert [event["type"] for event in again.events()] == ["version", "plan", "summary"]
    assert hub_server.commits_landed() == hub_server.uploaded_bytes() == 0
    assert hub_server.head(TARGET) == before
    assert hub_place.run("plan", "--check", "manifests/good.yaml").code == 0


@pytest.mark.parametrize("hub_process", ["lfs", pytest.param("xet", marks=pytest.mark.slow)], indirect=True)
def test_stock_sae_lens_loads_it_whole(hub_place: Place, applied: Place) -> None:
    assert hub_place.run("apply", "-y", "manifests/good.yaml").code == 0
    for sae_id, found in loaded(hub_place, applied, IDS).items():
        layer = sae_id[6]
        assert found["equal"], found
        assert found["hook_name"] == f"blocks.{layer}.hook_resid_post"
        assert found["hf_hook_name"] == f"transformer.h.{layer}"
        assert found["model_name"] == "model"
        assert found["sae_lens_version"]


def snippets(card: str) -> list[str]:
    """The Python blocks of a card, in order."""
    return [block.split("```")[0] for block in card.split("```python\n")[1:]]


@pytest.mark.parametrize("hub_process", ["lfs"], indirect=True)
def test_the_cards_snippets_run_and_a_moved_tag_is_put_back(hub_place: Place, hub_server: HubServer) -> None:
    """The pinned one gives what it was tagged with, whatever came later; the other what is there now."""
    done = hub_place.run("apply", "-y", "manifests/good.yaml")
    assert done.code == 0, done.said
    (name,) = hub_server.git(TARGET, "tag").split()
    assert f"✓ tiny-res: tagged {name}" in done.err
    plain, pinned = snippets(hub_server.file(TARGET, "README.md").decode())
    cfg = hub_server.git(TARGET, "show", f"{name}:layer_0/standard/cfg.json")
    hub_server.push(TARGET, {"layer_0/standard/cfg.json": cfg.replace('"model_name": "model"', '"model_name": "later"').encode()})
    look = "print(sae.cfg.metadata.model_name)"
    command = [sys.executable, "-W", "ignore", "-c", "\n".join([pinned, look, plain, look])]
    loads = subprocess.run(command, env=dict(hub_place.environment), capture_output=True, text=True, timeout=120, check=False)
    assert loads.returncode == 0, loads.stderr
    assert loads.stdout.splitlines()[-2:] == ["model", "later"]

    hub_server.push(TARGET, {"layer_0/standard/cfg.json": cfg.encode()})
    right = hub_server.git(TARGET, "rev-parse", name)
    hub_server.git(TARGET, "tag", "-f", name, hub_server.commits(TARGET)[1])
    held = hub_place.run("plan", "--check", "manifests/good.yaml")
    assert held.code == 1
    assert f"! tag  held  {name} was moved to" in held.out
    assert hub_place.run("plan", "--replace", "tiny-re", "manifests/good.yaml").code == 2, "no such release"
    done = hub_place.run("apply", "-y", "--replace", "tiny-res", "manifests/good.yaml")
    assert done.code == 0, done.said
    assert hub_server.git(TARGET, "rev-parse", name) != right, "to a commit that holds the same"
    assert hub_place.run("plan", "--check", "manifests/good.yaml").code == 0
    again = hub_place.run("apply", "-y", "--replace", "tiny-res", "manifests/good.yaml")
    assert (again.code, "nothing here needs --replace 'tiny-res'" in again.said) == (0, True)


@pytest.mark.slow
@pytest.mark.parametrize("hub_process", ["lfs"], indirect=True)
def test_neuronpedia_ids_reach_stock_sae_lens(hub_place: Place) -> None:
    with_neuronpedia(hub_place)
    done = hub_place.run("apply", "-y", "manifests/failing.yaml")
    assert done.code == 1
    assert "1 published" in done.err
    (found,) = loaded(hub_place, None, ("sweep/layer_0",)).values()
    assert found["neuronpedia_id"] == "tiny/0-res-tiny"
    assert found["hook_name"] == "blocks.0.hook_resid_post"


@pytest.mark.parametrize("hub_process", ["lfs"], indirect=True)
def test_pin_fills_in_what_the_hub_says(hub_place: Place, hub_server: HubServer) -> None:
    hub_server.create_repo("alice/model")
    sha = hub_server.push("alice/model", {"config.json": b"{}"})
    path = hub_place.folder / "manifests" / "failing.yaml"
    before = path.read_text().replace("path: ../model", "name: alice/model  # ours")
    path.write_text(before)
    told = hub_place.run("check", "manifests/failing.yaml")
    assert told.code == 1
    assert "`saesync pin manifests/failing.yaml` fills it in" in told.err
    done = hub_place.run("pin", "manifests/failing.yaml")
    assert done.code == 0, done.said
    assert done.out == f"manifests/failing.yaml:10:9: model.revision of alice/model is {sha}\n"
    assert path.read_text() == before.replace("alice/model  # ours", f"alice/model  # ours\n  revision: {sha}")
    assert hub_place.run("pin", "manifests/failing.yaml").out == "manifests/failing.yaml: nothing to pin.\n"
    assert hub_place.run("check", "manifests/failing.yaml").code == 0
    path.write_text(before.replace("alice/model", "alice/nothing"))
    unknown = hub_place.run("pin", "manifests/failing.yaml")
    assert unknown.code == 1
    assert "alice/nothing" in unknown.err
    hub_server.move("alice/model", "sae-org/model")
    path.write_text(before)
    renamed = hub_place.run("pin", "manifests/failing.yaml")
    assert renamed.code == 1
    assert "alice/model is called sae-org/model now. Write the new name; old names are not followed." in renamed.err
    assert path.read_text() == before


@pytest.mark.parametrize("hub_process", ["lfs"], indirect=True)
def test_the_hub_is_inspected_by_its_address(hub_place: Place, hub_server: HubServer) -> None:
    assert hub_place.run("apply", "-y", "manifests/good.yaml").code == 0
    found = hub_place.run("inspect", f"hf://{TARGET}")
    assert found.code == 0
    assert "\nsaes:\n  for_each:\n" in found.out
    assert f"    repo: {TARGET}\n    revision: " in found.out
    missing = hub_place.run("inspect", "hf://sae-org/nothing")
    assert missing.code == 1
    assert "There is no model repository sae-org/nothing on the Hub." in missing.err


@pytest.mark.parametrize("hub_process", ["lfs"], indirect=True)
def test_trouble_that_all_share_is_said_once(hub_place: Place, hub_server: HubServer) -> None:
    hub_server.create_repo(TARGET, private=True)
    blind = hub_place.run("apply", "-y", HF_TOKEN="hf_mistyped")
    assert blind.code == 1
    assert "5 unknown." in blind.err, "five SAEs, and not their two releases once more"
    assert blind.err.count("The Hub does not accept the token") == 1
    assert "hf_mistyped" not in blind.said
    planned = hub_place.run("plan", "--check", HF_TOKEN="hf_mistyped")
    assert planned.code == 1
    assert "5 unknown." in planned.out
    plain = hub_place.run("plan", HF_TOKEN="hf_mistyped")
    assert (plain.code, plain.out) == (0, planned.out), "the plan was made, and says what it could not see"
    hub_server.fault(route="commit", status=503, times=-1)
    for manifest in (hub_place.world.good, hub_place.world.failing):  # both are published there
        manifest.write_text(manifest.read_text().replace("  license: mit", "  license: mit\n  private: true"))
    broken = hub_place.run("apply", "-y", "manifests/good.yaml")
    assert broken.code == 1
    assert broken.err.count("answered with error 503") == 1
    assert "tiny-res/layer_0/topk and 2 more" in broken.err
    assert len([line for line in broken.err.splitlines() if line.startswith("  ✗ ") and len(line) < 160]) == 3


# -------------------------------------------------------------------------------------------------------- secrets


def with_neuronpedia(place: Place) -> None:
    """A manifest that names a secret, as they do: by its variable."""
    section = "\nneuronpedia:\n  model: tiny\n  set: res-tiny\n  postgres: {dsn_from: NEURONPEDIA_DSN}\n"
    place.world.failing.write_text(place.world.failing.read_text() + section)


def spilt(place: Place, server: HubServer, *runs: Done) -> list[str]:
    """Where a secret can be read that nobody should see there."""
    secrets = [secret.encode() for secret in (ALICE, AWS, DSN, "canary")]
    texts = {f"output {number}": run.said.encode() for number, run in enumerate(runs)}
    kept = {str(path): data for path, data in files_below(place.folder, place.cache, Path(place.environment["HF_HOME"]))}
    published = {}
    if (server.root / "repos" / "models" / f"{TARGET}.git").exists():
        published = {f"hub {name}": server.file(TARGET, name) for name in server.tree_of(TARGET)}
    everything = {**texts, **kept, **published}
    assert len(everything) > 30
    return [name for name, data in everything.items() if any(secret in data for secret in secrets)]


FAULTS: dict[str, Mapping[str, Any]] = {
    "none": {},
    "commits fail": {"route": "commit", "status": 503, "times": -1},
    "token is not known": {"route": "whoami", "status": 401, "times": -1},
    "storage refuses": {"route": "lfs.batch", "status": 403, "times": -1},
    "connection breaks": {"route": "commit", "action": "reset", "when": "before", "times": -1},
    "replies are lost": {"route": "commit", "action": "reset", "when": "after"},
    "commits are rationed": {"route": "commit", "status": 429, "headers": {"Retry-After": "3600"}, "times": -1},
    "secrets come back": {"route": "commit", "status": 502, "headers": {"X-Error-Message": ALICE}, "body": ALICE, "times": -1},
    "listings are cut short": {"route": "tree", "action": "truncate", "after_bytes": 5, "times": -1},
    "xet gives no token": {"route": "xet-write-token", "status": 403, "times": -1},
    "xet refuses": {"route": "cas.xorbs", "status": 403, "times": -1},
}
SURVIVED = ("none", "replies are lost")
QUICK = ("none", "commits fail", "token is not known")
MET = [
    pytest.param("xet" if "xet" in name else "lfs", name, marks=() if name in QUICK else pytest.mark.slow, id=name)
    for name in FAULTS
]


@pytest.mark.parametrize(("hub_process", "fault"), MET, indirect=["hub_process"])
def test_no_secret_is_ever_shown_or_kept(hub_place: Place, hub_server: HubServer, fault: str) -> None:
    with_neuronpedia(hub_place)
    if FAULTS[fault]:
        hub_server.fault(FAULTS[fault])
    runs = [
        hub_place.run("--debug", "plan", "--out", "p.json"),
        hub_place.run("apply", "--debug", "-y", "--format", "json", "manifests/good.yaml"),
        hub_place.run("--debug", "apply", "-y", "manifests/good.yaml"),
        hub_place.run("show", "tiny-res/layer_0/topk", "--debug", "--format", "json"),
        hub_place.run("plan", "--format", "markdown"),
    ]
    assert runs[1].code == (0 if fault in SURVIVED else 1), runs[1].said
    assert not FAULTS[fault] or hub_server.admin("faults")["faults"][0]["hits"] > 0, "the fault was never met"
    assert spilt(hub_place, hub_server, *runs) == []


@pytest.mark.parametrize("hub_process", ["lfs"], indirect=True)
def test_a_spilt_secret_would_be_found(hub_place: Place, hub_server: HubServer) -> None:
    """A guard of the test above."""
    (hub_place.cache / "note").write_text(f"Authorization: Bearer {ALICE}")
    (hub_place.folder / "plan.json").write_text(AWS)
    assert len(spilt(hub_place, hub_server, Done(0, "", DSN))) == 3

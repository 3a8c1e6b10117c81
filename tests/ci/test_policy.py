"""The policy: read with its places, what it allows, and that what it does not allow is held and stops nothing else."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from planning import World, published, release

sys.path.insert(0, str(Path(__file__).parent))

from checkouts import manifest

from saesync import schema
from saesync.errors import Origin, Refused
from saesync.model import Plan, PublishSpec, RegisterSpec, Release, Status, StepKind
from saesync.planfile import plan_json
from saesync.planner import hold
from saesync.policy import OPEN, Policy, read_policy
from saesync.reason import ReasonCode
from saesync.render import plan_text
from saesync.schema import policy as policy_schema

ROOT = Path(__file__).parent.parent.parent
WHOLE = """\
apiVersion: saesync/v1
targets:
  huggingface: [acme/*-saes, other/one]
  local: [published/**]
  saelens: [decoderesearch/SAELens, ./registry.git]
secrets:
  NEURONPEDIA_DSN: ["db.acme.example:5432"]
roots: [../weights]
trust: [{sha256}]
publishers: [Acme-Bot]
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "saesync-policy.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_everything_in_it(tmp_path: Path) -> None:
    found = read_policy(written(tmp_path, WHOLE.format(sha256="a" * 64)))
    assert found.allows_place("huggingface", "acme/gemma-saes")
    assert found.allows_place("huggingface", "other/one")
    assert not found.allows_place("huggingface", "acme/gemma")
    assert not found.allows_place("huggingface", "acme/x/y-saes")
    assert not found.allows_place("huggingface", "Acme/gemma-saes")
    assert found.allows_place("local", str(tmp_path / "published" / "a" / "b"))
    assert not found.allows_place("local", str(tmp_path / "published"))
    assert found.allows_place("saelens", "decoderesearch/SAELens")
    assert found.allows_place("saelens", str(tmp_path / "registry.git"))
    assert not found.allows_place("records", "anything")
    assert found.roots == ((tmp_path / "../weights").resolve(),)
    assert found.trusts("a" * 64)
    assert not found.trusts("b" * 64)


def test_a_secret_is_bound_to_its_hosts(tmp_path: Path) -> None:
    found = read_policy(written(tmp_path, WHOLE.format(sha256="a" * 64)))
    assert found.allows_secret("NEURONPEDIA_DSN", "DB.acme.example:5432")
    assert not found.allows_secret("NEURONPEDIA_DSN", "db.acme.example")
    assert not found.allows_secret("NEURONPEDIA_DSN", "db.acme.example:5433")
    assert not found.allows_secret("NEURONPEDIA_DSN", "db.acme.example.evil.com:5432")
    assert not found.allows_secret("OTHER_DSN", "db.acme.example:5432")


def test_whose_records_count(tmp_path: Path) -> None:
    listed = read_policy(written(tmp_path, WHOLE.format(sha256="a" * 64))).with_account("alice")
    assert listed.counts("acme-bot")
    assert not listed.counts("alice")
    assert not listed.counts(None)
    own = read_policy(written(tmp_path, "apiVersion: saesync/v1\ntargets: {}\n"))
    assert not own.counts("alice")
    assert own.with_account("alice").counts("Alice")
    assert not own.with_account("alice").counts("mallory")
    assert not OPEN.counts("alice")
    assert OPEN.with_account("alice").counts("alice")


def test_without_a_policy_everything_is_allowed() -> None:
    assert OPEN.allows_place("huggingface", "any/thing")
    assert OPEN.allows_secret("X", "host")
    assert OPEN.trusts("a" * 64)
    assert OPEN.refusals([release(location="any/thing")]) == ()


@pytest.mark.parametrize(
    ("text", "summary", "place", "words"),
    [
        ("targets: {}\n", "Missing key", "1:1", "missing from the policy"),
        ("apiVersion: saesync/v1\n", "Missing key", "1:1", '"targets" is missing'),
        ("apiVersion: saesync/v1\ntargets: {hf: [a/b]}\n", "Unknown key", "2:11", "Known: huggingface, local, saelens"),
        ("apiVersion: saesync/v1\ntargets: {}\ntrust: [abc]\n", "Invalid value", "3:9", "sha256"),
        ("apiVersion: saesync/v1\ntargets: {}\nsecrets: {HF_TOKEN: [a.b]}\n", "Invalid value", "3:", "never read"),
        ("apiVersion: saesync/v1\ntargets: {}\nsecrets: {DB: ['*']}\n", "Invalid value", "3:16", "no `*`"),
        ("apiVersion: saesync/v1\ntargets: {}\nroots: [/]\n", "Root is refused", "3:9", "every path"),
        ("apiVersion: saesync/v1\ntargets: {}\ntargets: {}\n", "Duplicate key", "3:1", "Remove one"),
        ("- a\n", "Not a policy", "1:1", "A policy is a mapping"),
        ("apiVersion: saesync/v2\ntargets: {}\n", "Unknown value", "1:13", "saesync/v1"),
        ("", "Policy is empty", "1:1", "holds nothing"),
    ],
)
def test_what_is_wrong_is_said_at_its_place(tmp_path: Path, text: str, summary: str, place: str, words: str) -> None:
    with pytest.raises(Refused) as caught:
        read_policy(written(tmp_path, text))
    (found,) = caught.value.diagnostics
    assert found.summary == summary
    assert str(found.origin).split("saesync-policy.yaml:")[1].startswith(place)
    assert words in found.detail
    assert not re.search(r"manifest\b", found.detail) or summary == "Root is refused"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"apiVersion: saesync/v1\n", "Where manifests may publish, keep records and register."),
        (b"\xff\xfe", "Policies are UTF-8 text"),
        (b"- a\n", "A policy is a mapping"),
        (b"apiVersion: saesync/v1\ntargets: {}\nhook: x\n", "is not a key of the policy"),
    ],
)
def test_what_is_said_of_policies_is_not_said_of_manifests(tmp_path: Path, data: bytes, words: str) -> None:
    path = tmp_path / "saesync-policy.yaml"
    path.write_bytes(data)
    with pytest.raises(Refused, match=words):
        read_policy(path)


def test_a_policy_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="Policy cannot be read"):
        read_policy(tmp_path / "none.yaml")


def test_schema_is_committed_and_printed() -> None:
    text = json.dumps(policy_schema.build(), indent=2, ensure_ascii=False) + "\n"
    assert (ROOT / "saesync" / "schema" / "policy.json").read_text(encoding="utf-8") == text, "run `make docs`"
    Draft202012Validator.check_schema(policy_schema.build())
    done = subprocess.run([sys.executable, "-m", "saesync", "schema", "--policy"], capture_output=True, check=True)
    assert done.stdout.decode() == text
    assert "saelens" in schema.build()["properties"]["register"]["properties"]  # the key that policies speak of


@given(st.text(st.sampled_from("ab/*."), max_size=8), st.text(st.sampled_from("ab/."), max_size=8))
def test_a_star_never_crosses_a_slash(glob: str, location: str) -> None:
    policy = Policy(targets={"huggingface": (glob,)})
    if policy.allows_place("huggingface", location) and "**" not in glob:
        assert glob.count("/") == location.count("/")


# --------------------------------------------------------------------------------------------------- what is held


def two() -> tuple[World, Policy]:
    evil = release("evil", ["layer_0", "layer_1"], location="evil/x")
    spec = PublishSpec("huggingface", "evil/x", "mit", origin=Origin("manifests/evil.yaml", 9, 16))
    world = World([release("good", ["layer_0"], location="acme/saes"), replace(evil, publish=spec)])
    return world, Policy(targets={"huggingface": ("acme/*",)}, file="saesync-policy.yaml")


def held(world: World, policy: Policy, **choices: tuple[str, ...]) -> Plan:
    plan = world.plan(**choices)
    return hold(plan, policy.refusals(plan.releases))


def test_a_place_that_is_not_allowed_is_held_by_name_and_stops_nothing_else() -> None:
    world, policy = two()
    before, plan = world.plan(), held(world, policy)
    assert [item for item in plan.items if item.release == "good"] == [item for item in before.items if item.release == "good"]
    evil = [item for item in plan.items if item.release == "evil"]
    assert {item.id for item in evil} == {"layer_0", "layer_1", None}
    for item in evil:
        assert (item.status, item.held, item.steps) == (Status.HELD, True, ())
        assert item.reasons[0].code is ReasonCode.NOT_ALLOWED
        assert str(item.origin) == "manifests/evil.yaml:9:16"
    assert plan.digest != before.digest
    text = plan_text(plan_json(plan))
    assert "saesync-policy.yaml does not allow publish.huggingface evil/x (manifests/evil.yaml:9:16)" in text
    assert text.count("does not allow") == 1  # once for the whole release


def test_nothing_is_deleted_from_a_place_that_is_not_allowed() -> None:
    """Neither what a manifest retires nor what is pruned of a release that no manifest names."""
    world = published(release("old", ["layer_0"], location="evil/x"), release("lost", ["layer_9"], location="evil/x"))
    world.releases = [replace(world.releases[0], retire=True)]
    assert any(StepKind.DELETE in item.steps for item in world.plan(prune=("lost",)).items)
    plan = held(world, two()[1], prune=("lost",))
    assert {item.release for item in plan.items} == {"old", "lost"}
    assert not any(item.steps for item in plan.items)


def test_records_and_registry_are_places_too() -> None:
    def named(**changes: object) -> Release:
        return release("good", ["layer_0"], location="acme/saes", **changes)

    policy = replace(two()[1], targets={"huggingface": ("acme/*",), "saelens": ("decoderesearch/SAELens",)})
    world = World([named(records=PublishSpec("huggingface", "evil/records"))])
    assert all(item.held for item in held(world, policy).items)
    origin = Origin("manifests/good.yaml", 30, 1)
    world = World([named(register=RegisterSpec("decoderesearch/SAELens", origin=origin))])
    assert held(world, policy) == world.plan()
    world = World([named(register=RegisterSpec("evil/SAELens", origin=origin))])
    plan = held(world, policy)
    refused = [item for item in plan.items if item.reasons and item.reasons[0].code is ReasonCode.NOT_ALLOWED]
    assert [(item.id, item.held, item.steps, str(item.origin)) for item in refused] == [(None, True, (), str(origin))]
    assert any(StepKind.PUBLISH in item.steps for item in plan.items)  # the rest of the release goes on


# -------------------------------------------------------------------------------------------------- in CI


def run(*words: str, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, **variables}
    return subprocess.run(
        [sys.executable, "-m", "saesync", *words], cwd=folder, env=env, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("words", [("apply", "-y"), ("plan", "--untrusted")])
def test_in_github_actions_there_has_to_be_one(tmp_path: Path, words: tuple[str, ...]) -> None:
    done = run(*words, folder=tmp_path, CI="true", GITHUB_ACTIONS="true")
    assert done.returncode == 1
    assert "Policy is missing" in done.stderr
    assert "--policy saesync-policy.yaml" in done.stderr
    elsewhere = run(*words, folder=tmp_path, CI="true")
    assert "Policy is missing" not in elsewhere.stderr


def test_the_repositories_own_policies_are_policies() -> None:
    own = read_policy(ROOT / "saesync-policy.yaml")
    assert own.targets == {}
    lab = read_policy(ROOT / "examples" / "lab-repository" / "saesync-policy.yaml")
    assert lab.allows_place("huggingface", "acme/gemma-2-2b-res-saes")


def test_a_registry_that_is_not_allowed_is_not_even_asked(tmp_path: Path) -> None:
    """Git would log in there."""
    (tmp_path / "manifests").mkdir()
    more = "register:\n  saelens: https://127.0.0.1:1/evil.git\n"
    (tmp_path / "manifests" / "a.yaml").write_text(manifest("a", more=more), encoding="utf-8")
    policy = written(tmp_path, "apiVersion: saesync/v1\ntargets: {huggingface: [acme/*], saelens: [good/SAELens]}\n")
    words = ("plan", "--policy", str(policy), "--format", "json")
    items = json.loads(run(*words, folder=tmp_path, SAESYNC_RETRY_SECONDS="0").stdout)["items"]
    (item,) = [item for item in items if item["section"] == "register"]
    assert [reason["code"] for reason in item["reasons"]] == ["not_allowed"]
    assert item["origin"][1:3] == [25, 1]


@pytest.mark.parametrize("allowed", [True, False])
def test_a_trusted_pickle_is_named_by_its_sha256(tmp_path: Path, allowed: bool) -> None:
    """``trust: pickle`` of a file that the policy does not name is held, and the other releases are not."""
    name = "final_sparse_autoencoder_x.pkl.gz"
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / name).write_bytes(b"anything: a plan reads no pickle")
    sha256 = hashlib.sha256((tmp_path / "weights" / name).read_bytes()).hexdigest()
    folder = tmp_path / "manifests"
    folder.mkdir()
    text = f"""\
apiVersion: saesync/v1
release: old
model: {{name: gpt2, revision: {"c" * 40}}}
saes:
  id: one
  hook: blocks.0.hook_resid_pre
  source:
    path: ../weights/{name}
    format: saelens_pickle
    trust: pickle
publish: {{local: ../published}}
"""
    (folder / "old.yaml").write_text(text, encoding="utf-8")
    trust = f"trust: [{sha256 if allowed else 'a' * 64}]\n"
    policy = written(tmp_path, f"apiVersion: saesync/v1\ntargets: {{local: [published, published/**]}}\n{trust}")
    done = run("plan", "--policy", str(policy), "--root", str(tmp_path / "weights"), "--format", "json", folder=tmp_path)
    (item,) = (item for item in json.loads(done.stdout)["items"] if item["id"] == "one")
    assert item["held"] is not allowed, done.stderr
    if not allowed:
        (reason,) = item["reasons"]
        assert (reason["code"], reason["data"]["key"], reason["data"]["value"]) == ("not_allowed", "saes.source.trust", sha256)
        assert item["origin"][1:3] == [10, 12]


def test_without_a_policy_every_pickle_may_be_trusted() -> None:
    assert OPEN.trusts("b" * 64)
    assert OPEN.distrusted((release(),), lambda _: ("b" * 64,)) == ()

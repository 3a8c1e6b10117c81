"""Overlays with stock sae_lens: in this process, in programs that are started with one, and in the processes those start."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.numpy import load, save
from servers.loopback import ALICE, HubServer

import saesync.overlay
from saesync import card, manifest
from saesync.cache import Cache
from saesync.digest import digest_bytes
from saesync.errors import Missing, Refused, SaesyncError
from saesync.model import CFG_FILE, WEIGHTS_FILE
from saesync.record import Evidence, Metric, Record, SaeRecord, record_path
from saesync.registry.document import written
from saesync.registry.entry import Entry, SaeEntry
from saesync.resolve import Resolver

PROGRAM = str(Path(sys.executable).with_name("saesync"))
REPO, HEX = "sae-org/private-saes", "0123456789abcdef" * 2 + "01234567"
ENTRY = Entry(
    "my-res",
    REPO,
    "gpt2",
    None,
    (SaeEntry("l3", "layer_3", 12, 0.75, "gpt2-small/3-res-acme"), SaeEntry("root", ".", norm_scaling_factor=0.5)),
    config_overrides={"dataset_path": "acme/text"},
)
OFFICIAL = replace(ENTRY, release="gpt2-small-res-jb", saes=(SaeEntry("l4", "layer_4"),))


def sae_files(seed: int = 0) -> dict[str, bytes]:
    """A small SAE in SAELens's own layout."""
    chance = np.random.default_rng(seed)
    shapes = {"W_enc": (4, 8), "W_dec": (8, 4), "b_enc": (8,), "b_dec": (4,)}
    tensors = {name: chance.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}
    metadata = {"sae_lens_version": "6.54.12", "model_name": "gpt2", "hook_name": "blocks.3.hook_resid_post"}
    cfg = {"architecture": "standard", "d_in": 4, "d_sae": 8, "dtype": "float32", "apply_b_dec_to_input": True}
    cfg |= {"normalize_activations": "none", "reshape_activations": "none", "device": "cpu", "metadata": metadata}
    return {CFG_FILE: json.dumps(cfg).encode(), WEIGHTS_FILE: save(tensors)}


@pytest.fixture
def overlay(tmp_path: Path) -> Path:
    path = tmp_path / "overlay.yaml"
    path.write_bytes(written([ENTRY]))
    return path


def run(words: list[str], cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        words, cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True, check=False, timeout=300
    )


# ----------------------------------------------------------------------------------------------- in this process


def test_a_notebook_sees_an_overlay_for_a_while(overlay: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sae_lens.loading import pretrained_saes_directory as saelens

    monkeypatch.chdir(tmp_path)
    before = dict(saelens.get_pretrained_saes_directory())
    with saesync.overlay.installed(overlay) as names:
        assert names == ("my-res",)
        assert saelens.get_repo_id_and_folder_name("my-res", "l3") == (REPO, "layer_3")
        assert saelens.get_repo_id_and_folder_name("my-res", "root") == (REPO, ".")
        assert saelens.get_norm_scaling_factor("my-res", "root") == 0.5
        assert saelens.get_norm_scaling_factor("my-res", "l3") is None
        assert saelens.get_config_overrides("my-res", "l3") == {
            "dataset_path": "acme/text", "neuronpedia_id": "gpt2-small/3-res-acme",
        }  # fmt: skip
        assert saelens.get_releases_for_repo_id(REPO) == ["my-res"]
        lookup = saelens.get_pretrained_saes_directory()["my-res"]
        assert (lookup.expected_l0, lookup.expected_var_explained) == ({"l3": 12, "root": 0.0}, {"l3": 0.75, "root": 1.0})
        with saesync.overlay.installed(overlay):
            assert "my-res" in saelens.get_pretrained_saes_directory()
        assert "my-res" in saelens.get_pretrained_saes_directory(), "what was there before an inner one stays"
    assert saelens.get_pretrained_saes_directory() == before

    # The lookup is what SAELens itself would make of the same entry.
    jb = Path("jb.yaml")
    jb.write_bytes(written([entry_of_shipped("gpt2-small-res-jb")]))
    assert saesync.overlay.install(jb) == ("gpt2-small-res-jb",), "an overlay that says the same replaces nothing"
    assert saelens.get_pretrained_saes_directory() == before


def entry_of_shipped(release: str) -> Entry:
    from saesync.registry.document import parse
    from saesync.registry.entry import from_yaml
    from saesync.registry.shipped import shipped

    return from_yaml(release, parse(shipped().read_bytes(), "shipped").releases[release])


def test_an_official_release_is_replaced_only_on_request(tmp_path: Path) -> None:
    from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

    path = tmp_path / "overlay.yaml"
    path.write_bytes(written([ENTRY, OFFICIAL]))
    before = dict(get_pretrained_saes_directory())
    with pytest.raises(Refused, match="gpt2-small-res-jb is a release of SAELens already"):
        saesync.overlay.install(path)
    assert get_pretrained_saes_directory() == before, "a refused overlay adds nothing"
    with saesync.overlay.installed(path, replace=True):
        assert get_pretrained_saes_directory()["gpt2-small-res-jb"].repo_id == REPO
    assert get_pretrained_saes_directory() == before


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: b: c\n", "mapping values are not allowed"),
        ("my-res:\n  model: m\n  saes: []\n", "my-res has no repo_id"),
        ("# nothing\n", "holds no release"),
        ("my-res:\n  model: m\n  repo_id: a/b\n  saes:\n  - id: x\n", "has no path"),
    ],
)
def test_what_is_no_overlay_is_refused_with_its_place(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "overlay.yaml"
    path.write_text(text)
    with pytest.raises(SaesyncError) as caught:
        saesync.overlay.install(path)
    assert said in caught.value.diagnostics[0].detail


def test_the_file_is_found_where_it_is_said_to_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Missing, match=r"no file saesync-overlay\.yaml here"):
        saesync.overlay.find()
    (tmp_path / "saesync-overlay.yaml").write_text("")
    assert saesync.overlay.find() == Path("saesync-overlay.yaml")
    monkeypatch.setenv("SAESYNC_OVERLAY", "other.yaml")
    with pytest.raises(Missing, match="SAESYNC_OVERLAY names it"):
        saesync.overlay.find()
    (tmp_path / "other.yaml").write_text("")
    assert saesync.overlay.find() == Path("other.yaml")
    assert saesync.overlay.find("saesync-overlay.yaml") == Path("saesync-overlay.yaml")


# -------------------------------------------------------------------------------------------- in other programs

LOAD = """
import json, sys, warnings
warnings.simplefilter("ignore")
from sae_lens import SAE
assert "saesync" not in sys.modules
sae, cfg, _ = SAE.from_pretrained_with_cfg_and_sparsity(sys.argv[1], sys.argv[2], device="cpu")
print(json.dumps({"W": float(sae.W_enc.sum()), "hook": sae.cfg.metadata.hook_name, "id": sys.argv[2]}))
"""
PARENT = """
import subprocess, sys
assert "sae_lens" not in sys.modules
sys.exit(subprocess.run([sys.executable, *sys.argv[1:]]).returncode)
"""


@pytest.mark.parametrize("hub_process", ["lfs"], indirect=True)
def test_a_child_process_of_any_program_loads_by_name(hub_server: HubServer, overlay: Path, tmp_path: Path) -> None:
    hub_server.create_repo(REPO, private=True)
    files = sae_files()
    hub_server.push(REPO, {f"layer_3/{name}": data for name, data in files.items()}, lfs=(f"layer_3/{WEIGHTS_FILE}",))
    (tmp_path / "load.py").write_text(LOAD)
    script = tmp_path / "bin" / "my-dashboard"  # a console script, as pip writes them
    script.parent.mkdir()
    script.write_text(f"#!{sys.executable}\n{PARENT}")
    script.chmod(0o755)
    environment = {**hub_server.environment(ALICE), "HF_HOME": str(tmp_path / "hf")}
    environment["PATH"] = f"{script.parent}{os.pathsep}{os.environ['PATH']}"
    words = [sys.executable, "-m", "saesync.overlay", "--file", overlay.name, "--", "my-dashboard", "load.py", "my-res", "l3"]
    done = run(words, tmp_path, **environment)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {
        "W": pytest.approx(float(load(files[WEIGHTS_FILE])["W_enc"].sum()), rel=1e-5),
        "hook": "blocks.3.hook_resid_post",
        "id": "l3",
    }


@pytest.mark.slow
def test_an_overlay_that_names_an_official_release_ends_in_one_message(tmp_path: Path) -> None:
    path = tmp_path / "saesync-overlay.yaml"
    path.write_bytes(written([OFFICIAL]))
    done = run([PROGRAM, "registry", "run", "--", sys.executable, "-c", "import sae_lens"], tmp_path)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        f"error: the overlay {path} is refused: gpt2-small-res-jb is a release of SAELens already, and would be another one."
    )
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--file", "no.yaml", "--", "python", "-c", "1"], "There is no file no.yaml here"),
        (["--file", "bad.yaml", "--", "python", "-c", "1"], "my-res has no repo_id"),
        (["--file", "good.yaml", "--", "no-such-program"], "no-such-program: No such file"),
        (["--file", "good.yaml", "--", "python3.11", "-Im", "x"], "`python3.11 -I` ignores the environment"),
        (["--file", "good.yaml", "--", "/usr/bin/python", "-W", "error", "-S", "x.py"], "Leave out -S"),
        (["--file", "good.yaml", "--", "no/python", "-Wx", "-uXS", "x.py", "-S"], "no/python: No such file"),
    ],
)
def test_a_wrong_start_is_one_message(words: list[str], said: str, overlay: Path, tmp_path: Path) -> None:
    overlay.rename(tmp_path / "good.yaml")
    (tmp_path / "bad.yaml").write_text("my-res:\n  model: m\n  saes: []\n")
    done = run([sys.executable, "-m", "saesync.overlay", *words], tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_without_a_program_nothing_is_started(tmp_path: Path) -> None:
    assert run([sys.executable, "-m", "saesync.overlay"], tmp_path).returncode == 2


def test_programs_without_sae_lens_run_as_always(overlay: Path, tmp_path: Path) -> None:
    """Their exit code, their streams, their own sitecustomize and PYTHONPATH; and nothing more is imported for them."""
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text("import builtins\nbuiltins.CHAINED = __name__\n")
    program = "import sys; print(CHAINED, sorted({'yaml', 'saesync', 'typing'} & set(sys.modules))); sys.exit(int(sys.argv[1]))"
    words = [PROGRAM, "registry", "run", "--file", str(overlay), "--", sys.executable, "-c", program, "7"]
    done = run(words, tmp_path, PYTHONPATH=str(site))
    assert (done.returncode, done.stdout, done.stderr) == (7, "sitecustomize []\n", "")
    (site / "sitecustomize.py").write_text("raise ImportError('broken')\n")
    plain = run([sys.executable, "-c", "1"], tmp_path, PYTHONPATH=str(site))
    hooked = run([*words[:-3], "-c", "1"], tmp_path, PYTHONPATH=str(site))
    assert plain.returncode == hooked.returncode == 0
    assert ("broken" in plain.stderr) == ("broken" in hooked.stderr)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("my-res: [1]\n", "is no overlay. `saesync registry lint"),
        ("a: b: c\n", "is no overlay. `saesync registry lint"),
        ("text\n", "is no overlay. `saesync registry lint"),
        (None, "cannot be read: No such file or directory."),
        (written([OFFICIAL]).decode(), "is refused: gpt2-small-res-jb is a release of SAELens already"),
    ],
)
def test_a_damaged_file_behind_the_variable_ends_the_program(text: str | None, said: str, overlay: Path) -> None:
    """The environment reaches processes long after the file was checked; these are the hook's own words."""
    from sae_lens.loading import pretrained_saes_directory as saelens

    from saesync.overlay.hook.sitecustomize import _extend

    before = dict(saelens.get_pretrained_saes_directory())
    if text is None:
        overlay.unlink()
    else:
        overlay.write_text(text)
    with pytest.raises(SystemExit) as caught:
        _extend(saelens, str(overlay))
    assert str(caught.value).startswith("error: ")
    assert str(overlay) in str(caught.value)
    assert said in str(caught.value)
    assert saelens.get_pretrained_saes_directory() == before


# -------------------------------------------------------------------------------------------- writing an overlay

MANIFEST = """\
apiVersion: saesync/v1
release: {release}
model:
  name: acme/model
  revision: {hex}
saes:
  for_each:
    layer: [3, 4]
  id: layer_{{layer}}
  hook: blocks.{{layer}}.hook_resid_post
  source:
    repo: sae-org/source
    revision: {revision}
    path: layer_{{layer}}.pth
    format: goodfire
publish:
  {publish}
  license: mit
"""


def manifests(folder: Path, hub: HubServer, places: Mapping[str, str]) -> Path:
    hub.create_repo("sae-org/source")
    revision = hub.push("sae-org/source", {f"layer_{layer}.pth": b"x" for layer in (3, 4)})
    place = folder / "manifests"
    place.mkdir()
    for release, publish in places.items():
        text = MANIFEST.format(release=release, hex=HEX, revision=revision, publish=publish)
        if publish.startswith("saelens:"):
            text = text.replace("publish:", "register:").replace("  license: mit\n", "")
        (place / f"{release}.yaml").write_text(text)
    return place


def published(place: Path, hub: HubServer, cache: Path) -> None:
    """The first SAE of my-res on the Hub with its record and numbers, as apply leaves them."""
    (release,) = manifest.load([place / "my-res.yaml"])
    wanted = Resolver(Cache(cache)).resolve((release,), {})
    inputs, files = wanted["my-res/layer_3"].inputs, sae_files()
    assert inputs is not None
    digests = {name: digest_bytes(data) for name, data in files.items()}
    metrics = {"l0": Metric(61.4, 0.1), "explained_variance": Metric(0.81234, 0.001)}
    evidence = Evidence("0" * 64, digests[WEIGHTS_FILE].sha256 or "", metrics)
    record = Record("my-res", {"layer_3": SaeRecord(inputs.weights_key, inputs.build_key, digests, evidence=(evidence,))})
    readme, digest = card.make_card(release, record, None)
    pushed = {f"layer_3/{name}": data for name, data in files.items()}
    pushed |= {record_path("my-res"): replace(record, card=digest).to_bytes(), "README.md": readme.encode()}
    hub.create_repo(REPO)
    hub.push(REPO, pushed, lfs=(f"layer_3/{WEIGHTS_FILE}",))


@pytest.mark.parametrize("hub_process", ["lfs"], indirect=True)
def test_an_overlay_holds_what_is_published_and_names_what_is_not(hub_server: HubServer, tmp_path: Path) -> None:
    places = {"my-res": f"huggingface: {REPO}", "waiting": "huggingface: sae-org/waiting", "folder": "local: ../out"}
    places |= {"theirs": "saelens: a/b", "gpt2-small-res-jb": "saelens: a/b"}
    place = manifests(tmp_path, hub_server, places)
    published(place, hub_server, tmp_path / "cache")
    jb = place / "gpt2-small-res-jb.yaml"
    jb.write_text(jb.read_text().replace("goodfire", "saelens"))
    done = run([PROGRAM, "registry", "overlay"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "Wrote saesync-overlay.yaml: 3 releases, 5 SAEs.\n"
    assert "Note: gpt2-small-res-jb is a release of SAELens already." in done.stderr
    text = (tmp_path / "saesync-overlay.yaml").read_text()
    assert text.splitlines()[1:9] == [
        "gpt2-small-res-jb:",
        "  conversion_func: null",
        "  model: acme/model",
        "  repo_id: sae-org/source",
        "  saes:",
        "  - id: layer_3",
        "    path: layer_3.pth",
        "  - id: layer_4",
    ]
    assert yaml.safe_load(text)["theirs"]["conversion_func"] == "goodfire"
    jb.unlink()
    (place / "theirs.yaml").unlink()
    assert run([PROGRAM, "registry", "overlay"], tmp_path).returncode == 0, "its own file is written anew"
    assert "my-res: 1 of 2 SAEs are published; the others are left out." in done.stderr
    assert "Left out waiting: Nothing of it is published yet." in done.stderr
    assert "Left out folder: folder is published to a folder" in done.stderr
    text = (tmp_path / "saesync-overlay.yaml").read_text()
    assert text.splitlines()[1:] == [
        "my-res:",
        "  conversion_func: null",
        "  model: acme/model",
        f"  repo_id: {REPO}",
        "  saes:",
        "  - id: layer_3",
        "    path: layer_3",
        "    l0: 61",
        "    variance_explained: 0.812",
    ]
    assert run([PROGRAM, "registry", "lint", "--strict", "saesync-overlay.yaml"], tmp_path).returncode == 0
    assert run([PROGRAM, "registry", "overlay", "--out", "-", "manifests/my-res.yaml"], tmp_path).stdout == text

    (tmp_path / "mine.yaml").write_text("mine")
    done = run([PROGRAM, "registry", "overlay", "--out", "mine.yaml"], tmp_path)
    assert (done.returncode, (tmp_path / "mine.yaml").read_text()) == (1, "mine")
    assert "was not written by this command" in done.stderr
    done = run([PROGRAM, "registry", "overlay", "manifests/waiting.yaml", "--out", "none.yaml"], tmp_path)
    assert (done.returncode, (tmp_path / "none.yaml").exists()) == (1, False)
    assert "No release here can be loaded from the Hub yet" in done.stderr

"""Adopting what exists: the whole shipped registry, single releases, and Hub repositories of SAELens folders."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from servers.loopback import HubServer

from saesync.cache import Cache
from saesync.errors import Missing, Refused
from saesync.formats._saelens_reference import write_example
from saesync.garbage import no_garbage_collection
from saesync.hub import Hub
from saesync.importing import entries, repository
from saesync.importing.fold import fold
from saesync.importing.layout import UPSTREAM, Contents, checked, manifest_text
from saesync.inspection import parse_reference
from saesync.inspection.folders import Folder, saelens_folders
from saesync.manifest import find, load
from saesync.model import Release
from saesync.registry.document import Document, parse
from saesync.registry.entry import entry_of, from_yaml, same_meaning
from saesync.registry.shipped import shipped

PROGRAM = str(Path(sys.executable).with_name("saesync"))
# What importing the shipped file loses, by name: SAELens ignores the one and reads the other as text.
NESTED = ("gpt2-small-res_scefr-ajt", "blocks.10.hook_resid_pre", {"conversion_func", "links", "model", "repo_id", "saes"})
INT_PATHS = ("mntss-gemma-2-2b-2.5m-clt-as-per-layer", 26)


def run(folder: Path, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [PROGRAM, *words], cwd=folder, env={**os.environ, **variables}, capture_output=True, text=True, timeout=120, check=False
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done


def loaded(folder: Path) -> tuple[Release, ...]:
    with no_garbage_collection():
        return load(find([folder]))


# ------------------------------------------------------------------------------------------- the shipped registry


@pytest.fixture(scope="module")
def document() -> Document:
    return parse(shipped().read_bytes(), "pretrained_saes.yaml")


@pytest.fixture(scope="module")
def everything(document: Document, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with a manifest for every release of the shipped registry, as the command writes them."""
    folder = tmp_path_factory.mktemp("project")
    done = run(folder, "import", "--all")
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == len(document.releases) > 100
    assert done.stderr.splitlines() == [
        f"Note: {NESTED[0]}/{NESTED[1]}: SAELens ignores {', '.join(sorted(NESTED[2]))} here; left out.",
        f"Note: {INT_PATHS[0]}: paths of {INT_PATHS[1]} SAEs are bare numbers, which SAELens reads as text; written as text.",
        f"{len(document.releases)} releases: {len(document.releases)} written.",
    ]
    return folder / "manifests"


def plainly(name: str, raw: dict[str, Any]) -> dict[str, Any]:
    """A release of the file, without what is lost by name."""
    found = {key: value for key, value in raw.items() if value is not None or key == "conversion_func"}
    saes = [dict(sae) for sae in found["saes"]]
    for sae in saes:
        if (name, sae["id"]) == NESTED[:2]:
            sae_keys = set(sae)
            assert NESTED[2] <= sae_keys
            for key in NESTED[2]:
                del sae[key]
        if name == INT_PATHS[0]:
            assert isinstance(sae["path"], int)
            sae["path"] = str(sae["path"])
    return {**found, "saes": saes}


def test_the_whole_registry_comes_back(document: Document, everything: Path) -> None:
    releases = loaded(everything)
    assert sum(len(release.saes) for release in releases) == sum(len(raw["saes"]) for raw in document.releases.values()) > 10_000
    made = {release.name: entry_of(release, None) for release in releases}
    text = yaml.dump({name: entry.to_yaml() for name, entry in made.items()}, Dumper=yaml.CSafeDumper, sort_keys=False)
    again = yaml.load(text, Loader=yaml.CSafeLoader)
    assert set(again) == set(document.releases)
    for name, raw in document.releases.items():
        # By their JSON: 71 is not 71.0 there. The order of SAEs counts, that of keys does not.
        assert json.dumps(again[name], sort_keys=True) == json.dumps(plainly(name, raw), sort_keys=True), name
        assert same_meaning(made[name], from_yaml(name, raw))


def test_they_are_checked_and_planned_offline(document: Document, everything: Path, tmp_path: Path) -> None:
    """Against the shipped file there is nothing to do, and nobody is asked: HF_ENDPOINT leads nowhere in tests."""
    saes = sum(len(raw["saes"]) for raw in document.releases.values())
    (tmp_path / "registry.yaml").write_bytes(document.data)
    (tmp_path / "manifests").mkdir()
    for path in everything.iterdir():
        text = path.read_text(encoding="utf-8")
        assert text.count(f"saelens: {UPSTREAM}") == 1
        (tmp_path / "manifests" / path.name).write_text(text.replace(f"saelens: {UPSTREAM}", "saelens: ../registry.yaml"))
    cache = tmp_path / "cache"
    done = run(tmp_path, "check", SAESYNC_CACHE=str(cache))
    assert (done.returncode, done.stdout) == (0, f"{len(document.releases)} manifests, {saes} SAEs: fine.\n")
    done = run(tmp_path, "plan", "--check", "--format", "json", SAESYNC_CACHE=str(cache))
    assert done.returncode == 0, done.stderr
    data = json.loads(done.stdout)
    assert data["totals"]["saes"] == saes
    assert not any(item["held"] or item["steps"] for item in data["items"])
    assert {item["status"] for item in data["items"]} == {"current"}
    assert not any(release["pinned"] for release in data["releases"])
    assert not {"tree", "reachable", "blob"} & {path.name for path in cache.iterdir()}, "no Hub repo is looked at"
    text = run(tmp_path, "plan", SAESYNC_CACHE=str(cache)).stdout
    assert "Nothing to do" in text
    assert f"and {len(document.releases) - 10} more.\n" in text


def test_no_heavy_package_is_imported(everything: Path) -> None:
    program = (
        "import sys\nfrom saesync.cli import cli\n"
        "cli.main(['import', 'saelens:gpt2-small-res-jb', '--out', sys.argv[1]], standalone_mode=False)\n"
        "sys.exit(' '.join(m for m in ('torch', 'sae_lens', 'transformers') if m in sys.modules) or 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(everything.parent / "one")], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


def test_manifests_are_made_to_be_read(everything: Path) -> None:
    assert (everything / "qwen-scope-3-1.7b-base-w32k-l100.yaml").read_text().split("\n\n", 1)[1] == (
        "model:\n"
        "  name: Qwen/Qwen3-1.7B-Base\n"
        "\n"
        "saes:\n"
        "  for_each:\n"
        "    layer: {first: 0, last: 27}\n"
        "  id: layer{layer}\n"
        "  source:\n"
        "    repo: Qwen/SAE-Res-Qwen3-1.7B-Base-W32K-L0_100\n"
        "    path: layer{layer}.sae.pt\n"
        "  entry:\n"
        "    l0: 100\n"
        "\n"
        "register:\n"
        "  saelens: decoderesearch/SAELens\n"
        "  conversion_func: qwen_scope\n"
    )
    lines = (everything / "llama_scope_lxr_8x.yaml").read_text().splitlines()
    assert "    - {layer: 1, norm_scaling_factor: 39.76699029126213}" in lines
    assert '    path: "{layer:d}"' in (everything / f"{INT_PATHS[0]}.yaml").read_text()


# ---------------------------------------------------------------------------------------------------- the command


REGISTRY = """\
small:
  conversion_func: null
  model: gpt2-small
  repo_id: a/b
  saes:
  - id: layer_0
    path: layer_0
broken:
  model: gpt2-small
  repo_id: a/b
unsayable:
  model: gpt2-small
  repo_id: a/b
  saes:
  - id: nul/x
    path: x
twice:
  model: gpt2-small
  repo_id: a/b
  saes:
  - id: x
    path: x
  - id: x
    path: y
../escape:
  model: gpt2-small
  repo_id: a/b
  saes:
  - id: x
    path: x
odd:
  conversion_func: my_loader
  model: gpt2-small
  repo_id: a/b
  color: red
  saes:
  - id: x
    path: x
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / ".git").mkdir()
    (tmp_path / "ours.yaml").write_text(REGISTRY)
    return tmp_path


def test_one_release_of_a_file_registers_in_that_file(project: Path) -> None:
    done = run(project, "import", "saelens:small", "--registry", "ours.yaml")
    assert (done.returncode, done.stdout, done.stderr) == (0, "Wrote manifests/small.yaml.\n", "")
    (release,) = loaded(project / "manifests")
    assert release.register is not None
    assert release.register.registry == str(project / "ours.yaml")
    again = run(project, "import", "saelens:small", "--registry", "ours.yaml", "--register", "me/SAELens", "--force")
    assert again.returncode == 0
    (release,) = loaded(project / "manifests")
    assert release.register is not None
    assert release.register.registry == "me/SAELens"


def test_what_is_there_is_never_overwritten_unasked(project: Path) -> None:
    path = project / "manifests" / "small.yaml"
    path.parent.mkdir()
    path.write_text("mine")
    done = run(project, "import", "saelens:small", "--registry", "ours.yaml")
    assert done.returncode == 1
    assert "manifests/small.yaml is there already" in done.stderr
    assert path.read_text() == "mine"
    many = run(project, "import", "saelens:*", "--registry", "ours.yaml")
    assert "Left as it is: manifests/small.yaml" in many.stderr
    assert path.read_text() == "mine"
    assert run(project, "import", "saelens:small", "--registry", "ours.yaml", "--force").returncode == 0
    assert path.read_text().startswith("# small, as SAELens's list")


def test_what_cannot_be_imported_is_named_and_the_rest_is_written(project: Path) -> None:
    done = run(project, "import", "saelens:", "--registry", "ours.yaml")
    assert done.returncode == 1
    assert done.stdout == "Wrote manifests/small.yaml.\n"
    said = done.stderr.splitlines()
    for number, part in enumerate(
        (
            "Left out: broken: it has no list `saes`",
            'Left out: unsayable: "nul/x" does not do for saes.id: Windows reserves this name',
            "Left out: twice has two SAEs called x.",
            'Left out: ../escape: "../escape" does not do for release',
            'Left out: odd: "my_loader" is not a known conversion_func.',
            "6 releases: 1 written, 5 left out.",
        )
    ):
        assert said[number].startswith(part), said
    assert {path.name for path in project.iterdir()} == {".git", "ours.yaml", "manifests"}
    assert [path.name for path in (project / "manifests").iterdir()] == ["small.yaml"]


@pytest.mark.parametrize(
    ("words", "code", "part"),
    [
        ((), 2, "Give a SOURCE, or --all."),
        (("saelens:x", "--all"), 2, "Give a SOURCE, or --all."),
        (("gpt2-small-res-jb",), 2, "neither saelens:RELEASE nor hf://owner/repo"),
        (("saelens:smal", "--registry", "ours.yaml"), 1, "Did you mean small?"),
        (("saelens:zzz*", "--registry", "ours.yaml"), 1, "--all"),
        (("saelens:small", "--registry", "none.yaml"), 1, "No such file"),
        (("saelens:small", "--registry", "broken.yaml"), 1, "not a mapping of release names"),
        (("saelens:small", "--registry", "ours.yaml", "--register", "a b"), 1, "does not do for register.saelens"),
        (("saelens:small", "--registry", "ours.yaml", "--out", "file/x"), 1, "Name another file"),
        (("saelens:small", "--model", "x"), 2, "are for a Hub repo"),
        (("hf://a/b", "--registry", "ours.yaml"), 2, "not read from a registry"),
        (("hf://a", "--out", "x"), 1, "not of the form hf://owner/repo"),
    ],
)
def test_mistakes_are_said_in_one_message(project: Path, words: tuple[str, ...], code: int, part: str) -> None:
    (project / "broken.yaml").write_text("- 1\n")
    (project / "file").write_text("")
    done = run(project, "import", *words)
    assert done.returncode == code, done.stderr
    assert part in done.stderr
    assert not (project / "manifests").exists()


def test_names_are_globs_only_where_they_look_so() -> None:
    made = parse(b"a-1: {}\na-2: {}\nb: {}\n", "f.yaml")
    assert entries.names_of(made, "a-*") == ["a-1", "a-2"]
    assert entries.names_of(made, "") == ["a-1", "a-2", "b"]
    with pytest.raises(Missing, match="Did you mean a-"):
        entries.names_of(made, "a-")


# -------------------------------------------------------------------------------------------------------- folding


texts = st.one_of(
    st.text(max_size=8),
    st.sampled_from(["layer_{n}", "{", "}", "1", "01", "null", "yes", "a: b", "\u2028", "\x7f", "é", "😀", "a/3.pt", "#"]),
)
values = st.one_of(st.none(), st.integers(-(10**6), 10**6), st.floats(allow_nan=False, allow_infinity=False), texts)
shapes = st.sampled_from(["layer_{n}", "{n}", "a/{n:03d}/x_{n}", "{n}-res", "x{{{n}", "l{m}_{n}", "layer_7/{n}"])


@st.composite
def tables(draw: st.DrawFn) -> list[dict[str, Any]]:
    numbers = draw(st.lists(st.integers(0, 120), min_size=1, max_size=8, unique=True))
    if draw(st.booleans()):
        numbers = list(range(len(numbers)))
    ids, path = draw(shapes), draw(st.one_of(shapes, st.just("id")))
    column = draw(st.lists(values, min_size=len(numbers), max_size=len(numbers)))
    same = draw(st.booleans())
    rows = []
    for index, n in enumerate(numbers):
        sae_id = ids.format(n=n, m=n * 7 % 5)
        where = f"p{{}}/{sae_id}.pt" if path == "id" else path.format(n=n, m=n * 3 % 5)
        rows.append({"id": sae_id, "path": where, "value": column[0 if same else index]})
    return rows


@settings(max_examples=300, deadline=None)
@given(tables())
def test_folding_loses_nothing(rows: list[dict[str, Any]]) -> None:
    """What the manifest language makes of the folded form is what was folded, in order and in type."""
    from saesync.manifest.expand import Templates, rows_of
    from saesync.manifest.yaml12 import decode
    from saesync.manifest.yaml12 import parse as tree

    folded = fold(rows)
    text = "\n".join([*folded.for_each, *(f"  {name}: {value}" for name, value in folded.values.items())]) + "\n"
    root = tree(decode(text.encode(), "f")[1], "f")
    made = rows_of(root.get("for_each"), "f", [])
    templates = Templates("f", tuple(made.names))
    section, fill = templates.compile(root, frozenset({"for_each"}))
    assert templates.diagnostics == []
    assert list(templates.unused(made.names)) == []
    again = [section if fill is None else fill(row) for row in made.make()]
    assert [[(type(v), v) for v in (row["id"], row["path"], row["value"])] for row in again] == [
        [(type(v), v) for v in row.values()] for row in rows
    ]


def test_a_manifest_needs_an_sae() -> None:
    with pytest.raises(Refused, match="has no SAE"):
        manifest_text(Contents("r", "m", "a/b", None, "saelens", [], {"saelens": UPSTREAM}, ()))


# ---------------------------------------------------------------------------------------------------------- the Hub


REPO = "alice/many"
MODEL = "openai-community/gpt2"


def folder_of(tmp_path: Path, seed: int, hook: str, model: str = MODEL, **more: Any) -> dict[str, bytes]:
    """cfg.json and weights of a SAELens folder."""
    folder = tmp_path / f"example-{seed}"
    folder.mkdir()
    write_example(folder, seed)
    cfg = json.loads((folder / "cfg.json").read_text())
    cfg = {**cfg, "metadata": {**cfg["metadata"], "hook_name": hook, "model_name": model, **more}}
    return {"cfg.json": json.dumps(cfg).encode(), "sae_weights.safetensors": (folder / "sae_weights.safetensors").read_bytes()}


@pytest.fixture
def repo(hub_server: HubServer, tmp_path: Path) -> str:
    """A repository with SAEs of twelve layers, one that is damaged, and other things; its head."""
    files: dict[str, bytes] = {"README.md": b"---\ntags: [x]\n---\n", "other/cfg.json": b"{}", "dict/ae.pt": b"x"}
    for layer in range(12):
        for name, data in folder_of(tmp_path, layer, f"blocks.{layer}.hook_resid_post").items():
            files[f"layer_{layer}/{name}"] = data
    files |= {"damaged/cfg.json": b"[", "damaged/sae_weights.safetensors": b"x"}
    hub_server.create_repo(REPO)
    large = tuple(name for name in files if name.endswith(".safetensors"))
    sha: str = hub_server.push(REPO, files, lfs=large)
    hub_server.restart_counters()
    return sha


@pytest.mark.parametrize("hub_process", ["lfs"], indirect=True)
def test_every_folder_of_a_repo_by_its_cfg_alone(hub_server: HubServer, repo: str, tmp_path: Path) -> None:
    done = run(tmp_path, "import", f"hf://{REPO}")
    assert (done.returncode, done.stdout) == (0, "Wrote manifests/many.yaml.\n"), done.stderr
    assert done.stderr.startswith("Note: damaged is left out: ")
    (release,) = loaded(tmp_path / "manifests")
    assert [sae.id for sae in release.saes] == [f"layer_{layer}" for layer in range(12)]
    for layer, sae in enumerate(release.saes):
        assert sae.source is not None
        assert (sae.hook, sae.source.repo, sae.source.revision) == (f"blocks.{layer}.hook_resid_post", REPO, repo)
        assert (sae.source.path, sae.source.format, sae.model.label) == (f"layer_{layer}", "saelens", MODEL)
    assert release.register is not None
    assert release.register.registry == UPSTREAM
    assert (release.publish, release.records) == (None, None)
    text = (tmp_path / "manifests" / "many.yaml").read_text()
    assert "    layer: {first: 0, last: 11}\n  id: layer_{layer}\n  hook: blocks.{layer}.hook_resid_post\n" in text
    assert f"#   huggingface: {REPO}" in text
    assert hub_server.count("lfs.get") == 0, "no weights are read"
    assert hub_server.count() <= 13 * 2 + 6
    hub_server.restart_counters()
    assert run(tmp_path, "import", f"hf://{REPO}", "--force").returncode == 0
    assert hub_server.count() <= 2, "listing and configs are known by content"


@pytest.mark.parametrize("hub_process", ["lfs"], indirect=True)
def test_the_manifest_becomes_one_that_measures_or_publishes(hub_server: HubServer, repo: str, tmp_path: Path) -> None:
    """The comments at its end are meant to be uncommented as they stand."""
    assert run(tmp_path, "import", f"hf://{REPO}").returncode == 0
    path = tmp_path / "manifests" / "many.yaml"
    lines = path.read_text().splitlines()
    tail = lines[lines.index("register:") + 3 :]
    sections = [line.removeprefix("# ") for line in tail if not line.startswith(("# If", "# To", "#\n")) and line != "#"]
    path.write_text("\n".join([*lines[: lines.index("register:") + 2], *sections]) + "\n")
    assert "saesync pin" in run(tmp_path, "check").stderr
    text = path.read_text()
    assert "publish:" in text
    assert "records:" in text
    text = text.replace("dataset: monology/pile-uncopyrighted", f"dataset: {{repo: a/b, revision: {repo}}}")
    text = text.replace(f"  name: {MODEL}", f"  name: {MODEL}\n  revision: {repo}")
    path.write_text(text)
    assert run(tmp_path, "check").returncode == 0


@pytest.mark.parametrize("other", [True, False])
def test_the_model_is_processed_as_the_files_say(tmp_path: Path, other: bool) -> None:
    """Measured on another model, the numbers would be those of other activations."""
    said = [{"model_name": "gpt2", "model_from_pretrained_kwargs": {"center_writing_weights": flag}} for flag in (True, other)]
    folders = [Folder(f"layer_{number}", metadata) for number, metadata in enumerate(said)]
    reference = parse_reference("hf://alice/centred")
    imported = repository.manifest_of(reference, "0" * 40, folders, "centred", None, UPSTREAM)
    path = tmp_path / "centred.yaml"
    path.write_text(imported.text)
    (release,) = load([path])
    assert dict(release.saes[0].model.kwargs) == ({"center_writing_weights": True} if other else {})
    assert [note for note in imported.notes if "do not agree" in note] == ([] if other else [imported.notes[0]])


@pytest.mark.parametrize("hub_process", ["lfs"], indirect=True)
def test_what_the_files_do_not_say_is_left_open(hub_server: HubServer, tmp_path: Path) -> None:
    hub_server.create_repo("alice/mixed")
    root = folder_of(tmp_path, 1, "blocks.0.hook_resid_post", "/home/alice/model", neuronpedia_id="gpt2-small/0-res")
    other = folder_of(tmp_path, 2, "", "gpt2", neuronpedia_id=7)
    cfg = {**json.loads(other["cfg.json"]), "normalize_activations": "expected_average_only_in"}
    files = {**root, **{f"a/b/{name}": data for name, data in other.items()}, "a/b/cfg.json": json.dumps(cfg).encode()}
    sha = hub_server.push("alice/mixed", files)
    hub = Hub(Cache(tmp_path / "cache"))
    reference = parse_reference("hf://alice/mixed")
    found_sha, folders = saelens_folders(hub, reference)
    assert found_sha == sha
    assert [folder.path for folder in folders] == ["", "a/b"]
    imported = repository.manifest_of(reference, sha, folders, "mixed", None, UPSTREAM)
    assert len(imported.notes) == 3
    assert "the files name /home/alice/model, gpt2" in imported.notes[0]
    assert "Not all files say their hook" in imported.notes[1]
    assert "a/b: inputs need a norm_scaling_factor" in imported.notes[2]
    with pytest.raises(Refused, match="model"):
        checked(imported)
    named = repository.manifest_of(reference, sha, folders, "mixed", "gpt2", UPSTREAM)
    path = tmp_path / "mixed.yaml"
    path.write_text(named.text)
    (release,) = load([path])
    assert [(sae.id, sae.source.path, dict(sae.entry)) for sae in release.saes if sae.source is not None] == [
        ("blocks.0.hook_resid_post", "", {"neuronpedia": "gpt2-small/0-res"}),
        ("a/b", "a/b", {}),
    ]
    assert [folder.path for folder in saelens_folders(hub, parse_reference("hf://alice/mixed/a"))[1]] == ["a/b"]


@pytest.mark.parametrize("hub_process", ["lfs"], indirect=True)
@pytest.mark.parametrize(
    ("words", "part"),
    [
        (("hf://alice/nothing",), "There is no model repository alice/nothing"),
        ((f"hf://{REPO}@nope",), "has no revision nope"),
        ((f"hf://{REPO}/dict",), "`saesync init hf://alice/many/dict` looks for other formats"),
        ((f"hf://{REPO}", "--release", "a/b"), "Not a release name"),
        ((f"hf://{REPO}/damaged",), "has no SAE"),
    ],
)
def test_repos_that_cannot_be_imported(
    hub_server: HubServer, repo: str, tmp_path: Path, words: tuple[str, ...], part: str
) -> None:
    done = run(tmp_path, "import", *words)
    assert done.returncode == 1
    assert part in done.stderr
    assert not (tmp_path / "manifests").exists()

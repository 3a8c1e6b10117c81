"""What is brought from the Hub: which files of models and datasets, and what is asked before anything is downloaded."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from apply_world import Run
from hub_world import SOURCES, HubWorld
from servers.loopback import HubServer

from saesync import preflight, room
from saesync.cache import Cache
from saesync.errors import Missing, Refused
from saesync.executors import fetch
from saesync.hub import Hub
from saesync.model import DatasetSpec, ModelSpec
from saesync.resolve import SourceFile

Look = Callable[..., Run]
pytestmark = pytest.mark.parametrize("hub_process", ["lfs"], indirect=True)
SMALL = {"config.json": b"{}", "tokenizer.json": b"{}", "chat_template.jinja": b"x", "merges.txt": b"x", "tokenizer.model": b"x"}
INDEX = json.dumps({"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}).encode()
SHARDS = {"model-00001-of-00002.safetensors": b"1", "model-00002-of-00002.safetensors": b"2"}


def pushed(server: HubServer, files: Mapping[str, bytes], kind: str = "model") -> str:
    server.create_repo("alice/thing", kind=kind)
    return server.push("alice/thing", files, kind=kind)


def model_files(server: HubServer, folder: Path, files: Mapping[str, bytes]) -> set[str]:
    sha = pushed(server, {**SMALL, **files, "modeling_x.py": b"raise SystemExit", "onnx/model.onnx": b"x", "run.sh": b"x"})
    parcel = fetch.model_parcel(ModelSpec("alice/thing", None, sha), Hub(Cache(folder)))
    assert parcel is not None
    assert parcel.files.keys() >= SMALL.keys()
    return parcel.files.keys() - SMALL.keys()


def test_one_weights_file(hub_server: HubServer, tmp_path: Path) -> None:
    extra = {"model.fp16.safetensors": b"x", "consolidated.safetensors": b"x", "adapter_model.safetensors": b"x"}
    found = model_files(hub_server, tmp_path, {"model.safetensors": b"w", "pytorch_model.bin": b"x", **extra})
    assert found == {"model.safetensors"}


def test_shards_are_those_of_the_index(hub_server: HubServer, tmp_path: Path) -> None:
    more = {"model.safetensors.index.json": INDEX, "consolidated.safetensors": b"x", "model-00001-of-00001.safetensors": b"x"}
    assert model_files(hub_server, tmp_path, {**SHARDS, **more}) == {"model.safetensors.index.json", *SHARDS}


@pytest.mark.parametrize(
    ("files", "kind", "words"),
    [
        ({"pytorch_model.bin": b"x", "adapter_model.safetensors": b"x"}, Refused, "can run code when read (pytorch_model.bin)"),
        ({"README.md": b"x"}, Refused, "holds no weights"),
        ({"model.safetensors.index.json": INDEX}, Missing, "lacks model-00001-of-00002.safetensors"),
        ({"model.safetensors.index.json": b"[]"}, Refused, "does not list the model's shards"),
    ],
)
def test_what_cannot_be_loaded_is_refused_before_any_download(
    hub_server: HubServer, tmp_path: Path, files: Mapping[str, bytes], kind: type[Exception], words: str
) -> None:
    with pytest.raises(kind) as caught:
        model_files(hub_server, tmp_path, files)
    assert words in str(caught.value)
    assert hub_server.count("lfs.get") == 0


def card(*configs: str) -> bytes:
    return ("---\nconfigs:\n" + "\n".join(configs) + "\n---\n").encode()


def config(name: str, extra: str = "") -> str:
    return f"- config_name: {name}\n{extra}  data_files:\n  - split: train\n    path: {name}/*.jsonl"


@pytest.mark.parametrize(
    ("front", "asked", "expected"),
    [
        (card(config("en"), config("de")), "de", {"de/a.jsonl"}),
        (card(config("en")), None, {"en/a.jsonl"}),
        (card(config("en"), config("de", "  default: true\n")), None, {"de/a.jsonl"}),
        (card(config("en"), config("de")), None, "Name one as `config`"),
        (b"no card", "en", {"en/a.jsonl"}),
    ],
)
def test_configs_are_never_mixed(hub_server: HubServer, tmp_path: Path, front: bytes, asked: str | None, expected: Any) -> None:
    sha = pushed(hub_server, {"README.md": front, "en/a.jsonl": b"x" * 99, "de/a.jsonl": b"y" * 99}, "dataset")
    spec = DatasetSpec("alice/thing", None, sha, asked)
    if isinstance(expected, str):
        with pytest.raises(Refused) as caught:
            fetch.dataset_parcel(spec, 1000, Hub(Cache(tmp_path)))
        assert "en, de" in str(caught.value)
        assert expected in str(caught.value)
    else:
        parcel = fetch.dataset_parcel(spec, 1000, Hub(Cache(tmp_path)))
        assert parcel is not None
        assert set(parcel.files) == expected


@pytest.mark.parametrize(
    ("asked", "split", "expected"),
    [
        ("en", "train", {"train-en.jsonl"}),  # not every name that holds the two letters
        (None, "train", {"train-en.jsonl", "train-open.jsonl"}),
        (None, "val", {"valid-en.jsonl"}),
        (None, "test", None),
    ],
)
def test_files_are_chosen_by_the_words_of_their_names(
    hub_server: HubServer, tmp_path: Path, asked: str | None, split: str, expected: set[str] | None
) -> None:
    names = ("train-en.jsonl", "train-open.jsonl", "valid-en.jsonl")
    sha = pushed(hub_server, dict.fromkeys(names, b"x" * 99), "dataset")
    spec = DatasetSpec("alice/thing", None, sha, asked, split)
    if expected is None:
        with pytest.raises(Refused, match="for split 'test'"):
            fetch.dataset_parcel(spec, 1000, Hub(Cache(tmp_path)))
    else:
        parcel = fetch.dataset_parcel(spec, 1000, Hub(Cache(tmp_path)))
        assert parcel is not None
        assert set(parcel.files) == expected


def test_a_dataset_that_only_has_other_splits_is_not_taken_for_train(hub_server: HubServer, tmp_path: Path) -> None:
    sha = pushed(hub_server, {"test-0.jsonl": b"x" * 99}, "dataset")
    with pytest.raises(Refused, match="for split 'train'"):
        fetch.dataset_parcel(DatasetSpec("alice/thing", None, sha), 10, Hub(Cache(tmp_path)))


def test_a_dataset_that_is_a_script_is_refused(hub_server: HubServer, tmp_path: Path) -> None:
    sha = pushed(hub_server, {"thing.py": b"raise SystemExit", "README.md": b"x"}, "dataset")
    with pytest.raises(Refused, match=r"no \.parquet, \.jsonl or \.txt files"):
        fetch.dataset_parcel(DatasetSpec("alice/thing", None, sha), 10, Hub(Cache(tmp_path)))


def test_preflight_asks_once_per_repo_and_counts_a_file_once(
    hub_world: HubWorld, look: Look, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hundred SAEs of one file: it is downloaded once, and reading it is tried once."""
    path = hub_world.manifest()
    many = "".join(f"    - {{id: copy_{n}, layer: 0, format: goodfire, path: goodfire/layer_0.pth}}\n" for n in range(100))
    text = path.read_text()
    path.write_text(text.replace("  for_each:\n", f"  for_each:\n{many}"))
    run = look(path)
    plan, context = run.look()
    hub_world.server.restart_counters()
    counted: list[int] = []
    short = room._short
    monkeypatch.setattr(room, "_short", lambda claims, cache: short([counted.append(c.size) or c for c in claims], cache))
    assert preflight.check(plan, context) == ()
    reads = [entry for entry in hub_world.server.log() if "/resolve/" in entry["path"] and SOURCES in entry["path"]]
    assert len(reads) <= 2, [entry["path"] for entry in reads]  # one file, and where it is redirected to
    source = (hub_world.folder / "sources" / "goodfire" / "layer_0.pth").stat().st_size
    assert counted[0] < 100 * source, "of a file that all of them need, one download"
    assert counted[1] < 100 * source, "and one conversion"


@pytest.mark.parametrize("damaged", ["blob", "folder", "both"])
@pytest.mark.parametrize("damage", ["cut", "overwritten", "cleaned", "a folder"])
def test_what_was_damaged_since_it_was_fetched_is_fetched_again(
    hub_server: HubServer, tmp_path: Path, damaged: str, damage: str
) -> None:
    hub_server.create_repo("alice/thing")
    weights = b"weights" * 1000
    sha = hub_server.push("alice/thing", {"ae.pt": weights, "deep/config.json": b"{}"}, lfs=("ae.pt",))
    cache = Cache(tmp_path)
    hub = Hub(cache)
    files = {name: SourceFile(name, digest) for name, digest in hub.tree("alice/thing", sha).items() if name != ".gitattributes"}
    parcel = fetch.Parcel("alice/thing", sha, "model", files)
    first = fetch.bring(parcel, hub, cache)
    kinds = ("blob", "folder") if damaged == "both" else (damaged,)
    for path in [path for kind in kinds for path in (tmp_path / kind).rglob("*") if path.is_file()]:
        data = path.read_bytes()
        path.unlink()  # the other name of the same file stays as it is
        if damage == "a folder":
            path.mkdir()
        elif damage != "cleaned":
            path.write_bytes(data[:-2] if damage == "cut" else bytes(len(data)))
    second = fetch.bring(parcel, hub, cache)
    assert second == first
    assert {name: (second / name).read_bytes() for name in files} == {"ae.pt": weights, "deep/config.json": b"{}"}


@pytest.mark.parametrize("name", ["../../evil", "a/../../../evil", "/tmp/evil", "a\\..\\evil", ".."])
def test_no_name_leaves_the_folder_it_is_laid_out_in(hub_server: HubServer, tmp_path: Path, name: str) -> None:
    """The names are the server's, which no git need have checked."""
    hub_server.create_repo("alice/thing")
    sha = hub_server.push("alice/thing", {"ae.pt": b"weights"})
    cache = Cache(tmp_path / "in" / "cache")
    hub = Hub(cache)
    files = {name: SourceFile("ae.pt", hub.tree("alice/thing", sha)["ae.pt"])}
    with pytest.raises(Refused, match="would leave its folder"):
        fetch.bring(fetch.Parcel("alice/thing", sha, "model", files), hub, cache)
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.read_bytes() == b"weights"]

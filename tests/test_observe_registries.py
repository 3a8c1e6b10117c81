"""What a registry says of each release: one that cannot be read never stops the plan of the others."""

from __future__ import annotations

from pathlib import Path

import yaml
from planning import release

from saesync.cache import Cache
from saesync.model import RegisterSpec
from saesync.observe_registries import observe_registries
from saesync.planning.registration import Seen

GOOD = {"conversion_func": None, "model": "gpt2", "repo_id": "a/b", "saes": [{"id": "x", "path": "x", "neuronpedia": "gpt2/1-x"}]}


def looked(tmp_path: Path, text: str, *names: str) -> dict[str, Seen]:
    file = tmp_path / "pretrained_saes.yaml"
    file.write_text(text)
    releases = [release(name, register=RegisterSpec(str(file))) for name in names]
    return dict(observe_registries(releases, Cache(tmp_path / "cache")))


def test_what_stands_there_and_who_has_which_neuronpedia_id(tmp_path: Path) -> None:
    for _ in range(2):  # read, then from the cache
        found = looked(tmp_path, yaml.dump({"one": GOOD}), "one", "two")
        assert found["one"].entry is not None
        assert found["one"].entry.saes[0].id == "x"
        assert (found["two"].entry, found["two"].unknown) == (None, None)
        assert (dict(found["one"].taken), dict(found["two"].taken)) == ({}, {"gpt2/1-x": "one"})


def test_an_entry_that_is_none_holds_its_release_only(tmp_path: Path) -> None:
    found = looked(tmp_path, yaml.dump({"one": GOOD, "two": {"repo_id": 3}}), "one", "two")
    assert found["one"].unknown is None
    assert found["two"].unknown is not None
    assert "saesync registry lint" in str(found["two"].unknown.data["detail"])


def test_a_file_that_is_no_registry_holds_all_of_them(tmp_path: Path) -> None:
    found = looked(tmp_path, "- a\n- b\n", "one", "two")
    assert all(seen.unknown is not None for seen in found.values())


def test_a_registry_that_is_not_there_is_unknown(tmp_path: Path) -> None:
    asked = release("one", register=RegisterSpec(str(tmp_path / "nowhere.yaml")))
    (seen,) = observe_registries([asked], Cache(tmp_path / "cache")).values()
    assert seen.unknown is not None


def test_nothing_is_looked_at_when_nobody_registers(tmp_path: Path) -> None:
    assert observe_registries([release("one")], Cache(tmp_path / "cache")) == {}

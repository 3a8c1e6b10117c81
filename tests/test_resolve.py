"""Keys from real files: what they depend on, and what happens where the files are not."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from planning import SPEC, entry_of, evidence_of, files_of, release, sae
from unprivileged import no_override

from saesync import formats, resolve
from saesync.apply.builds import keep_evidence
from saesync.cache import Cache
from saesync.digest import digest_bytes
from saesync.keys import Inputs, Wanted
from saesync.measure import metrics
from saesync.model import (
    WEIGHTS_FILE,
    Choices,
    DatasetSpec,
    Item,
    ModelSpec,
    Observed,
    PublishSpec,
    Release,
    Requirement,
    Sae,
    SourceSpec,
    Status,
)
from saesync.planfile import show_json
from saesync.planner import plan
from saesync.reason import ReasonCode
from saesync.record import Record
from saesync.resolve import Resolver, local_files
from saesync.targets.local import Local


class Disk:
    """A local source, model and dataset, and a release over them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.cache = folder, Cache(folder / "cache")
        self.put("source/ae.pth", "weights")
        for name in ("config.json", "model.safetensors", "tokenizer.json"):
            self.put(f"model/{name}", name)
        self.put("data/part.jsonl", '{"text": "a"}')
        where = PublishSpec("local", str(folder / "published"))
        source = SourceSpec(None, None, str(folder / "source" / "ae.pth"), "goodfire")
        model = ModelSpec(None, str(folder / "model"), None)
        spec = replace(SPEC, dataset=DatasetSpec(None, str(folder / "data")))
        asked = sae(source=source, model=model, validate=spec)
        self.release: Release = replace(release(), publish=where, saes=(asked,))
        self.place = (where.target, where.location)
        self.observed = Observed(*self.place)

    def put(self, name: str, text: str) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def wanted(self) -> Wanted:
        return Resolver(self.cache).resolve([self.release], {self.place: self.observed})["res/layer_0"]

    def inputs(self) -> Inputs:
        found = self.wanted().inputs
        assert found is not None
        return found

    def item(self) -> Item:
        wanted = {"res/layer_0": self.wanted()}
        return plan([self.release], wanted, {self.place: self.observed}, Choices()).items[0]

    def publish(self) -> None:
        inputs = self.inputs()
        files = {f"layer_0/{name}": digest for name, digest in files_of(inputs).items()}
        record = Record("res", {"layer_0": entry_of(inputs)})
        self.observed = Observed(*self.place, exists=True, files=files, records={"res": record})


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    return Disk(tmp_path)


HUB_MODEL, HUB_DATA = ModelSpec("acme/model", None, "a" * 40), DatasetSpec("acme/text", None, "a" * 40, "en")
WEIGHTS, BUILD, MEASURE = {"weights", "build", "measure"}, {"build"}, {"measure"}
EDITS: dict[str, tuple[Callable[[Sae], Sae], set[str]]] = {
    "dtype": (lambda one: replace(one, dtype="bfloat16"), WEIGHTS),
    "cfg": (lambda one: replace(one, cfg={"apply_b_dec_to_input": True}), WEIGHTS),
    "an option": (lambda one: replace(one, source=replace(source_of(one), options={"k": 3})), WEIGHTS),
    "hook": (lambda one: replace(one, hook="blocks.1.hook_resid_post"), BUILD | MEASURE),
    "hook_out": (lambda one: replace(one, hook_out="blocks.1.hook_mlp_out"), BUILD | MEASURE),
    "neuronpedia": (lambda one: replace(one, neuronpedia_id="tiny/0-res"), BUILD),
    "model": (lambda one: replace(one, model=HUB_MODEL), BUILD | MEASURE),
    "loader": (lambda one: replace(one, model=replace(one.model, loader="AutoModelForCausalLM")), BUILD | MEASURE),
    "model's dtype": (lambda one: replace(one, model=replace(one.model, dtype="bfloat16")), BUILD | MEASURE),
    "kwargs": (lambda one: replace(one, model=replace(one.model, kwargs={"fold_ln": True})), BUILD | MEASURE),
    "dataset": (lambda one: measuring(one, dataset=HUB_DATA), MEASURE),
    "split": (lambda one: measuring(one, dataset=replace(text_of(one), split="test")), MEASURE),
    "column": (lambda one: measuring(one, dataset=replace(text_of(one), column="code")), MEASURE),
    "tokens": (lambda one: measuring(one, tokens=123_456), MEASURE),
    "context": (lambda one: measuring(one, context=17), BUILD | MEASURE),
    "BOS": (lambda one: measuring(one, prepend_bos=False), BUILD | MEASURE),
    "requirements": (lambda one: measuring(one, require=(Requirement("l0", "max", 3.0),)), set()),
}
ON_THE_HUB: dict[str, tuple[Callable[[Sae], Sae], set[str]]] = {
    "model's revision": (lambda one: replace(one, model=replace(one.model, revision="b" * 40)), BUILD | MEASURE),
    "model's name": (lambda one: replace(one, model=replace(one.model, name="acme/other")), BUILD | MEASURE),
    "dataset's revision": (lambda one: measuring(one, dataset=replace(text_of(one), revision="b" * 40)), MEASURE),
    "dataset's name": (lambda one: measuring(one, dataset=replace(text_of(one), repo="acme/other")), MEASURE),
    "config": (lambda one: measuring(one, dataset=replace(text_of(one), config="de")), MEASURE),
}


def source_of(one: Sae) -> SourceSpec:
    assert one.source is not None
    return one.source


def text_of(one: Sae) -> DatasetSpec:
    assert one.validate is not None
    return one.validate.dataset


def measuring(one: Sae, **changes: Any) -> Sae:
    assert one.validate is not None
    return replace(one, validate=replace(one.validate, **changes))


def keys(disk: Disk, one: Sae) -> Mapping[str, str | None]:
    disk.release = replace(disk.release, saes=(one,))
    found = disk.inputs()
    return {"weights": found.weights_key, "build": found.build_key, "measure": found.measure_key}


def changed(before: Mapping[str, Any], after: Mapping[str, Any]) -> set[str]:
    return {name for name in before if before[name] != after[name]}


@pytest.mark.parametrize("what", [*EDITS, *ON_THE_HUB])
def test_each_thing_that_is_asked_stands_in_its_keys(disk: Disk, what: str) -> None:
    """What is missing in a key would never be made, or measured, again; what is too much in it would be for nothing."""
    asked = disk.release.saes[0]
    if what in ON_THE_HUB:
        asked = measuring(replace(asked, model=HUB_MODEL), dataset=HUB_DATA)
    edit, expected = {**EDITS, **ON_THE_HUB}[what]
    assert changed(keys(disk, asked), keys(disk, edit(asked))) == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("source/ae.pth", WEIGHTS),
        ("model/config.json", BUILD | MEASURE),
        ("model/model.safetensors", BUILD | MEASURE),
        ("data/part.jsonl", MEASURE),
    ],
)
def test_local_files_are_keyed_by_content(disk: Disk, name: str, expected: set[str]) -> None:
    """One byte is another, and the length is the same."""
    before = keys(disk, disk.release.saes[0])
    disk.put(name, (disk.folder / name).read_text()[:-1] + "#")
    assert changed(before, keys(disk, disk.release.saes[0])) == expected


def test_a_link_in_a_source_does_not_lead_out_of_it(disk: Disk) -> None:
    """A source may come from anybody, and what it is made of is published."""
    disk.put("private/key", "secret")
    (disk.folder / "source" / "ae.pth").unlink()
    (disk.folder / "source" / "ae.pth").symlink_to(disk.folder / "private" / "key")
    blocked = disk.wanted().blocked
    assert blocked is not None
    assert "is a link to" in str(blocked.data["detail"])
    assert disk.item().steps == ()


@pytest.mark.parametrize("what", ["converter", "writer", "metrics"])
def test_versions_of_what_makes_and_measures_stand_in_the_keys(disk: Disk, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = keys(disk, disk.release.saes[0])
    if what == "converter":
        monkeypatch.setattr(type(formats.get("goodfire")), "version", 99)
    elif what == "writer":
        monkeypatch.setattr(formats, "WRITER_VERSION", 99)
    else:
        monkeypatch.setattr(metrics, "ROWS_VERSION", 99)
        resolve._metrics.cache_clear()
    after = keys(disk, disk.release.saes[0])
    monkeypatch.undo()
    resolve._metrics.cache_clear()
    assert changed(before, after) == (MEASURE if what == "metrics" else WEIGHTS)


AWAY = [("source", "source"), ("model", "model"), ("data", "dataset")]


@pytest.mark.parametrize(("folder", "what"), AWAY)
def test_inputs_that_are_not_on_this_machine_are_compared_by_record(disk: Disk, folder: str, what: str) -> None:
    disk.publish()
    before = disk.inputs()
    assert disk.item().status is Status.CURRENT
    assert disk.item().reasons == ()
    shutil.rmtree(disk.folder / folder)
    item = disk.item()
    assert (item.status, item.held) == (Status.CURRENT, False)
    assert [(reason.code, reason.data["what"]) for reason in item.reasons] == [(ReasonCode.SOURCE_NOT_HERE, what)]
    assert (disk.inputs().build_key, disk.inputs().measure_key) == (before.build_key, before.measure_key)
    disk.release = replace(disk.release, saes=(replace(disk.release.saes[0], hook="blocks.1.hook_resid_post"),))
    item = disk.item()
    assert (item.status, item.held, item.steps) == (Status.HELD, True, ())
    assert item.reasons[0].code is ReasonCode.SOURCE_NOT_HERE


@pytest.mark.parametrize(("folder", "what"), AWAY)
def test_what_is_in_no_record_and_not_here_is_held_by_name(disk: Disk, folder: str, what: str) -> None:
    shutil.rmtree(disk.folder / folder)
    item = disk.item()
    assert (item.status, item.held) == (Status.HELD, True)
    assert item.reasons[0].code is ReasonCode.SOURCE_NOT_HERE
    assert item.reasons[0].data["what"] == what
    assert folder in item.reasons[0].data["path"]


@pytest.mark.parametrize(
    "name",
    [
        "model/README.md",
        "model/.DS_Store",
        "model/config.json~",
        "model/figures/a.json",
        "data/README.md",
        "data/.part.jsonl.swp",
    ],
)
def test_what_is_not_read_is_not_keyed(disk: Disk, name: str) -> None:
    """Touching a README must not measure everything again."""
    before = disk.inputs()
    disk.put(name, "anything")
    after = disk.inputs()
    assert (after.build_key, after.measure_key) == (before.build_key, before.measure_key)


@pytest.mark.parametrize("name", ["model/config.json", "model/merges.txt", "model/model.safetensors", "data/more/x.txt"])
def test_what_is_read_is_keyed(disk: Disk, name: str) -> None:
    before = disk.inputs()
    disk.put(name, "something else")
    assert disk.inputs().measure_key != before.measure_key


def test_a_saved_dataset_is_keyed_by_its_tables(disk: Disk) -> None:
    disk.put("data/state.json", "{}")
    disk.put("data/data-0.arrow", "rows")
    before = disk.inputs()
    disk.put("data/notes.txt", "not read")
    assert disk.inputs().measure_key == before.measure_key
    disk.put("data/data-0.arrow", "other rows")
    assert disk.inputs().measure_key != before.measure_key


def test_files_whose_names_are_no_text(disk: Disk) -> None:
    """POSIX names are bytes: such a file is seen, and stops nothing."""
    odd = os.fsdecode(b"caf\xe9.txt")
    disk.put(f"data/{odd}", "text")
    assert disk.inputs().measure_key is not None
    disk.put(f"published/layer_0/{odd}", "text")
    seen = Local(disk.cache).observe(disk.place[1])
    assert seen.unknown is None
    assert seen.files == {f"layer_0/{odd}": digest_bytes(b"text")}
    disk.observed = seen
    assert disk.item().status is Status.FOREIGN
    json.dumps(show_json(disk.item(), disk.wanted(), seen), ensure_ascii=False).encode()


def test_weights_that_are_not_recorded_say_nothing(disk: Disk) -> None:
    """A record that names digests of the wrong kind is no help."""
    disk.publish()
    entry = disk.observed.records["res"].saes["layer_0"]
    odd = replace(entry, inputs={"weights": {"source.digest": ["x"]}, "build": {}}, evidence=())
    disk.observed = replace(disk.observed, records={"res": Record("res", {"layer_0": odd})})
    shutil.rmtree(disk.folder / "source")
    assert disk.item().status is Status.HELD
    assert WEIGHTS_FILE in entry.files


def test_failing_evidence_counts_once_it_is_in_its_place(disk: Disk, tmp_path: Path) -> None:
    """A run that was killed between measuring and writing to ``records:`` is completed by the next one."""
    inputs = disk.inputs()
    missed = evidence_of(inputs, files_of(inputs), 0.1)
    keep_evidence(disk.cache, missed)
    assert disk.wanted().evidence == missed
    records = PublishSpec("local", str(tmp_path / "records"))
    disk.release = replace(disk.release, records=records)
    assert disk.wanted().evidence is None
    entry = replace(entry_of(inputs), files={}, evidence=(missed,))
    there = Observed("local", records.location, exists=True, records={"res": Record("res", {"layer_0": entry})})
    places = {disk.place: disk.observed, ("local", records.location): there}
    assert Resolver(disk.cache).resolve([disk.release], places)["res/layer_0"].evidence == missed
    passing = evidence_of(inputs, files_of(inputs), 0.9)
    keep_evidence(disk.cache, passing)
    assert disk.wanted().evidence == passing


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read anything")
def test_a_file_that_may_not_be_read_holds_its_sae(disk: Disk) -> None:
    (disk.folder / "source" / "ae.pth").chmod(0)
    item = disk.item()
    assert (item.status, item.held, item.reasons[0].code) == (Status.HELD, True, ReasonCode.SOURCE_MISSING)


def test_a_link_that_leads_nowhere_holds_its_sae(disk: Disk) -> None:
    (disk.folder / "source" / "ae.pth").unlink()
    (disk.folder / "source" / "ae.pth").symlink_to(disk.folder / "source" / "ae.pth")
    item = disk.item()
    assert (item.status, item.held) == (Status.HELD, True)


def test_what_is_not_published_from_here_is_not_looked_up(disk: Disk) -> None:
    """A retired release may have lost its source; one without a place has no keys to compare."""
    for change in ({"retire": True}, {"publish": None}):
        away = replace(disk.release, **change)
        assert Resolver(disk.cache).resolve([away], {disk.place: disk.observed}) == {}


def test_thousands_of_sources_in_one_folder(disk: Disk) -> None:
    saes = []
    for number in range(300):
        disk.put(f"source/{number}.pth", str(number))
        source = SourceSpec(None, None, str(disk.folder / "source" / f"{number}.pth"), "goodfire")
        saes.append(replace(disk.release.saes[0], id=f"layer_{number}", source=source))
    disk.release = replace(disk.release, saes=tuple(saes))
    listed = 0

    def look(event: str, args: tuple[object, ...]) -> None:
        nonlocal listed
        listed += event == "os.scandir" and str(args[0]).endswith("source")

    sys.addaudithook(look)
    found = Resolver(disk.cache).resolve([disk.release], {disk.place: disk.observed})
    assert len({wanted.inputs.weights_key for wanted in found.values() if wanted.inputs}) == 300
    assert listed == 1


def test_a_predicted_hook_is_measured_and_labelled_under_keys_of_its_own(tmp_path: Path) -> None:
    disk = Disk(tmp_path)
    before = disk.wanted()
    asked = replace(disk.release.saes[0], hook_out="blocks.0.hook_mlp_out")
    disk.release = replace(disk.release, saes=(asked,))
    after = disk.wanted()
    assert before.inputs is not None
    assert after.inputs is not None
    assert after.inputs.weights_key == before.inputs.weights_key
    assert after.inputs.build_key != before.inputs.build_key
    assert after.inputs.measure_key != before.inputs.measure_key
    assert after.inputs.build["metadata.hook_name_out"] == "blocks.0.hook_mlp_out"


def test_a_folder_that_cannot_be_read_is_not_taken_for_empty(tmp_path: Path) -> None:
    """Its digest would be of less than is there."""
    (tmp_path / "model" / "part").mkdir(parents=True)
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "model" / "part" / "shut.json").write_text("{}")
    (tmp_path / "model" / ".git").mkdir()
    assert list(local_files(tmp_path / "model")) == ["config.json", "part/shut.json"]
    (tmp_path / "model" / "part").chmod(0)
    code = f"from pathlib import Path; from saesync.resolve import local_files; local_files(Path({str(tmp_path / 'model')!r}))"

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, preexec_fn=no_override)
    (tmp_path / "model" / "part").chmod(0o700)
    assert "PermissionError" in done.stderr

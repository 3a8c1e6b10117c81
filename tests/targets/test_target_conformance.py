"""One suite over all targets that hold files: a local folder, and a Hub repo by either upload protocol."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from servers.loopback import HubServer, running_hub
from target_support import BEGIN, END, Place, batch, native_upload, upload

import saesync.targets.reading
from saesync.cache import Cache
from saesync.digest import digest_bytes, digest_file
from saesync.errors import Conflict, Missing, Refused
from saesync.hub import Hub
from saesync.reason import ReasonCode
from saesync.record import record_path
from saesync.targets import open_target, targets
from saesync.targets.base import Placing, Target, Upload
from saesync.targets.huggingface import HuggingFace
from saesync.targets.local import Local


@pytest.fixture(scope="module", params=["local", "lfs", "xet"])
def hub_process(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubServer | None]:
    if request.param == "local":
        yield None
        return
    with running_hub(tmp_path_factory.mktemp("hub"), request.param) as server:
        yield server


@pytest.fixture
def place(request: pytest.FixtureRequest, hub_process: HubServer | None, tmp_path: Path) -> Place:
    cache = Cache(tmp_path / "cache")
    if hub_process is None:
        return Place(Local(cache, patience=5), str(tmp_path / "published"), None)
    server = request.getfixturevalue("hub_server")
    return Place(HuggingFace(cache, Hub(cache, patience=5)), "alice/saes", server)


def test_targets_are_found() -> None:
    assert {"huggingface", "local"} <= set(targets())
    assert all(kind.summary for kind in targets().values())


def test_open_target(tmp_path: Path) -> None:
    assert isinstance(open_target("local", Cache(tmp_path)), Target)
    with pytest.raises(Missing, match="huggingface, local"):
        open_target("lokal", Cache(tmp_path))


def test_absent(place: Place) -> None:
    seen = place.observe()
    assert (seen.exists, seen.unknown, dict(seen.files)) == (False, None, {})
    place.target.check_write(place.location, private=False)


@pytest.mark.parametrize("stands", ["layer_0", "layer_0/topk/cfg.json/notes.txt", "README.md/notes.txt", "saesync"])
def test_what_stands_in_the_way_stays(place: Place, tmp_path: Path, stands: str) -> None:
    """Not even --replace may write over it: git would drop it without a word."""
    place.exists()
    place.somebody_else({stands: b"mine"})
    seen, before = place.observe(), place.writes()
    assert isinstance(place.target, Placing)
    with pytest.raises(Missing, match=r"is a (file, and has to be a folder|folder, and has to be a file)"):
        place.target.check_paths(place.location, ["README.md", "saesync/res.json", "layer_0/topk/cfg.json"])
    work = batch("res", {"layer_0/topk": upload(tmp_path / "one", 1)}, replace=frozenset({"layer_0/topk"}))
    with pytest.raises(Missing, match=r"is a (file, and has to be a folder|folder, and has to be a file)"):
        place.publish(work, seen)
    assert place.text(stands) == "mine"
    assert place.writes() == before


def test_publish_then_observe(place: Place, tmp_path: Path) -> None:
    one = upload(tmp_path / "one", 1, size=2_000_000)
    steps: list[tuple[int, int]] = []
    after = place.target.publish(
        place.location, batch("res", {"layer_0": one}), place.observe(), lambda *step: steps.append(step)
    )
    assert after == place.observe()
    assert after.records["res"].saes["layer_0"] == one.record
    for name, digest in one.record.files.items():
        assert after.folder("layer_0")[name].same_bytes(digest)
    assert after.visibility == (None if place.server is None else "public")
    assert after.card_vouched or after.readme == place.text("README.md")
    assert "layer_0 10.0" in place.text("README.md")
    assert steps[-1][0] == steps[-1][1] > 0


def test_second_publish_writes_nothing(place: Place, tmp_path: Path) -> None:
    work = batch("res", {"a/b": upload(tmp_path / "one", 1), "c": upload(tmp_path / "two", 2)})
    first = place.publish(work)
    before = place.writes()
    again = batch(
        "res", {name: replace(one, record=replace(one.record, run={"seconds": 9})) for name, one in work.uploads.items()}
    )
    assert place.publish(again) == first
    assert place.publish(again, expect=replace(first, files={}, records={})) == first
    assert place.writes() == before


def test_a_batch_is_one_write(place: Place, tmp_path: Path) -> None:
    place.publish(batch("res", {f"layer_{n}": upload(tmp_path / str(n), n) for n in range(5)}))
    if place.server is not None:
        assert len(place.server.commits(place.location)) == 2  # and the one that creates the repo
        assert place.server.stats()["auth_leaks"] == 0


def test_changed_folder_is_a_conflict(place: Place, tmp_path: Path) -> None:
    seen = place.publish(batch("res", {"layer_0": upload(tmp_path / "one", 1)}))
    place.somebody_else({"layer_0/cfg.json": b"{}"})
    before = place.writes()
    with pytest.raises(Conflict, match=r"layer_0/cfg\.json"):
        place.publish(batch("res", {"layer_0": upload(tmp_path / "two", 2)}), expect=seen)
    assert place.writes() == before


def test_changed_record_entry_is_a_conflict(place: Place, tmp_path: Path) -> None:
    first = upload(tmp_path / "one", 1)
    seen = place.publish(batch("res", {"layer_0": first}))
    place.publish(batch("res", {"layer_0": replace(first, record=replace(first.record, adopted=True))}))
    with pytest.raises(Conflict, match="record of res/layer_0"):
        place.publish(batch("res", {"layer_0": replace(first, record=replace(first.record, proof={"x": 1}))}), expect=seen)


def test_foreign_changes_elsewhere_are_kept(place: Place, tmp_path: Path) -> None:
    seen = place.publish(batch("res", {"layer_0": upload(tmp_path / "one", 1)}))
    place.somebody_else({"notes.txt": b"mine", "other/cfg.json": b"{}"})
    after = place.publish(batch("res", {"layer_1": upload(tmp_path / "two", 2)}), expect=seen)
    assert set(after.records["res"].saes) == {"layer_0", "layer_1"}
    assert after.files["notes.txt"].same_bytes(digest_bytes(b"mine"))
    assert "other/cfg.json" in after.files


def test_foreign_files_in_the_folder_are_not_overwritten(place: Place, tmp_path: Path) -> None:
    place.exists()
    place.somebody_else({"layer_0/cfg.json": b"{}", "layer_0/notes.txt": b"mine"})
    work = batch("res", {"layer_0": upload(tmp_path / "one", 1)})
    with pytest.raises(Conflict, match="not written by saesync"):
        place.publish(work)
    after = place.publish(replace(work, replace=frozenset({"layer_0"})))
    assert after.folder("layer_0")["notes.txt"].same_bytes(digest_bytes(b"mine"))
    assert after.folder("layer_0")["cfg.json"].same_bytes(work.uploads["layer_0"].record.files["cfg.json"])


def test_rebuild_replaces_files_and_drops_old_ones(place: Place, tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "sparsity.safetensors").write_bytes(b"\0old")
    seen = place.publish(batch("res", {"layer_0": upload(tmp_path / "one", 1)}))
    assert "layer_0/sparsity.safetensors" in seen.files
    new = upload(tmp_path / "two", 2)
    after = place.publish(batch("res", {"layer_0": new}), expect=seen)
    assert set(after.folder("layer_0")) == set(new.record.files)
    assert all(after.folder("layer_0")[name].same_bytes(digest) for name, digest in new.record.files.items())


def test_relabel_sends_only_the_cfg(place: Place, tmp_path: Path) -> None:
    old = upload(tmp_path / "one", 1, size=3_000_000)
    place.publish(batch("res", {"layer_0": old}))
    sent = place.server.uploaded_bytes() if place.server else 0
    new = upload(tmp_path / "two", 1, size=3_000_000, cfg="b")
    after = place.publish(batch("res", {"layer_0": Upload(new.record, {"cfg.json": new.files["cfg.json"]})}))
    assert after.folder("layer_0")["cfg.json"].same_bytes(new.record.files["cfg.json"])
    assert (place.server.uploaded_bytes() if place.server else 0) == sent


def test_evidence_alone_changes_record_and_card(place: Place, tmp_path: Path) -> None:
    old = upload(tmp_path / "one", 1)
    place.publish(batch("res", {"layer_0": old}))
    new = upload(tmp_path / "one", 1, l0=77.0)
    after = place.publish(batch("res", {"layer_0": Upload(new.record)}))
    assert after.records["res"].saes["layer_0"].evidence == new.record.evidence
    assert "layer_0 77.0" in place.text("README.md")


def test_hand_written_text_is_kept(place: Place, tmp_path: Path) -> None:
    place.exists()
    text = f"---\nlicense: mit\n---\n# Mine\n\nBefore — ünïcode.\r\n\n{BEGIN}\nold\n{END}\nAfter.\n"
    place.somebody_else({"README.md": text.encode()})
    after = place.publish(batch("res", {"layer_0": upload(tmp_path / "one", 1)}))
    readme = place.text("README.md")
    assert after.card_vouched or after.readme == readme
    assert readme.startswith(text.partition(BEGIN)[0])
    assert readme.endswith("\nAfter.\n")
    assert "layer_0" in readme


def test_readme_that_is_not_text_is_refused(place: Place, tmp_path: Path) -> None:
    place.exists()
    place.somebody_else({"README.md": b"caf\xe9"})
    with pytest.raises(Refused, match="UTF-8"):
        place.publish(batch("res", {"layer_0": upload(tmp_path / "one", 1)}))
    assert place.observe().records == {}


def test_two_releases_in_one_place(place: Place, tmp_path: Path) -> None:
    place.publish(batch("res", {"layer_0": upload(tmp_path / "one", 1)}))
    with pytest.raises(Conflict, match="record of res"):
        place.publish(batch("mlp", {"layer_0": upload(tmp_path / "one", 1)}))
    after = place.publish(batch("mlp", {"mlp_0": upload(tmp_path / "two", 2)}))
    assert set(after.records) == {"res", "mlp"}
    assert set(after.records["res"].saes) == {"layer_0"}


def test_move_copies_inside_the_target(place: Place, tmp_path: Path) -> None:
    old = upload(tmp_path / "one", 1, size=3_000_000)
    place.publish(batch("res", {"layer_0": old}))
    sent = place.server.uploaded_bytes() if place.server else 0
    new = upload(tmp_path / "two", 1, size=3_000_000, cfg="b")
    moved = Upload(new.record, {"cfg.json": new.files["cfg.json"]}, copy_from="layer_0")
    after = place.publish(batch("res", {"renamed/layer_0": moved}, removed=frozenset({"layer_0"})))
    assert after.folder("layer_0") == {}
    assert set(after.records["res"].saes) == {"renamed/layer_0"}
    assert all(after.folder("renamed/layer_0")[name].same_bytes(digest) for name, digest in new.record.files.items())
    assert (place.server.uploaded_bytes() if place.server else 0) == sent
    with pytest.raises(Conflict, match="does not hold it"):
        place.publish(batch("res", {"again": Upload(old.record, {}, copy_from="layer_0")}))


@pytest.mark.parametrize(("old", "new"), [("layer_0", "layer_0/topk"), ("layer_0/topk", "layer_0")])
def test_an_sae_that_moves_into_or_out_of_its_own_folder(place: Place, tmp_path: Path, old: str, new: str) -> None:
    """In two commits of one run: what the first put there is nobody's change, and the second deletes nothing of it."""
    made = upload(tmp_path / "one", 1)
    seen = place.publish(batch("res", {old: made}))
    place.publish(batch("res", {new: Upload(made.record, {}, copy_from=old)}), seen)
    after = place.publish(batch("res", {}, removed=frozenset({old})), seen)
    assert set(after.records["res"].saes) == {new}
    assert paths_of(place) == {f"{new}/{name}" for name in made.record.files}


def test_small_files_are_copied_too(place: Place, tmp_path: Path) -> None:
    old = upload(tmp_path / "one", 1)
    place.publish(batch("res", {"layer_0": old}))
    after = place.publish(batch("res", {"twin": Upload(old.record, {}, copy_from="layer_0")}))
    assert all(after.folder("twin")[name].same_bytes(digest) for name, digest in old.record.files.items())


def test_delete_takes_only_what_is_ours(place: Place, tmp_path: Path) -> None:
    place.publish(batch("res", {"gone/a": upload(tmp_path / "one", 1), "kept": upload(tmp_path / "two", 2)}))
    place.somebody_else({"gone/a/cfg.json": b'{"changed": "by hand"}', "gone/a/notes.txt": b"mine"})
    seen = place.observe()
    after = place.publish(batch("res", {}, removed=frozenset({"gone/a"})))
    assert set(after.folder("gone/a")) == {"cfg.json", "notes.txt"}
    assert after.folder("kept") == seen.folder("kept")
    assert set(after.records["res"].saes) == {"kept"}
    assert "gone/a" not in place.text("README.md")


def test_record_of_a_newer_version_is_locked(place: Place, tmp_path: Path) -> None:
    place.publish(batch("res", {"layer_0": upload(tmp_path / "one", 1)}))
    place.somebody_else({record_path("res"): json.dumps({"version": 99, "release": "res"}).encode(), record_path("bad"): b"[1"})
    seen = place.observe()
    assert seen.locked["res"].code is ReasonCode.RECORD_NEWER
    assert seen.locked["res"].data["found"] == 99
    assert seen.locked["bad"].code is ReasonCode.RECORD_UNREADABLE
    with pytest.raises(Conflict, match="cannot be read"):
        place.publish(batch("res", {"layer_0": upload(tmp_path / "two", 2)}))


def test_a_record_that_is_too_long_is_locked_and_not_read(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its size stands in the listing: a file that says it is a record costs nothing, however long it is."""
    place.exists()
    place.somebody_else({record_path("res"): b" " * 3000})
    monkeypatch.setattr(saesync.targets.reading, "MAX_RECORD_BYTES", 2999)
    read: list[str] = []
    files = place.observe().files
    records, locked = saesync.targets.reading.read_records(files, lambda path: read.append(path) or b"")
    assert not records
    assert "3,000 bytes" in str(locked["res"].data["detail"])
    assert not read
    assert place.observe().locked.keys() == {"res"}


def test_files_that_changed_after_the_proof_are_refused(place: Place, tmp_path: Path) -> None:
    for size in (20_000, 3_000_000):  # sent from memory, and streamed
        one = upload(tmp_path / "one", 1, size=size)
        with one.files["sae_weights.safetensors"].open("r+b") as stream:
            stream.seek(10)
            stream.write(b"flipped")
        with pytest.raises(Refused, match="digest of its proof"):
            place.publish(batch("res", {"layer_0": one}))
        assert place.observe().records == {}
        assert place.observe().folder("layer_0") == {}


def test_unknown_file_in_a_batch_is_refused(place: Place, tmp_path: Path) -> None:
    one = upload(tmp_path / "one", 1)
    with pytest.raises(Refused, match="stands in no record"):
        place.publish(batch("res", {"layer_0": replace(one, files={**one.files, "extra.bin": one.files["cfg.json"]})}))


def test_fetch_checks_what_it_brings(place: Place, tmp_path: Path) -> None:
    one = upload(tmp_path / "one", 1, size=3_000_000)
    seen = place.publish(batch("res", {"layer_0": one}))
    into = tmp_path / "back" / "sae_weights.safetensors"
    found = place.target.fetch(place.location, seen, "layer_0/sae_weights.safetensors", into)
    assert found == one.record.files["sae_weights.safetensors"] == digest_file(into)
    with pytest.raises(Missing):
        place.target.fetch(place.location, seen, "layer_0/nothing", into)


def test_evidence_of_two_releases_may_have_equal_ids(place: Place, tmp_path: Path) -> None:
    """Entries without files claim no folder: one place can hold the evidence of many releases."""
    for number, name in enumerate(("res", "mlp")):
        entry = replace(upload(tmp_path / name, number).record, files={})
        place.publish(batch(name, {"layer_0": Upload(entry)}))
    seen = place.observe()
    assert sorted(seen.records) == ["mlp", "res"]
    assert seen.folder("layer_0") == {}
    with pytest.raises(Conflict, match="stands in the record of"):
        place.publish(batch("other", {"layer_0": upload(tmp_path / "third", 3)}))


def paths_of(place: Place) -> set[str]:
    """What stands in the place, but for its record and card."""
    return {path for path in place.observe().files if not path.startswith(("saesync/", "README", ".git"))}


def test_native_files_stand_apart_and_give_way_to_converted_ones(place: Place, tmp_path: Path) -> None:
    native, made = native_upload(tmp_path / "native", 1), upload(tmp_path / "made", 2)
    after = place.publish(batch("res", {"deep/one": native, "two": native}))
    names = ("checkpoints/final.safetensors", "hyperparams.json", "refusal.json")
    assert paths_of(place) == {f"native/{sae_id}/{name}" for sae_id in ("deep/one", "two") for name in names}
    assert after.records["res"].saes["deep/one"] == native.record
    assert set(after.folder("two")) == set(native.record.files)
    before = place.writes()
    assert place.publish(batch("res", {"deep/one": native, "two": native})) == after
    assert place.writes() == before
    place.publish(batch("res", {"deep/one": made}, removed=frozenset({"two"})))
    assert paths_of(place) == {"deep/one/cfg.json", "deep/one/sae_weights.safetensors"}
    place.publish(batch("res", {"deep/one": native}))
    assert paths_of(place) == {f"native/deep/one/{name}" for name in names}
    if place.server is None:
        assert {path.name for path in Path(place.location).iterdir()} == {"README.md", "native", "saesync"}


def test_a_changed_native_file_is_a_conflict_and_is_not_deleted(place: Place, tmp_path: Path) -> None:
    seen = place.publish(batch("res", {"one": native_upload(tmp_path / "native", 1)}))
    place.somebody_else({"native/one/hyperparams.json": b"[]"})
    with pytest.raises(Conflict, match=r"native/one/hyperparams\.json"):
        place.publish(batch("res", {"one": upload(tmp_path / "made", 2)}), expect=seen)
    with pytest.raises(Conflict, match=r"native/one/hyperparams\.json"):
        place.publish(batch("res", {}, removed=frozenset({"one"})), expect=seen)
    place.publish(batch("res", {}, removed=frozenset({"one"})))
    assert paths_of(place) == {"native/one/hyperparams.json"}


def test_an_sae_never_stands_among_native_files(place: Place, tmp_path: Path) -> None:
    place.exists()
    with pytest.raises(Refused, match="Folder name"):
        place.publish(batch("res", {"native/one": upload(tmp_path / "made", 1)}))


def test_what_drifted_is_put_back_and_nothing_is_pending(place: Place, tmp_path: Path) -> None:
    one = upload(tmp_path / "one", 1)
    seen = place.publish(batch("res", {"layer_0": one}))
    place.somebody_else({"layer_0/cfg.json": b"{}"})
    after = place.publish(batch("res", {"layer_0": one}, replace=frozenset({"layer_0"})))
    assert after.folder("layer_0") == seen.folder("layer_0")
    assert after.records["res"] == seen.records["res"]

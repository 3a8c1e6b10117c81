"""Records: what saesync writes it reads back; what anybody else wrote never crashes it and never leaves its folder."""

from __future__ import annotations

import json
import posixpath

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import saesync.record
from saesync.digest import FileDigest, canonical, digest_bytes
from saesync.folders import path_of, roots_of
from saesync.record import (
    RECORD_VERSION,
    Evidence,
    Metric,
    Native,
    Pending,
    Record,
    RecordNewer,
    SaeRecord,
    parse_record,
    safe_folder,
)
from saesync.record_json import RecordUnreadable

HEX = "0123456789abcdef"
sha256s = st.text(HEX, min_size=64, max_size=64)
flats = st.dictionaries(st.text(max_size=10), st.one_of(st.integers(), st.text(max_size=10), st.none()), max_size=3)
digests = st.builds(FileDigest, st.integers(0, 2**40), sha256s, st.text(HEX, min_size=40, max_size=40))
metrics = st.dictionaries(
    st.sampled_from(["l0", "mse", "explained_variance"]),
    st.builds(Metric, st.floats(allow_nan=False, allow_infinity=False), st.one_of(st.none(), st.floats(0, 1))),
)
evidences = st.builds(Evidence, sha256s, sha256s, metrics, flats, flats)
saes = st.builds(
    SaeRecord,
    sha256s,
    sha256s,
    st.dictionaries(st.sampled_from(["cfg.json", "sae_weights.safetensors"]), digests),
    st.dictionaries(st.sampled_from(["weights", "build"]), flats, max_size=2),
    flats,
    st.lists(evidences, max_size=2).map(tuple),
    st.booleans(),
    flats,
    flats,
)
pendings = st.builds(
    Pending,
    sha256s,
    st.dictionaries(st.sampled_from(["cfg.json", "sae_weights.safetensors"]), st.lists(digests, max_size=2).map(tuple)),
)
records = st.builds(
    Record,
    st.just("r"),
    st.dictionaries(st.sampled_from(["a", "b/c", "layer_1/width_16k"]), saes),
    st.one_of(st.none(), sha256s),
    st.dictionaries(st.sampled_from(["a", "d"]), pendings, max_size=1),
)
values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=10,
)


@given(records)
@settings(max_examples=50, deadline=None)
def test_round_trip(record: Record) -> None:
    assert parse_record(record.to_bytes(), "r") == record


@given(st.binary(max_size=200))
@settings(max_examples=100, deadline=None)
def test_random_bytes_are_unreadable(data: bytes) -> None:
    with pytest.raises((RecordUnreadable, RecordNewer)):
        parse_record(data, "r")


@given(records, st.sampled_from(["saes", "card", "pending", "version", "release"]), values)
@settings(max_examples=100, deadline=None)
def test_a_spoiled_record_is_read_or_refused(record: Record, field: str, value: object) -> None:
    data = json.loads(record.to_bytes())
    data[field] = value
    try:
        found = parse_record(json.dumps(data).encode(), "r")
    except (RecordUnreadable, RecordNewer):
        return
    assert all(safe_folder(name) for name in (*found.saes, *found.pending))


@pytest.mark.parametrize("folder", ["../x", "/etc", "a/../b", "a\\b", ".git", "a/.hidden", "", "a//b", "a\nb", "a/ b"])
def test_folders_that_could_leave_are_refused(folder: str) -> None:
    assert not safe_folder(folder)
    data = json.dumps({"version": RECORD_VERSION, "release": "r", "saes": {folder: {}}}).encode()
    with pytest.raises(RecordUnreadable):
        parse_record(data, "r")


@pytest.mark.parametrize("name", ["../cfg.json", "a/b", ".hidden", "", "x" * 200])
def test_files_that_could_leave_are_refused(name: str) -> None:
    sae = SaeRecord("0" * 64, "1" * 64, {name: FileDigest(1, "2" * 64)})
    for record in (Record("r", {"a": sae}), Record("r", pending={"a": Pending("1" * 64, {name: ()})})):
        with pytest.raises(RecordUnreadable):
            parse_record(record.to_bytes(), "r")


pieces = st.sampled_from(
    ["a", "layer_0", "..", ".", "", "native", "saesync", "cfg.json", "Native", "\\", "C:", ".git", " ", "\u202e"]
)
paths = st.lists(pieces, min_size=1, max_size=4).map("/".join)


@given(paths, st.sets(paths, max_size=2), st.booleans(), st.booleans())
@settings(max_examples=400, deadline=None)
def test_what_is_believed_of_any_record_stays_in_its_folders(sae_id: str, files: set[str], native: bool, pending: bool) -> None:
    digest = {"size": 1, "sha256": "0" * 64}
    if pending:
        part: dict[str, object] = {"pending": {sae_id: {"build_key": "1" * 64, "files": {file: [digest] for file in files}}}}
    else:
        entry = {"weights_key": "0" * 64, "build_key": "1" * 64, "files": dict.fromkeys(files, digest)}
        part = {"saes": {sae_id: {**entry, "native": NATIVE} if native else entry}}
    try:
        found = parse_record(json.dumps({"version": 2, "release": "r", "saes": {}, **part}).encode(), "r")
    except RecordUnreadable:
        return
    for name, entry in (*found.saes.items(), *found.pending.items()):
        for file in entry.files:
            path = path_of(name, file)
            assert posixpath.normpath(path) == path
            assert "\\" not in path
            assert any(path.startswith(f"{root}/") for root in roots_of(name))
        assert not {"..", "native", "saesync", "", ".git"} & {name.split("/")[0].lower()}


def test_a_newer_record_is_told_from_an_unreadable_one() -> None:
    with pytest.raises(RecordNewer) as caught:
        parse_record(json.dumps({"version": RECORD_VERSION + 1}).encode(), "r")
    assert caught.value.found == RECORD_VERSION + 1


def test_a_record_of_another_release_is_unreadable() -> None:
    with pytest.raises(RecordUnreadable):
        parse_record(Record("other").to_bytes(), "r")


def test_a_record_that_is_too_long_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    digest = digest_bytes(b"w")
    many = Record("r", {f"layer_{n}": SaeRecord("0" * 64, "1" * 64, {"cfg.json": digest}) for n in range(3)}).to_bytes()
    assert len(parse_record(many, "r").saes) == 3
    monkeypatch.setattr(saesync.record, "MAX_SAES", 2)
    with pytest.raises(RecordUnreadable, match="lists 3 SAEs; at most 2 are read"):
        parse_record(many, "r")
    monkeypatch.setattr(saesync.record, "MAX_RECORD_BYTES", len(many) - 1)
    with pytest.raises(RecordUnreadable, match="bytes; at most"):
        parse_record(many, "r")


def test_only_one_earlier_evidence_is_kept() -> None:
    sae = SaeRecord("0" * 64, "1" * 64, {})
    for digit in "345":
        sae = sae.with_evidence(Evidence(digit * 64, "f" * 64, {}))
    assert [e.measure_key[0] for e in sae.evidence] == ["5", "4"]


def deep(levels: int) -> object:
    value: object = 1
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    "part",
    [
        '{"a": 1e999}',
        '{"a": [-1e999]}',
        '{"a": "\\ud800"}',
        '{"\\ud800": 1}',
        '{"a": {"\\udfff": 1}}',
        '{"a": "' + "x" * 30_000 + '"}',
        json.dumps({"a": deep(12)}),
        json.dumps({"a": deep(800)}),
        json.dumps({"a": list(range(10_000))}),
        json.dumps({str(n): n for n in range(300)}),
    ],
)
@pytest.mark.parametrize("where", ["proof", "about", "run", "inputs", "evidence"])
def test_what_could_not_be_written_again_is_unreadable(part: str, where: str) -> None:
    """A record is read, merged with and written; nothing in it may break that, or cost much."""
    evidence = f'[{{"measure_key": "{"a" * 64}", "weights_sha256": "{"b" * 64}", "metrics": {{}}, "about": {part}}}]'
    value = {"inputs": f'{{"weights": {part}}}', "evidence": evidence}.get(where, part)
    entry = f'{{"weights_key": "{"a" * 64}", "build_key": "{"b" * 64}", "files": {{}}, "{where}": {value}}}'
    with pytest.raises(RecordUnreadable):
        parse_record(f'{{"version": 1, "release": "r", "saes": {{"layer_0": {entry}}}}}'.encode(), "r")


@pytest.mark.parametrize("number", ["1e999", "-1e999", "1" + "0" * 400])
@pytest.mark.parametrize("field", ["value", "stderr"])
def test_a_metric_is_finite(number: str, field: str) -> None:
    metric = {"value": "0.5", "stderr": "0.1"} | {field: number}
    text = f'{{"l0": {{"value": {metric["value"]}, "stderr": {metric["stderr"]}}}}}'
    evidence = f'{{"measure_key": "{"a" * 64}", "weights_sha256": "{"b" * 64}", "metrics": {text}}}'
    with pytest.raises(RecordUnreadable, match="out of range"):
        Evidence.from_bytes(evidence.encode())


def test_a_standard_error_is_not_below_zero() -> None:
    metrics = {"l0": {"value": 0.5, "stderr": -1.0}}
    evidence = {"measure_key": "a" * 64, "weights_sha256": "b" * 64, "metrics": metrics}
    with pytest.raises(RecordUnreadable, match=r"`float` >= 0"):
        Evidence.from_bytes(json.dumps(evidence).encode())


@given(records, values)
@settings(max_examples=100, deadline=None)
def test_what_is_read_can_be_written_and_read_again(record: Record, value: object) -> None:
    data = json.loads(record.to_bytes())
    for entry in data["saes"].values():
        entry["about"] = {"odd": value}
    try:
        found = parse_record(json.dumps(data).replace("Infinity", "1e999").encode(), "r")
    except RecordUnreadable:
        return
    assert parse_record(found.to_bytes(), "r") == found
    assert all(canonical(dict(entry.about)) for entry in found.saes.values())


NATIVE = {"title": "Cannot be expressed in SAELens", "detail": "ae.pt holds k.", "said_by": "k"}
FILES = {"native/a/ae.pt": {"size": 1, "sha256": "0" * 64}}


def native_record(native: object = NATIVE, files: object = FILES) -> bytes:
    entry = {"weights_key": "0" * 64, "build_key": "0" * 64, "native": native, "files": files}
    return json.dumps({"version": 2, "release": "res", "saes": {"layer_0": entry}}).encode()


def test_a_native_sae_needs_a_reader_that_knows_them() -> None:
    record = parse_record(native_record(), "res")
    assert record.saes["layer_0"].native == Native("Cannot be expressed in SAELens", "ae.pt holds k.", "k")
    again = record.to_bytes()
    assert json.loads(again)["version"] == 2
    assert parse_record(again, "res") == record
    assert json.loads(Record("res").to_bytes())["version"] == 1
    half = Pending("0" * 64, {"native/ae.pt": (digest_bytes(b""),)})
    assert json.loads(Record("res", pending={"layer_0": half}).to_bytes())["version"] == 2


@pytest.mark.parametrize(
    ("native", "files"),
    [
        (None, FILES),
        (NATIVE, {"cfg.json": {"size": 1, "sha256": "0" * 64}}),
        (NATIVE, FILES | {"cfg.json": {"size": 1, "sha256": "0" * 64}}),
        (NATIVE, {"native/../cfg.json": {"size": 1, "sha256": "0" * 64}}),
        (NATIVE, {"native//ae.pt": {"size": 1, "sha256": "0" * 64}}),
        (NATIVE, {"native/": {"size": 1, "sha256": "0" * 64}}),
        (NATIVE | {"detail": "x" * 3000}, FILES),
        (NATIVE | {"said_by": 1}, FILES),
        ("yes", FILES),
        (NATIVE, {}),
        (True, FILES),
    ],
)
def test_a_native_sae_holds_native_files_alone(native: object, files: object) -> None:
    with pytest.raises(RecordUnreadable):
        parse_record(native_record(native, files), "res")


@pytest.mark.parametrize("sae_id", ["native", "native/layer_0", "Native/layer_0", "saesync", "Saesync/deeper"])
def test_an_sae_cannot_stand_among_native_files_or_records(sae_id: str) -> None:
    entry = {"weights_key": "0" * 64, "build_key": "0" * 64, "files": {}}
    with pytest.raises(RecordUnreadable):
        parse_record(json.dumps({"version": 1, "release": "res", "saes": {sae_id: entry}}).encode(), "res")

"""Header readers on damaged and hostile files: they refuse, they never hang, crash, or allocate what a header claims."""

from __future__ import annotations

import io
import json
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from saesync.errors import Refused
from saesync.formats import _npz, _safetensors, _torchzip
from saesync.formats._bytes import RangedBytes
from saesync.formats._checks import parse_json, parse_yaml

TENSORS = {"a": torch.arange(6.0).view(2, 3), "b": torch.zeros(3, dtype=torch.bfloat16)}


def source(data: bytes) -> RangedBytes:
    return RangedBytes(len(data), lambda start, stop: data[start:stop])


def torch_bytes(value: Any, zipped: bool = True) -> bytes:
    stream = io.BytesIO()
    torch.save(value, stream, _use_new_zipfile_serialization=zipped)
    return stream.getvalue()


def npz_bytes(**arrays: Any) -> bytes:
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)
    return stream.getvalue()


def read_safetensors(data: bytes) -> Any:
    return _safetensors.parse(source(data), "file")


def read_torch(data: bytes) -> Any:
    return _torchzip.parse(source(data), "file", locate=True)


def read_npz(data: bytes) -> Any:
    return _npz.parse(source(data), "file")


GOOD: dict[str, tuple[Callable[[bytes], Any], bytes]] = {
    "safetensors": (read_safetensors, save(TENSORS)),
    "torch zip": (read_torch, torch_bytes(OrderedDict(TENSORS))),
    "torch legacy": (read_torch, torch_bytes(OrderedDict(TENSORS), zipped=False)),
    "npz": (read_npz, npz_bytes(a=np.zeros((2, 3), np.float32), b=np.zeros(3))),
}


@pytest.mark.parametrize("kind", sorted(GOOD))
def test_the_whole_file_is_read(kind: str) -> None:
    read, data = GOOD[kind]
    found = read(data)
    assert set(getattr(found, "tensors", found)) == {"a", "b"}


@pytest.mark.parametrize("kind", sorted(GOOD))
@settings(max_examples=60, deadline=2000)
@given(data=st.data())
def test_any_change_is_read_or_refused(kind: str, data: st.DataObject) -> None:
    read, whole = GOOD[kind]
    spoilt = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(spoilt) - 1))
        spoilt[at : at + data.draw(st.integers(0, 8))] = data.draw(st.binary(max_size=8))
        if not spoilt:
            break
    try:
        read(bytes(spoilt))
    except Refused as refusal:
        assert refusal.diagnostics[0].detail.endswith(".")  # noqa: PT017  both outcomes are right


@pytest.mark.parametrize("read", [read_safetensors, read_torch, read_npz])
@settings(max_examples=60, deadline=2000)
@given(data=st.binary(max_size=300))
def test_random_bytes_are_refused(read: Callable[[bytes], Any], data: bytes) -> None:
    with pytest.raises(Refused):
        read(data)


POINTER_FILE = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"4d7a2146" * 8 + b"\nsize 12345\n"
READERS = {
    "safetensors": read_safetensors,
    "torch": read_torch,
    "npz": read_npz,
    "json": lambda data: parse_json(data, "file"),
    "yaml": lambda data: parse_yaml(data, "file"),
}


@pytest.mark.parametrize("kind", sorted(READERS))
def test_what_stands_in_place_of_a_file_is_named(kind: str) -> None:
    with pytest.raises(Refused, match="file is empty"):
        READERS[kind](b"")
    with pytest.raises(Refused, match=r"file is a git-lfs pointer.*`git lfs pull`"):
        READERS[kind](POINTER_FILE)


def safetensors_bytes(header: Any, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(shape: list[Any], start: Any, stop: Any, dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


@pytest.mark.parametrize(
    "data",
    [
        struct.pack("<Q", 1 << 60) + b"{}",
        struct.pack("<Q", 99) + b"{}",
        safetensors_bytes([1]),
        safetensors_bytes(b'{"a": 1, "a": 2}'),
        safetensors_bytes(b"[" * 100_000),
        safetensors_bytes({"a": entry([1 << 40], 0, 4)}, b"1234"),
        safetensors_bytes({"a": entry([1], 0, 4)}, b"12345"),
        safetensors_bytes({"a": entry([1], 0, 4), "b": entry([1], 0, 4)}, b"1234"),
        safetensors_bytes({"a": entry([1], 4, 8)}, b"12345678"),
        safetensors_bytes({"a": entry([-1], 0, -4)}, b""),
        safetensors_bytes({"a": entry([True], 0, 4)}, b"1234"),
        safetensors_bytes({"a": entry([1.0], 0, 4)}, b"1234"),
        safetensors_bytes({"a": entry([1], 0, 4, "F33")}, b"1234"),
        safetensors_bytes({"a": entry([1], 0, 4, ["F32"])}, b"1234"),
        safetensors_bytes({"a": {"dtype": "F32"}}, b""),
    ],
)
def test_hostile_safetensors_headers_are_refused(data: bytes) -> None:
    with pytest.raises(Refused):
        read_safetensors(data)


def zipped_pickle(data: bytes, compression: int = zipfile.ZIP_STORED, more: dict[str, bytes] | None = None) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as archive:
        archive.writestr("archive/data.pkl", data)
        for name, content in (more or {}).items():
            archive.writestr(name, content)
    return stream.getvalue()


def shared_tuples(depth: int) -> bytes:
    """A key whose hash takes 2**depth steps when it is built for real."""
    nest = b"".join(b"2\x86" for _ in range(depth))  # DUP, TUPLE2
    return b"\x80\x02}K\x01" + nest + b"K\x01s."


def nested_dictionaries(depth: int) -> bytes:
    """2**depth leaves from ``depth`` small dictionaries that share their children."""
    value: Any = {"x": 1}
    for _ in range(depth):
        value = {"a": value, "b": value}
    return pickle.dumps(value, 2)


@pytest.mark.parametrize(
    "data",
    [
        zipped_pickle(pickle.dumps({"a": 1}), zipfile.ZIP_DEFLATED),
        zipped_pickle(b"0" * (17 << 20), zipfile.ZIP_DEFLATED),
        zipped_pickle(shared_tuples(60)),
        zipped_pickle(nested_dictionaries(60)),
        zipped_pickle(b"\x80\x02}r\xff\xff\xff\xff" + b"(" * 50 + b"."),
        zipped_pickle(b"\x80\x02]q\x00h\x00a."[:-1] + b"\x85R."),
        zipped_pickle(pickle.dumps({"a": 1}), more={"other/data.pkl": b"."}),
        zipped_pickle(torch_bytes({})[:0]),
        zipped_pickle(pickle.dumps({}), more={"archive/byteorder": b"big"}),
        b"PK\x05\x06" + b"\0" * 18,
        b"\x8d\0\0\0\0\0\0\0\x01",  # a text of 2**56 bytes, it says
        b"\x80\x02\x8d\0\0\0\x40\0\0\0\0",  # and one of a gibibyte
        b"\x80\x02\x8a\x0al\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.",
    ],
)
def test_hostile_checkpoints_are_refused(data: bytes) -> None:
    with pytest.raises(Refused):
        read_torch(data)


def test_a_dictionary_that_contains_itself_is_refused() -> None:
    value: dict[str, Any] = {}
    value["self"] = value
    with pytest.raises(Refused, match="nest"):
        read_torch(zipped_pickle(pickle.dumps(value, 2)))


def test_a_tensor_outside_its_storage_is_refused() -> None:
    with zipfile.ZipFile(io.BytesIO(torch_bytes({"a": torch.zeros(5)}))) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    (name,) = (name for name in members if name.endswith("/data.pkl"))
    pickled = members.pop(name)
    assert pickled.count(b"K\x05\x85") == 1  # its shape, (5,)
    data = {place.replace(name.removesuffix("data.pkl"), "archive/"): content for place, content in members.items()}
    read_torch(zipped_pickle(pickled, more=data))
    with pytest.raises(Refused, match="outside its storage"):
        read_torch(zipped_pickle(pickled.replace(b"K\x05\x85", b"K\x63\x85"), more=data))


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_every_spelling_of_a_name_is_found(protocol: int) -> None:
    for value in (pickle.PickleError(), pytest.raises, Path("x"), complex(1, 2), {1, 2}):
        names = read_torch(zipped_pickle(pickle.dumps({"a": value}, protocol))).unsafe
        literal = isinstance(value, set) and protocol >= 4  # a literal of that protocol, no name
        assert bool(names) != literal, (value, protocol)


@pytest.mark.parametrize(
    "data", [b"(S'x'\nios\nsystem\n.", b"(cos\nsystem\nS'x'\no.", b"\x82\x01.", b"\x8c\x02os\x8c\x06system\x93."]
)
def test_old_and_odd_ways_to_name_a_class_are_found(data: bytes) -> None:
    assert read_torch(zipped_pickle(data)).unsafe != ()


def test_no_more_than_the_header_is_read() -> None:
    """A header on a server costs a few ranges, however large the file."""
    whole = torch_bytes({"a": torch.zeros(4 << 20)})
    read = 0

    def fetch(start: int, stop: int) -> bytes:
        nonlocal read
        read += stop - start
        return whole[start:stop]

    found = _torchzip.parse(RangedBytes(len(whole), fetch), "file")
    assert found.tensors["a"].shape == (4 << 20,)
    assert read < 1 << 20 < len(whole)


def test_object_arrays_are_refused() -> None:
    with pytest.raises(Refused, match="no plain numbers"):
        read_npz(npz_bytes(a=np.array([{}], dtype=object)))


@pytest.mark.parametrize("opcode", [b"\x8b" + struct.pack("<i", 2**31 - 1), b"\x8e" + struct.pack("<Q", 2**62)])
def test_a_length_in_a_pickle_is_not_allocated(opcode: bytes) -> None:
    with pytest.raises(Refused, match="too large"):
        _torchzip.parse(source(b"\x80\x04" + opcode + b"."), "x.pt")


@pytest.mark.parametrize("zipped", [True, False])
def test_plain_values_beside_tensors_are_told(zipped: bool) -> None:
    """Some formats keep their settings there; what is a list or an object stays a name."""
    state = {"a": TENSORS["a"], "activation": "TopK", "settings": {"k": 32, "rate": 0.5, "tied": False, "none": None}, "l": [1]}
    file = _torchzip.parse(source(torch_bytes(state, zipped)), "x.pt")
    assert set(file.tensors) == {"a"}
    assert file.values == {
        "activation": "TopK", "settings.k": 32, "settings.rate": 0.5, "settings.tied": False, "settings.none": None,
    }  # fmt: skip
    assert set(file.others) == {*file.values, "l"}

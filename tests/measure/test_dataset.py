"""Every kind of dataset gives the same rows; what is wrong with one is said."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from measure_world import THIRD_PARTY

from saesync.cache import Cache
from saesync.errors import Missing, Refused, SaesyncError
from saesync.measure.dataset import Cutting, TextSpec, documents, pack, sources, tokenised

pytestmark = [pytest.mark.filterwarnings(note) for note in THIRD_PARTY]
TEXTS = ["a b c d e f g", "h", "i j k l m n o p q r s", "", "t u v w x y z a b c d e f g h i j k l m n o p"]
CUTTING = Cutting(context=6, bos=1, separator=1)


def encode(text: str) -> list[int]:
    return [ord(word) for word in text.split()]


def rows(path: Path, cache: Path, count: int = 5, split: str = "train", **fields: Any) -> np.ndarray[Any, Any]:
    spec = TextSpec(str(path), fields.pop("files", ()), fields.pop("column", "text"), split)
    return tokenised(spec, CUTTING, count, fields.pop("encode", encode), {"name": "words"}, Cache(cache), **fields)


def expected(texts: list[str], count: int = 5) -> np.ndarray[Any, Any]:
    return np.array(list(pack(((encode(text), True) for text in texts), CUTTING))[:count], dtype=np.int32)


def write(kind: str, folder: Path) -> Path:
    lines = "".join(json.dumps({"id": 1, "text": text or None}) + "\n" for text in TEXTS)
    path = folder / f"text.{kind}"
    if kind == "jsonl":
        path.write_text(lines + "\n")
    elif kind == "jsonl.gz":
        path.write_bytes(gzip.compress(lines.encode()))
    elif kind == "jsonl.zst":
        import pyarrow

        with pyarrow.CompressedOutputStream(str(path), "zstd") as stream:
            stream.write(lines.encode())
    elif kind == "parquet":
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.table({"id": [1] * len(TEXTS), "text": TEXTS}), path)
    else:
        import datasets

        made: Any = datasets.Dataset.from_dict({"text": TEXTS})
        if kind == "dict":
            made = datasets.DatasetDict({"train": made, "test": datasets.Dataset.from_dict({"text": ["z"]})})
        made.save_to_disk(str(path))
    return path


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "jsonl.zst", "parquet", "saved", "dict"])
def test_every_kind_gives_the_same_rows(kind: str, tmp_path: Path) -> None:
    assert np.array_equal(rows(write(kind, tmp_path), tmp_path / "cache"), expected(TEXTS))


def test_a_text_file_is_one_document(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("a b c\n\nd e f g\r\nh i j")
    assert np.array_equal(rows(path, tmp_path / "cache", 2), expected(["a b c d e f g h i j"], 2))


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "a.jsonl", "a.jsonl.gz"])
def test_a_byte_order_mark_is_no_text(name: str, tmp_path: Path) -> None:
    """One at the beginning. Anywhere else it is a character, as for every reader."""
    text = "a\ufeffb c d e f"
    written = text if ".txt" in name else json.dumps({"text": text}, ensure_ascii=False) + "\n"
    data = b"\xef\xbb\xbf" + written.encode()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    seen: list[str] = []

    def noting(piece: str) -> list[int]:
        seen.append(piece)
        return encode("a b c d e f")

    rows(tmp_path / name, tmp_path / "cache", 1, encode=noting)
    assert seen == [text]


def test_a_long_text_file_comes_in_pieces_without_separators(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("a b c d e f g\n" * 20_000)
    seen: list[int] = []

    def counting(text: str) -> list[int]:
        seen.append(len(text))
        return encode(text)

    found = rows(path, tmp_path / "cache", 12_000, encode=counting)
    assert (found[:, 1:] != 1).all()
    assert 1 < len(seen) < 5  # and reading stopped when there was enough
    assert max(seen) < 70_000


SPLITS = ("train", "validation", "test")


def test_folders_are_read_by_name_and_split(tmp_path: Path) -> None:
    for name, text in (("b-train.txt", "d e f"), ("a-train.txt", "a b c"), ("c-test.txt", "x y z"), ("notes.md", "no")):
        (tmp_path / name).write_text(text)
    spec = TextSpec(str(tmp_path), (), "text", "train")
    assert [path.name for path in sources(spec)] == ["a-train.txt", "b-train.txt"]
    assert [path.name for path in sources(replace(spec, split="test"))] == ["c-test.txt"]
    with pytest.raises(Missing, match=r"there are a-train\.txt, b-train\.txt, c-test\.txt"):
        sources(replace(spec, split="validation"))  # not the text of another split
    assert [path.name for path in sources(replace(spec, files=("b-train.txt", "a-train.txt")))] == ["b-train.txt", "a-train.txt"]


def test_without_a_word_for_it_train_is_what_belongs_to_no_other_split(tmp_path: Path) -> None:
    for name in ("dev.txt", "part-0.txt", "part-1.txt", "eval/x.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("a b")
    found = {split: [path.name for path in sources(TextSpec(str(tmp_path), (), "text", split))] for split in SPLITS}
    assert found == {"train": ["part-0.txt", "part-1.txt"], "validation": ["dev.txt"], "test": ["x.txt"]}
    for name in ("part-0.txt", "part-1.txt"):
        (tmp_path / name).unlink()
    with pytest.raises(Missing, match="No file"):
        sources(TextSpec(str(tmp_path), (), "text", "train"))


def test_what_is_named_by_itself_is_not_read_as_a_split_that_it_is_not(tmp_path: Path) -> None:
    from datasets import Dataset, NamedSplit

    for name in ("text.txt", "my-test.txt"):
        (tmp_path / name).write_text("a b")
    Dataset.from_dict({"text": ["a b"]}, split=NamedSplit("test")).save_to_disk(tmp_path / "saved")
    Dataset.from_dict({"text": ["a b"]}).save_to_disk(tmp_path / "plain")

    def read(name: str, split: str) -> list[str]:
        spec = TextSpec(str(tmp_path / name), (), "text", split)
        return [text for text, _ in documents(spec, sources(spec))]

    for name, split in (("text.txt", "train"), ("my-test.txt", "test"), ("my-test.txt", "train"), ("saved", "test"),
                        ("saved", "train"), ("plain", "train")):  # fmt: skip
        assert read(name, split) == ["a b"]
    for name, split in (("text.txt", "test"), ("my-test.txt", "validation"), ("saved", "validation"), ("plain", "test")):
        with pytest.raises(Missing, match=f"split '{split}' is asked for. Leave `split` out"):
            read(name, split)


documents_of = st.lists(st.lists(st.integers(0, 4), max_size=9), max_size=12)


@settings(max_examples=60, deadline=None)
@given(documents=documents_of, context=st.integers(2, 7), bos=st.sampled_from([None, 1]), separator=st.sampled_from([None, 1]))
def test_rows_are_cut_as_sae_lens_cuts_them(
    documents: list[list[int]], context: int, bos: int | None, separator: int | None
) -> None:
    import torch
    from sae_lens.tokenization_and_batching import concat_and_batch_sequences

    tokens = (torch.tensor(document, dtype=torch.long) for document in documents)
    theirs = concat_and_batch_sequences(tokens, context, begin_batch_token_id=bos, sequence_separator_token_id=separator)
    ours = pack(((document, True) for document in documents), Cutting(context, bos, separator))
    assert list(ours) == [row.tolist() for row in theirs]


def test_rows_are_made_once(tmp_path: Path) -> None:
    path = write("jsonl", tmp_path)
    first = rows(path, tmp_path / "cache")

    def never(text: str) -> list[int]:
        raise AssertionError("tokenised again")

    assert np.array_equal(rows(path, tmp_path / "cache", encode=never), first)
    path.write_text(json.dumps({"text": "q " * 100}) + "\n")
    assert not np.array_equal(rows(path, tmp_path / "cache"), first)


def test_a_damaged_cache_entry_costs_time_only(tmp_path: Path) -> None:
    path = write("jsonl", tmp_path)
    first = rows(path, tmp_path / "cache")
    (entry,) = (tmp_path / "cache" / "tokens").rglob("tokens.npy")
    entry.write_bytes(entry.read_bytes()[:40])
    assert np.array_equal(rows(path, tmp_path / "cache"), first)


def test_too_little_text_says_how_much_there_is(tmp_path: Path) -> None:
    path = write("jsonl", tmp_path)
    there = len(expected(TEXTS, 1000))
    with pytest.raises(Missing, match=rf"gives {there * 6} tokens in {there} sequences of 6; 600 are asked for"):
        rows(path, tmp_path / "cache", 100)
    assert len(rows(path, tmp_path / "cache", 100, least=1)) == there


BROKEN: dict[str, tuple[bytes, str, type[SaesyncError]]] = {
    "a.jsonl": (b'{"text": "a"}\n{"body": "b", "n": 1}\n', "no column 'text'; line 2 has body, n", Missing),
    "half.jsonl": (b'{"text": "a"}\n{"text": "\\ud83d"}\n', "Line 2 of .* holds half a character", Refused),
    "b.jsonl": (b'{"text": "a"}\n{"text": \n', "Line 2 of .* is not JSON", Refused),
    "c.jsonl": (b"[1, 2]\n", "Line 1 of .* is not a JSON object", Refused),
    "d.jsonl": (b'{"text": [1, 2]}\n', "holds token ids or a list", Refused),
    "e.jsonl": (b'{"text": "\xff\xfe"}\n', "is not UTF-8", Refused),
    "f.jsonl.gz": (b"not gzip at all", "cannot be read", Refused),
    "g.parquet": (b"not parquet at all, only text", "cannot be read as parquet", Refused),
    "h.csv": (b"text\na\n", "is of another kind", Refused),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_wrong_with_a_file_is_said(name: str, tmp_path: Path) -> None:
    data, message, kind = BROKEN[name]
    (tmp_path / name).write_bytes(data)
    with pytest.raises(kind, match=message):
        rows(tmp_path / name, tmp_path / "cache")


def test_what_is_wrong_with_a_dataset_is_said(tmp_path: Path) -> None:
    with pytest.raises(Missing, match="There is no"):
        rows(tmp_path / "nowhere", tmp_path / "cache")
    (tmp_path / "empty").mkdir()
    with pytest.raises(Refused, match="holds none"):
        rows(tmp_path / "empty", tmp_path / "cache")
    with pytest.raises(Missing, match="it has test, train"):
        rows(write("dict", tmp_path), tmp_path / "cache", split="validation")
    with pytest.raises(Missing, match="has no column 'body'; it has text"):
        rows(write("saved", tmp_path), tmp_path / "cache", column="body")
    with pytest.raises(Missing, match="has no column 'body'; the file has id, text"):
        rows(write("parquet", tmp_path), tmp_path / "cache", column="body")

"""Which files are of a split or a config, by their names: as `datasets` tells them."""

from __future__ import annotations

import pytest

from saesync.splits import of_split, says


@pytest.mark.parametrize(
    ("split", "names", "expected"),
    [
        ("train", ["train1.jsonl", "train2.jsonl", "test1.jsonl", "val1.jsonl"], [0, 1]),
        ("validation", ["validation00.txt", "train00.txt"], [0]),
        ("dev", ["valid.txt", "train.txt"], [0]),
        ("test", ["test1.jsonl", "train1.jsonl"], [0]),
        ("train_sft", ["data/train_sft-00000-of-00002.parquet", "data/test_sft-00000-of-00001.parquet"], [0]),
        ("train", ["data/train-00000-of-00001.parquet", "data/train_sft-00000-of-00001.parquet"], [0]),
        ("train_sft", ["train-sft.jsonl", "train.jsonl"], [0]),
        ("train", ["eval/train.txt", "a/x.txt"], [1]),  # the folder tells
        ("test", ["eval/train.txt", "a/x.txt"], [0]),
        ("test", ["test_suite/dev-0.txt"], [0]),
        ("train", ["part-00000-of-00002.parquet", "part-00001-of-00002.parquet"], [0, 1]),
        ("train", ["c4/en/c4-train.00000-of-01024.json", "c4/en/c4-validation.00000-of-00008.json"], [0]),
        ("train", ["a.txt", "test.txt"], [0]),
        ("test", ["a.txt", "b.txt"], []),
        ("other", ["a.txt", "train.txt"], []),
        ("train", ["training/a.txt", "evaluation/a.txt"], [0]),
        ("train", ["brain.txt", "retrain.txt", "test.txt"], [0, 1]),
    ],
)
def test_files_of_a_split(split: str, names: list[str], expected: list[int]) -> None:
    assert of_split(names, split) == [names[index] for index in expected]
    assert of_split(iter(names), split.title()) == [names[index] for index in expected]


@pytest.mark.parametrize(
    ("name", "phrase", "expected"),
    [
        ("wikitext-2-raw-v1-train.parquet", "wikitext-2-v1", False),
        ("wikitext-2-v1-train.parquet", "wikitext-2-v1", True),
        ("data/open.jsonl", "en", False),
        ("data/en_GB.jsonl", "en", True),
        ("日本-train.jsonl", "中文", False),
        ("中文-train.jsonl", "中文", True),
        ("a/b.txt", "a b", False),
        ("a.txt", "_", False),
    ],
)
def test_the_words_of_a_config_stand_together(name: str, phrase: str, expected: bool) -> None:
    assert says(name, phrase) is expected

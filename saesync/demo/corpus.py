"""Text that every Python installation has: the source of its standard library."""

from __future__ import annotations

import hashlib
import json
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path

from saesync.demo.recipe import Recipe
from saesync.errors import Missing

# Tables, test data and other people's packages say little about how code is written.
_SKIPPED = frozenset(
    {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "encodings", "pydoc_data", "__pycache__"}
)
_MAX_FILE = 64 << 10
_HELD_OUT_EVERY = 8


def library() -> Path:
    """Where the standard library's source is."""
    return Path(sysconfig.get_path("stdlib"))


def write_corpus(folder: Path, recipe: Recipe, source: Path | None = None) -> dict[str, int]:
    """Write ``train.jsonl`` and ``held_out.jsonl`` (one ``{"text": ...}`` per source file). No file stands in both.

    Returns the bytes of text in each.

    Raises:
        Missing: this Python has no readable library source, or too little.
    """
    train: list[str] = []
    held_out: list[str] = []
    train_size = held_out_size = 0
    root = source or library()
    for index, text in enumerate(_texts(root)):
        size = len(text.encode())
        if index % _HELD_OUT_EVERY == 0 and held_out_size < recipe.held_out_bytes:
            held_out.append(text)
            held_out_size += size
        elif train_size < recipe.train_bytes:
            train.append(text)
            train_size += size
        elif held_out_size >= recipe.held_out_bytes:
            break
    if train_size < recipe.train_bytes / 2 or held_out_size < recipe.held_out_bytes / 2:
        raise Missing(
            "No library source",
            f"The demo learns from the source of Python's standard library, and {root} holds only {train_size:,} bytes of it. "
            "Use a Python that comes with its .py files.",
        )
    _write(folder / "train.jsonl", train)
    _write(folder / "held_out.jsonl", held_out)
    return {"train_bytes": train_size, "held_out_bytes": held_out_size}


def read_texts(path: Path) -> list[str]:
    """The texts of one of the files that ``write_corpus`` wrote."""
    with path.open(encoding="utf-8") as stream:
        return [json.loads(line)["text"] for line in stream]


def _texts(root: Path) -> Iterator[str]:
    paths = (path for path in root.rglob("*.py") if not _SKIPPED.intersection(path.relative_to(root).parts[:-1]))
    # In an order that is the same everywhere and unrelated to what the files are about.
    for path in sorted(paths, key=lambda path: hashlib.sha256(str(path.relative_to(root)).encode()).digest()):
        if 500 < path.stat().st_size <= _MAX_FILE:
            try:
                yield path.read_text(encoding="utf-8")
            except UnicodeDecodeError:
                continue


def _write(path: Path, texts: Iterable[str]) -> None:
    with path.open("w", encoding="utf-8") as stream:
        for text in texts:
            stream.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")

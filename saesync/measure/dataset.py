"""Text as rows of exactly ``context`` token ids, cut as SAELens's ActivationsStore cuts them.

What is read: ``.txt`` (a file is one document), ``.jsonl`` and ``.parquet`` (a document per row, from ``column``), all of them
also compressed (``.gz``, ``.bz2``, ``.zst``, ``.lz4``), datasets saved with ``save_to_disk``, and folders of such files in the
order of their names. Of a folder the files of ``split`` are read, as their names tell (``saesync.splits``).

How it is cut (``pack``): documents follow each other with one BOS between them; a row begins with BOS when ``prepend_bos``
is set; a document that does not fit goes on in the next row; what is left at the end is dropped. A tokenizer without BOS
has EOS between documents, and cannot prepend. Reading stops when there are rows enough.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from saesync.cache import Cache
from saesync.digest import key_of
from saesync.errors import Missing, Refused
from saesync.measure.metrics import ROWS_VERSION
from saesync.splits import DEFAULT, of_split

_BLOCK = 1 << 16  # characters of a .txt file tokenised at a time, then to the end of the line
_COMPRESSED = (".gz", ".bz2", ".zst", ".lz4")
_KINDS = (".txt", ".jsonl", ".parquet")
_HALF = re.compile("[\ud800-\udfff]")  # JSON can say what no UTF-8 can hold, and tokenizers do not take it
_SAVED = ("state.json", "dataset_dict.json")
Tokens = np.ndarray[tuple[int, int], np.dtype[np.int32]]


@dataclass(frozen=True, slots=True)
class TextSpec:
    """A dataset on this disk. ``files`` (absolute, or relative to ``path``) are read in order; empty: all that ``path`` holds."""

    path: str
    files: tuple[str, ...]
    column: str
    split: str


@dataclass(frozen=True, slots=True)
class Cutting:
    """How text becomes rows: ``bos`` is at the start of every row (None: no), ``separator`` between documents (None: nothing)."""

    context: int
    bos: int | None
    separator: int | None


def tokenised(
    spec: TextSpec,
    cutting: Cutting,
    rows: int,
    encode: Callable[[str], Sequence[int]],
    tokenizer: Mapping[str, Any],
    cache: Cache,
    least: int | None = None,
) -> Tokens:
    """The first ``rows`` rows ``[rows, context]`` of a dataset, from the cache or made now.

    ``encode`` gives a text's token ids without BOS; ``tokenizer`` identifies it (part of the cache key). With ``least``, fewer
    rows will do when the text ends.

    Raises:
        Missing: the dataset is not here, or too short (it is said how many tokens it has).
        Refused: a file is of no known kind, is damaged, or does not hold text where it is said to.
    """
    files = sources(spec)
    parts = [part for file in files for part in _parts(file)]
    key = key_of(
        {
            "rows version": ROWS_VERSION,
            "files": [["".join(part.suffixes[-2:]), cache.digest_of(part).sha256] for part in parts],
            "column": spec.column,
            "split": spec.split,
            "cutting": [cutting.context, cutting.bos, cutting.separator],
            "rows": rows,
            "tokenizer": dict(tokenizer),
        }
    )
    made = _read(cache.path("tokens", key), cutting.context) if cache.sealed("tokens", key) else None
    if made is None:
        pieces = ((encode(text), start) for text, start in documents(spec, files) if text)
        made = np.array(list(islice(pack(pieces, cutting), rows)), dtype=np.int32).reshape(-1, cutting.context)
        with cache.making("tokens", key, seal=True) as folder:
            np.save(folder / "tokens.npy", made, allow_pickle=False)
    if len(made) < (rows if least is None else least):
        raise _not_enough(spec, made, rows * cutting.context)
    return made


def _not_enough(spec: TextSpec, made: Tokens, asked: int) -> Missing:
    why = " Of a dataset on the Hub the first files of the split are fetched, enough if they are mostly text."
    return Missing(
        "Not enough text",
        f"The dataset {spec.path} gives {made.size:,} tokens in {len(made):,} sequences of {made.shape[1]:,}; {asked:,} are asked"
        f" for. Ask for fewer tokens or use a larger dataset.{why if spec.files else ''}",
    )


def pack(pieces: Iterable[tuple[Sequence[int], bool]], cutting: Cutting) -> Iterator[list[int]]:
    """Rows of exactly ``context`` ids from token pieces; a piece's flag says whether it begins a document.

    For whole documents equal to ``sae_lens.tokenization_and_batching.concat_and_batch_sequences``.
    """
    row: list[int] = []
    for piece, starts in pieces:
        offset, fresh = 0, starts
        while offset < len(piece):
            if not row:
                if cutting.bos is not None and piece[offset] != cutting.bos:
                    row.append(cutting.bos)
            elif fresh and cutting.separator is not None and piece[offset] != cutting.separator:
                row.append(cutting.separator)
            fresh = False
            taken = min(cutting.context - len(row), len(piece) - offset)
            row.extend(piece[offset : offset + taken])
            offset += taken
            if len(row) == cutting.context:
                yield row
                row = []


def sources(spec: TextSpec) -> tuple[Path, ...]:
    """The files (or saved-dataset folders) a dataset is read from, in order.

    Raises:
        Missing: something is not there, or nothing of this split.
        Refused: there is no file of a known kind.
    """
    root = Path(spec.path)
    named = [root / name for name in spec.files] or [root]
    for path in named:
        if not path.exists():
            raise Missing("Dataset is not here", f"There is no {path}. Fetch the dataset, or correct validate.dataset.")
    if not spec.files and root.is_file() and not of_split([root.name], spec.split):
        _require_default(spec, "is one file, and its name tells of none")
    found: list[Path] = []
    for path in named:
        found += [path] if path.is_file() or _is_saved(path) else _listed(path, spec.split)
    unknown = [path for path in found if path.is_file() and _kind(path) not in _KINDS]
    if unknown or not found:
        shown = f"{unknown[0]} is of another kind" if unknown else f"{root} holds none"
        kinds = ", ".join(_KINDS)
        raise Refused("Dataset kind is not known", f"Text is read from {kinds} and saved datasets; {shown}. Convert it first.")
    return tuple(found)


def documents(spec: TextSpec, files: Sequence[Path]) -> Iterator[tuple[str, bool]]:
    """Texts in order; the flag says whether a text begins a document (a long ``.txt`` comes in several pieces).

    Raises:
        Refused: see ``tokenised``.
    """
    for path in files:
        if path.is_dir():
            yield from ((text, True) for text in _saved_rows(path, spec))
        elif _kind(path) == ".parquet":
            yield from ((text, True) for text in _parquet_rows(path, spec.column))
        else:
            yield from _text_pieces(path) if _kind(path) == ".txt" else _json_rows(path, spec.column)


def _text_pieces(path: Path) -> Iterator[tuple[str, bool]]:
    first = True
    for lines in _blocks(path):
        yield lines, first
        first = False


def _blocks(path: Path) -> Iterator[str]:
    held: list[str] = []
    size = 0
    for line in _lines(path):
        held.append(line)
        size += len(line)
        if size >= _BLOCK:
            yield "".join(held)
            held, size = [], 0
    if held:
        yield "".join(held)


def _lines(path: Path) -> Iterator[str]:
    import io

    import pyarrow

    try:
        # "detect" goes by the name's ending
        with pyarrow.input_stream(str(path), compression="detect") as stream:
            # A byte order mark at the beginning says how the file is written: it is no part of what is written.
            yield from io.TextIOWrapper(stream, encoding="utf-8-sig", newline="\n")
    except UnicodeDecodeError as error:
        raise Refused("Dataset is not text", f"{path} is not UTF-8. Convert it, or use another file.") from error
    except OSError as error:
        raise Refused("Dataset is damaged", f"{path} cannot be read: {error}.") from error


def _json_rows(path: Path, column: str) -> Iterator[tuple[str, bool]]:
    for number, line in enumerate(_lines(path), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise Refused("Dataset is damaged", f"Line {number} of {path} is not JSON.") from error
        if not isinstance(row, dict):
            raise Refused("Dataset is damaged", f"Line {number} of {path} is not a JSON object.")
        if column not in row:
            raise _no_column(path, column, row, f"line {number}")
        text = _text(row[column], path, column)
        if _HALF.search(text):
            raise Refused("Dataset is damaged", f"Line {number} of {path} holds half a character (an unpaired surrogate).")
        yield text, True


def _parquet_rows(path: Path, column: str) -> Iterator[str]:
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if column not in names:
                raise _no_column(path, column, names, "the file")
            for batch in file.iter_batches(batch_size=256, columns=[column]):
                yield from (_text(value, path, column) for value in batch.column(0).to_pylist())
    except (pyarrow.ArrowException, OSError) as error:
        raise Refused("Dataset is damaged", f"{path} cannot be read as parquet: {error}.") from error


def _saved_rows(path: Path, spec: TextSpec) -> Iterator[str]:
    import datasets

    try:
        saved = datasets.load_from_disk(str(path))
        if isinstance(saved, datasets.DatasetDict):
            if spec.split not in saved:
                known = ", ".join(sorted(saved))
                raise Missing(
                    "Dataset has no such split", f"{path} has no split {spec.split!r}; it has {known}. Name one of them."
                )
            saved = saved[spec.split]
        elif str(saved.split) != spec.split:
            _require_default(spec, f"was saved as {saved.split}" if saved.split else "was saved without")
    except (OSError, ValueError, KeyError) as error:
        raise Refused("Dataset is damaged", f"{path} cannot be read as a saved dataset: {error}.") from error
    if spec.column not in saved.column_names:
        raise _no_column(path, spec.column, saved.column_names, "it")
    for row in saved.select_columns([spec.column]):
        yield _text(row[spec.column], path, spec.column)


def _require_default(spec: TextSpec, why: str) -> None:
    """What is named by itself is read whatever it is called, but not as a split that somebody asks for and it is not.

    Raises:
        Missing: a split is asked for.
    """
    if spec.split != DEFAULT:
        raise Missing("Dataset has no such split", f"{spec.path} {why}; split {spec.split!r} is asked for. Leave `split` out.")


def _text(value: Any, path: Path, column: str) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        kind = "token ids or a list" if isinstance(value, list) else type(value).__name__
        raise Refused("Dataset column is not text", f"Column {column!r} of {path} holds {kind}. Name a column of plain text.")
    return value


def _no_column(path: Path, column: str, names: Iterable[str], where: str) -> Missing:
    known = ", ".join(sorted(map(str, names))[:20])
    return Missing(
        "Dataset has no such column", f"{path} has no column {column!r}; {where} has {known}. Set `column` to one of them."
    )


def _listed(folder: Path, split: str) -> list[Path]:
    """A split's files of known kinds under a folder, by name, hidden ones left out.

    Raises:
        Missing: there are such files, but of other splits.
    """
    every = (path for path in folder.rglob("*") if path.is_file() and _kind(path) in _KINDS)
    inside = sorted(path.relative_to(folder) for path in every)
    names = {str(path): folder / path for path in inside if not any(part.startswith(".") for part in path.parts)}
    chosen = [names[name] for name in of_split(names, split)]
    if names and not chosen:
        known = ", ".join(list(names)[:5]) + (" ..." if len(names) > 5 else "")
        raise Missing(
            "Dataset has no such split",
            f"No file in {folder} is named as of split {split!r}; there are {known}. "
            "Correct `split`, or name a file as `path` and leave `split` out.",
        )
    return chosen


def _kind(path: Path) -> str:
    return path.with_suffix("").suffix if path.suffix in _COMPRESSED else path.suffix


def _is_saved(path: Path) -> bool:
    return any((path / name).is_file() for name in _SAVED)


def _parts(path: Path) -> list[Path]:
    return [path] if path.is_file() else sorted(part for part in path.rglob("*") if part.is_file())


def _read(folder: Path, context: int) -> Tokens | None:
    """A cached entry, or None when absent or damaged."""
    try:
        tokens = np.load(folder / "tokens.npy", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return tokens if tokens.dtype == np.int32 and tokens.ndim == 2 and tokens.shape[1] == context else None

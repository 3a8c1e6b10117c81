"""Where the files of an SAE stand in a target.

What saesync makes stands in a folder of the SAE's name; its authors' own files, published untouched, stand under ``native/``. A
file's name inside the SAE says which: of ``layer_0``, ``cfg.json`` is at ``layer_0/cfg.json``, and ``native/ae.pt`` at
``native/layer_0/ae.pt``. So one mapping of names holds all files of an SAE, whatever it is published as.
"""

from __future__ import annotations

from collections.abc import Iterator

NATIVE = "native"
RECORD_FOLDER = "saesync"
NATIVE_PREFIX = f"{NATIVE}/"
REFUSAL_FILE = f"{NATIVE}/refusal.json"
"""Name of the file that says, for machines, why an SAE is not converted."""


def path_of(sae_id: str, name: str) -> str:
    """The path in a target of the file ``name`` of an SAE."""
    if name.startswith(NATIVE_PREFIX):
        return f"{NATIVE_PREFIX}{sae_id}/{name[len(NATIVE_PREFIX) :]}"
    return f"{sae_id}/{name}"


def roots_of(sae_id: str) -> tuple[str, str]:
    """The two folders that hold an SAE's files."""
    return sae_id, f"{NATIVE_PREFIX}{sae_id}"


def own_name(rest: str) -> str:
    """The name of a file ``rest`` inside an SAE's own folder: never one that stands for a native file."""
    return f"./{rest}" if rest.startswith(NATIVE_PREFIX) else rest


def holders(path: str) -> Iterator[tuple[str, str]]:
    """Every SAE id that a path of a target may belong to, with the file's name inside that SAE."""
    end = path.find("/")
    while end > 0:
        yield path[:end], own_name(path[end + 1 :])
        end = path.find("/", end + 1)
    if path.startswith(NATIVE_PREFIX):
        start = len(NATIVE_PREFIX)
        end = path.find("/", start)
        while end > start:
            yield path[start:end], NATIVE_PREFIX + path[end + 1 :]
            end = path.find("/", end + 1)


def is_native(name: str) -> bool:
    """Whether a file of this name inside an SAE is one of those under ``native/``."""
    return name.startswith(NATIVE_PREFIX)


def reserved(sae_id: str) -> bool:
    """Whether an SAE of this id would stand among records, or among other SAEs' native files."""
    return sae_id.partition("/")[0].casefold() in (NATIVE, RECORD_FOLDER)

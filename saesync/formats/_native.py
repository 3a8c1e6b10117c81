"""Which files may be published as they are: tensor formats that cannot run code, and small configs. No torch.

This is stricter than reading: what is only read is only ours to be careful with, what is published others will open, with
readers that believe a file.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path

from saesync.errors import Refused
from saesync.folders import NATIVE_PREFIX, REFUSAL_FILE
from saesync.formats import _npz, _safetensors, _torchzip
from saesync.formats._bytes import LocalBytes, open_stream
from saesync.formats._checks import read_json, read_yaml
from saesync.formats._open import TORCH
from saesync.model import SAE_FILES
from saesync.record import safe_folder

TENSORS = (".safetensors", ".npz", *TORCH)
_ZIP = b"PK\x03\x04"
# What torch.save puts into its archive beside data.pkl and data/: one more entry could be a program (TorchScript's code/).
_BESIDE = frozenset(("version", "byteorder", ".format_version", ".storage_alignment", ".data/serialization_id"))


def require_name(name: str) -> None:
    """A file of this name in the source can have it in a target, too.

    Raises:
        Refused: it cannot.
    """
    if not safe_folder(name) or f"{NATIVE_PREFIX}{name}".casefold() == REFUSAL_FILE:
        raise Refused("File name is not usable", f"{name[:200]!r} cannot be the name of a published file.")


def require_publishable(files: Mapping[str, Path]) -> None:
    """Every file, by its name in the source, is of a tensor format or a small config, and one at least holds tensors.

    Files that SAELens would load as they stand are never among them: it would make another function of them, without a word.

    Raises:
        Refused: with the file that is not, and why.
    """
    if set(SAE_FILES) <= set(files):
        detail = f"SAELens would load {' and '.join(SAE_FILES)} from where they are published, and not as what they are."
        raise Refused("Would be loaded as something else", detail)
    for name, path in sorted(files.items()):
        _check(path, name)
    if not any(name.endswith(TENSORS) for name in files):
        raise Refused("Unknown kind of file", f"None of {', '.join(sorted(files))} is of a tensor format.")


def _check(path: Path, name: str) -> None:
    if name.endswith(".safetensors"):
        _safetensors.parse(LocalBytes(path), name)
    elif name.endswith(".npz"):
        _npz.parse(LocalBytes(path), name)
    elif name.endswith(TORCH):
        _check_torch(path, name)
    elif name.endswith(".json"):
        read_json(path, name)
    elif name.endswith((".yaml", ".yml")):
        read_yaml(path, name)
    else:
        raise Refused("Unknown kind of file", f"{name} is neither of a tensor format ({', '.join(TENSORS)}) nor JSON or YAML.")


def _check_torch(path: Path, name: str) -> None:
    """A zip as torch.save writes it: the older layout holds several pickles, of which only one is looked at."""
    source = LocalBytes(path)
    if source.read(0, 4) != _ZIP:
        raise Refused("Unknown kind of file", f"{name} is no zip of torch.save. Load it where you trust it, and save it again.")
    _torchzip.require_safe(_torchzip.parse(source, name, locate=True), name)
    with zipfile.ZipFile(open_stream(source)) as archive:
        members = archive.namelist()
    prefix = next(member for member in members if member.endswith("/data.pkl")).removesuffix("data.pkl")
    for member in members:
        inside = member.removeprefix(prefix) if member.startswith(prefix) else ""
        if inside not in _BESIDE and inside != "data.pkl" and not inside.startswith("data/"):
            raise Refused("Unknown entry", f"{name} holds {member[:100]!r}, which torch.save does not write.")

"""A weights file of any safe kind, opened: its tensors where they lie in it, mapped. torch is imported when rows are read."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from saesync.errors import Refused
from saesync.formats import _npz, _safetensors, _torchzip
from saesync.formats._bytes import LocalBytes
from saesync.formats._lazy import Stored, map_file
from saesync.formats.base import Json, TensorInfo
from saesync.nothing import nothing

TORCH = (".pt", ".pth", ".bin")


@dataclass(frozen=True, slots=True)
class Opened:
    """Tensors by name. ``others`` names what a torch checkpoint holds beside tensors; ``values`` are the plain ones of these."""

    tensors: Mapping[str, Stored]
    others: tuple[str, ...] = ()
    values: Mapping[str, Json] = field(default_factory=nothing)

    @property
    def infos(self) -> dict[str, TensorInfo]:
        """Shapes and dtypes."""
        return {name: stored.extent.info for name, stored in self.tensors.items()}


def open_tensors(path: Path, name: str) -> Opened:
    """Open a ``.safetensors``, ``.npz`` or torch file; ``name`` is its name for messages.

    Raises:
        Refused: the file is damaged, unsafe, or of no known kind.
    """
    source = LocalBytes(path)
    others: tuple[str, ...] = ()
    values: Mapping[str, Json] = nothing()
    if name.endswith(".safetensors"):
        extents = _safetensors.parse(source, name)
    elif name.endswith(".npz"):
        extents = _npz.locate(source, name)
    elif name.endswith(TORCH):
        file = _torchzip.parse(source, name, locate=True)
        _torchzip.require_safe(file, name)
        extents, others, values = dict(file.extents), file.others, file.values
    else:
        raise Refused("Unknown kind of file", f"{name} is none of .safetensors, .npz, {', '.join(TORCH)}.")
    buffer = map_file(path)
    return Opened({tensor: Stored(buffer, extent) for tensor, extent in extents.items()}, others, values)


def choose(names: Sequence[str], path: str, main: Collection[str], suffixes: tuple[str, ...], what: str) -> str:
    """The weights file at ``path``: that file itself, or the only one of the names ``main`` in that folder.

    Raises:
        Refused: there is none, or more than one.
    """
    chosen = path.rstrip("/")
    if chosen in names:
        found = [chosen] if chosen.endswith(suffixes) else []
    else:
        prefix = f"{chosen}/" if chosen else ""
        present = set(names)
        found = [prefix + name for name in main if prefix + name in present]
    if len(found) != 1:
        shown = f"{len(found)} of them" if found else "none"
        raise Refused("Missing file", f"{what} is {' or '.join(main)}; {path or 'the root'} has {shown}.")
    return found[0]


def only(names: Sequence[str], path: str, fits: Callable[[str], object], what: str) -> str:
    """The weights file at ``path``: that file itself, or the only one directly in that folder whose name ``fits``.

    ``what`` says which file it is, for messages ("A transcoder is one file layer_i.safetensors").

    Raises:
        Refused: there is none, or more than one.
    """
    chosen = path.rstrip("/")
    prefix = f"{chosen}/" if chosen else ""
    if chosen in names:
        found = [chosen] if fits(chosen.rsplit("/", 1)[-1]) else []
    else:
        inside = (name for name in names if name.startswith(prefix) and "/" not in name[len(prefix) :])
        found = [name for name in inside if fits(name[len(prefix) :])]
    if len(found) != 1:
        shown = f"{len(found)} of them; name one" if found else "none"
        raise Refused("Missing file", f"{what}; {path or 'the root'} has {shown}.")
    return found[0]


def beside(names: Sequence[str], file: str, *others: str) -> dict[str, str]:
    """``file`` and those of ``others`` that lie in its folder: relative name -> name as listed."""
    folder, _, last = file.rpartition("/")
    prefix = f"{folder}/" if folder else ""
    return {last: file} | {name: prefix + name for name in others if prefix + name in names}

"""Releases that are not in SAELens's list (not merged yet, or private), loadable by name as if they were.

``saesync registry overlay`` writes the file. In a notebook::

    import saesync.overlay

    saesync.overlay.install()  # ./saesync-overlay.yaml, or $SAESYNC_OVERLAY
    sae = SAE.from_pretrained("my-release", "layer_3")

and for any other Python program, its child processes included: ``python -m saesync.overlay -- python script.py``.
Nothing is edited: SAELens's list in memory gets more entries. sae_lens is imported on use.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["DEFAULT", "VARIABLE", "environment", "find", "install", "installed", "read"]

DEFAULT = "saesync-overlay.yaml"
VARIABLE = "SAESYNC_OVERLAY"
_HOOK = Path(__file__).parent / "hook"


def install(path: str | os.PathLike[str] | None = None, *, replace: bool = False) -> tuple[str, ...]:
    """Add an overlay's releases to SAELens's list in this process; returns their names.

    ``path`` is the overlay; without one, ``$SAESYNC_OVERLAY``, else ``./saesync-overlay.yaml``. ``replace``: releases of
    SAELens's own list may be replaced. Doing it again changes nothing.

    Raises:
        Missing: there is no such file, or sae-lens is not installed.
        Refused: the file is no overlay, or names an official release and ``replace`` was not given.
    """
    return _add(find(path), replace)[0]


@contextmanager
def installed(path: str | os.PathLike[str] | None = None, *, replace: bool = False) -> Iterator[tuple[str, ...]]:
    """The same for as long as the context lasts; SAELens's list is as before afterwards."""
    names, before = _add(find(path), replace)
    try:
        yield names
    finally:
        directory = _module().get_pretrained_saes_directory()
        for name, lookup in before.items():
            if lookup is None:
                directory.pop(name, None)
            else:
                directory[name] = lookup


def find(path: str | os.PathLike[str] | None = None) -> Path:
    """The overlay that is meant: ``path``, else ``$SAESYNC_OVERLAY``, else ``./saesync-overlay.yaml``.

    Raises:
        Missing: it is not there.
    """
    from saesync.errors import Missing

    named = path or os.environ.get(VARIABLE)
    found = Path(named or DEFAULT)
    if not found.is_file():
        why = "" if path else f" ({VARIABLE} names it.)" if named else ""
        detail = f"There is no file {found} here.{why} `saesync registry overlay` writes one from manifests."
        raise Missing("No overlay", detail)
    return found


def read(path: Path) -> Mapping[str, Any]:
    """The releases of an overlay, as its YAML gives them.

    Raises:
        Missing: it cannot be read.
        Refused: with everything that `saesync registry lint` finds wrong in it.
    """
    from saesync.errors import Diagnostic, Missing, Refused
    from saesync.registry.document import parse
    from saesync.registry.lint import Severity, lint_document

    try:
        data = path.read_bytes()
    except OSError as error:
        raise Missing("Overlay cannot be read", f"{path}: {error.strerror}.") from error
    document = parse(data, str(path))
    wrong = [finding for finding in lint_document(document) if finding.severity is Severity.ERROR]
    if wrong:
        raise Refused.of(Diagnostic("Not an overlay", finding.detail, finding.origin) for finding in wrong)
    if not document.releases:
        raise Refused("Not an overlay", f"{path} holds no release.")
    return document.releases


def environment(path: Path, base: Mapping[str, str], *, replace: bool = False) -> dict[str, str]:
    """``base`` with what makes Python programs started with it, and their children, see the overlay at ``path``."""
    from saesync.overlay.hook.sitecustomize import REPLACE

    before = base.get("PYTHONPATH")
    paths = os.pathsep.join([str(_HOOK), *([before] if before else [])])
    return {**base, "PYTHONPATH": paths, VARIABLE: str(path.resolve()), REPLACE: "1" if replace else ""}


def _add(path: Path, replace: bool) -> tuple[tuple[str, ...], dict[str, Any]]:
    """The names in an overlay, and what SAELens's list held under those that changed."""
    from saesync.errors import Refused
    from saesync.overlay.hook.sitecustomize import add

    overlay, module = read(path), _module()
    try:
        before = add(module.get_pretrained_saes_directory(), module.PretrainedSAELookup, overlay, replace)
    except ValueError as error:
        raise Refused("Overlay is refused", f"{path}: {error}. Rename the release, or pass replace=True.") from error
    return tuple(overlay), before


def _module() -> Any:
    from saesync.errors import Missing

    try:
        from sae_lens.loading import pretrained_saes_directory
    except ModuleNotFoundError as error:
        raise Missing("sae-lens is not installed", f"An overlay extends sae-lens: {error}. Install it here.") from error
    return pretrained_saes_directory

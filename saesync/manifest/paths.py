"""Which local paths a manifest may name. Manifests come in pull requests: their reach is the project's folder."""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from saesync.cache import narrow, printable
from saesync.errors import ManifestError, Origin

_MANIFESTS = "manifests"
_VARIABLE = re.compile(r"\$(\w+|\{\w+\})")


@dataclass
class Bounds:
    """Where the paths of one manifest start (``folder``) and where they must stay (``allowed``), symlinks resolved."""

    folder: Path
    allowed: tuple[Path, ...]
    confined: bool = False  # no link on the way either, and nothing of git's own
    _resolved: dict[Path, Path] = field(default_factory=dict)
    _clean: set[Path] = field(default_factory=set)

    @classmethod
    def of(cls, manifest: Path, roots: Sequence[Path]) -> Bounds:
        """The bounds of a manifest.

        Its project is the nearest folder above it that holds ``.git``; without one, its own folder (the folder above
        one named ``manifests``). The working directory counts too when the manifest is inside it.
        """
        folder = real(manifest).parent
        above = (folder, *folder.parents)
        project = next((each for each in above if (each / ".git").exists()), None)
        if project is None:
            project = folder.parent if folder.name == _MANIFESTS else folder
        here = real(Path.cwd())
        candidates = [project, *([here] if here in above else []), *(real(root) for root in roots)]
        # A file system's root is no project: it would allow everything. Only a root that was typed may be one.
        allowed = [each for index, each in enumerate(candidates) if each != each.parent or index >= len(candidates) - len(roots)]
        return cls(folder, tuple(dict.fromkeys(allowed)))

    @classmethod
    def within(cls, manifest: Path, checkout: Path) -> Bounds:
        """The bounds of a manifest that anybody may have written: the checkout it came in, without following any link.

        Raises:
            ManifestError: the manifest itself is reached through a link.
        """
        root, path = lexical(checkout), lexical(manifest)
        if not path.is_relative_to(root):
            raise ManifestError("Path is refused", f"{manifest} is not inside {checkout}. Name a manifest of this checkout.")
        link = links_between(root, path)
        if link is not None:
            detail = f"{manifest} is reached through the link {link}; links are not followed in an untrusted checkout."
            raise ManifestError("Link is refused", detail)
        found = real(root)
        return cls(found / path.parent.relative_to(root), (found,), confined=True)

    def resolve(self, text: str, origin: Origin) -> str:
        """The absolute path that ``text`` names, whether or not something is there.

        Raises:
            ManifestError: it is outside the bounds, or not a path at all.
        """
        if (word := unexpanded(text)) is not None:
            detail = f"`{word}` is not expanded in manifests. Write the path from the manifest's folder on."
            raise ManifestError("Path is refused", detail, origin)
        _refuse_unspeakable(text, origin)
        if self.confined:
            self._refuse_links(Path(os.path.normpath(self.folder / text)), origin)
        try:
            found = self._real(self.folder / text)
        except (OSError, ValueError, RuntimeError) as error:
            why = f": {error.strerror}" if isinstance(error, OSError) and error.strerror else ""
            raise ManifestError("Path is refused", f"This is not a path that the system can follow{why}.", origin) from error
        if not any(found.is_relative_to(root) for root in self.allowed):
            inside = " or ".join(str(root) for root in self.allowed) or "a folder named with --root"
            everything = Path(found.anchor)
            root = found.parent if found.parent != everything else found
            advice = f" To allow it, add `--root {shlex.quote(str(root))}`." if root != everything else ""
            detail = f"The path leads to {found}, which is outside {inside}.{advice}"
            raise ManifestError("Path leads outside the project", detail, origin)
        if printable(str(found)) != str(found):
            detail = f"The path leads to {printable(str(found))}, whose name is not UTF-8. Rename that folder or file."
            raise ManifestError("Path is refused", narrow(str(found)) or detail, origin)
        return str(found)

    def _refuse_links(self, path: Path, origin: Origin) -> None:
        (root,) = self.allowed
        if not path.is_relative_to(root):
            return  # which is said by itself
        if ".git" in (part.lower() for part in path.relative_to(root).parts):
            raise ManifestError("Path is refused", "What git keeps in `.git` is no source, and no place to publish to.", origin)
        if path not in self._clean:
            link = links_between(root, path) or link_below(path)
            if link is not None:
                detail = f"{link} is a link; links are not followed in an untrusted checkout. Put the file itself there."
                raise ManifestError("Link is refused", detail, origin)
            self._clean.add(path)

    def _real(self, path: Path) -> Path:
        """``path`` with symlinks resolved. Folders are resolved once: thousands of SAEs share one."""
        path = Path(os.path.normpath(path)) if ".." not in path.parts else path
        if path.name in ("", ".", ".."):
            return path.resolve()
        parent = self._resolved.get(path.parent)
        if parent is None:
            parent = self._resolved[path.parent] = path.parent.resolve()
        found = parent / path.name
        return found.resolve() if found.is_symlink() else found


def unexpanded(path: str) -> str | None:
    """The part of a path that a shell would have put something in the place of: ``~`` at its beginning, or ``$HOME``. Nobody
    calls a folder that, and whoever removes one that was made by mistake may mistake it again."""
    parts = path.split("/")
    return parts[0] if parts[0].startswith("~") else next((part for part in parts if _VARIABLE.fullmatch(part)), None)


def _refuse_unspeakable(text: str, origin: Origin) -> None:
    """A name that the locale's encoding lacks would pass for one that is not there.

    Raises:
        ManifestError: the system cannot be asked for it.
    """
    try:
        os.fsencode(text)
    except UnicodeEncodeError as error:
        detail = (
            f"Names of files are {sys.getfilesystemencoding()} here, which lacks {text[error.start]!r}. Set PYTHONUTF8=1, or "
            "LC_ALL to a UTF-8 locale."
        )
        raise ManifestError("Path is refused", detail, origin) from error


def real(path: Path) -> Path:
    """``path`` with links followed as far as they lead somewhere; of one that leads in a circle, whoever opens it says so."""
    return Path(os.path.realpath(path))


def lexical(path: Path) -> Path:
    """``path`` as an absolute one, by its words alone: no link is looked at."""
    return Path(os.path.normpath(path.absolute()))


def links_between(root: Path, path: Path) -> Path | None:
    """The first link among ``path`` and its parents below ``root``, which it is in; ``root`` itself is taken as it is."""
    at = root
    for part in path.relative_to(root).parts:
        at = at / part
        if at.is_symlink():
            return at
    return None


def link_below(folder: Path) -> Path | None:
    """The first link in a folder or the folders in it, none of which is followed."""
    for base, folders, files in os.walk(folder, followlinks=False):
        for name in (*folders, *files):
            if (found := Path(base, name)).is_symlink():
                return found
    return None

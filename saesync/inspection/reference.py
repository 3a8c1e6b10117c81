"""``hf://owner/repo[/path][@revision]``: how a source on the Hub is named on the command line."""

from __future__ import annotations

import re
from dataclasses import dataclass

from saesync.errors import Refused

SCHEME = "hf://"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
_PAGE = re.compile(
    r"https?://[^/]+/(?P<repo>[\w.-]+/[\w.-]+)(?:/(?:tree|blob|resolve)/(?P<revision>[^/?#]+)(?P<path>[^?#]*))?/?(?:[?#].*)?"
)


@dataclass(frozen=True, slots=True)
class Reference:
    """A place in a Hub repo, or (``repo`` None) a local path as typed. ``path`` "" is the repo's root."""

    repo: str | None
    path: str
    revision: str | None

    def __str__(self) -> str:
        if self.repo is None:
            return self.path
        inside = f"/{self.path}" if self.path else ""
        return f"{SCHEME}{self.repo}{inside}" + (f"@{self.revision}" if self.revision else "")


def parse_reference(text: str) -> Reference:
    """Read a reference. The revision may also stand behind the repo, as huggingface_hub writes it: ``hf://owner/repo@rev/path``.

    Raises:
        Refused: an ``hf://`` reference that names no repo, or a path that leaves it; the address of a page.
    """
    if text.startswith(("https://", "http://")):
        page = _PAGE.fullmatch(text)
        where = f"{SCHEME}{page['repo']}@{page['revision'] or 'main'}{page['path'] or ''}" if page else "hf://owner/repo"
        raise Refused("Not a Hub reference", f"{text[:200]!r} is the address of a page. Write `{where.removesuffix('@main')}`.")
    if not text.startswith(SCHEME):
        return Reference(None, text, None)
    owner, _, rest = text.removeprefix(SCHEME).partition("/")
    name, _, path = rest.partition("/")
    if "@" in name:
        name, _, revision = name.partition("@")
        revision = revision.replace("%2F", "/").replace("%2f", "/")
    else:
        path, _, revision = path.rpartition("@") if "@" in path else (path, "", "")
    if "@" in text and not revision:
        raise Refused("Not a Hub reference", f"{text[:200]!r} names no revision after its `@`. Name one, or leave the `@` out.")
    path = path.strip("/")
    if not (_NAME.fullmatch(owner) and _NAME.fullmatch(name)):
        raise Refused("Not a Hub reference", f"{text[:200]!r} is not of the form hf://owner/repo[/path][@revision].")
    if any(part in ("", ".", "..") for part in path.split("/")) and path:
        raise Refused("Not a Hub reference", f"{path[:200]!r} is not a path inside a repository.")
    return Reference(f"{owner}/{name}", path, revision or None)

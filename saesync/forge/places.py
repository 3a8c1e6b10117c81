"""What a registry's name means: a repository on GitHub, a git repository, or a file."""

from __future__ import annotations

import os
import re
import shlex
import urllib.parse
from dataclasses import dataclass
from pathlib import Path

from saesync.errors import Missing, NotVisible, Refused
from saesync.inert import plain

_OWNER = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,98}[A-Za-z0-9])?(?:_[a-z0-9]+)?"  # the suffix is of managed users
_NAME = r"(?!\.{1,2}(?:$|/)|\.git$)[\w.-]{1,100}"
_FULL = re.compile(rf"{_OWNER}/{_NAME}", re.ASCII)
_SCP = re.compile(r"[\w.][\w.-]*@(?P<host>[\w][\w.-]*):(?![-/])(?P<path>[^\s:]+)", re.ASCII)
_RELEASE = re.compile(r"(?!.*(?:\.\.|\.lock$|\.$))[A-Za-z0-9_][\w.+-]{0,199}", re.ASCII)
_SCHEMES = ("https", "http", "ssh", "file")
DEFAULT_API, DEFAULT_SERVER = "https://api.github.com", "https://github.com"


@dataclass(frozen=True, slots=True)
class Server:
    """A GitHub: where its API is and where its repositories are. No slash at the end of either."""

    api: str
    web: str

    @property
    def host(self) -> str:
        """Host and port, as shown to people."""
        return urllib.parse.urlsplit(self.web).netloc

    def clone_url(self, full_name: str) -> str:
        """Where git finds a repository."""
        return f"{self.web}/{full_name}.git"


@dataclass(frozen=True, slots=True)
class Place:
    """A registry. ``kind`` is "github", "git" or "file"; ``url`` is what git, or ``open``, is given; ``full_name`` is
    ``owner/name`` for GitHub and empty else."""

    registry: str
    kind: str
    url: str
    full_name: str = ""


def server() -> Server:
    """The GitHub this environment speaks of: ``GITHUB_API_URL`` and ``GITHUB_SERVER_URL``, as GitHub Actions sets them.

    Raises:
        Missing: one of them is no web address.
    """
    api = os.environ.get("GITHUB_API_URL", "").rstrip("/")
    web = os.environ.get("GITHUB_SERVER_URL", "").rstrip("/")
    if api and not web and api != DEFAULT_API:
        web = re.sub(r"/api/v3$", "", api)
    if web and not api and web != DEFAULT_SERVER:
        api = f"{web}/api/v3"
    found = Server(api or DEFAULT_API, web or DEFAULT_SERVER)
    for name, url in (("GITHUB_API_URL", found.api), ("GITHUB_SERVER_URL", found.web)):
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in ("https", "http") or not parts.hostname or "@" in parts.netloc or parts.query or parts.fragment:
            raise Missing("GitHub address is not usable", f"{name} must be a web address, as {DEFAULT_API} is.")
    return found


def place_of(registry: str) -> Place:
    """What ``registry`` names. Nothing is asked of any server.

    Raises:
        NotVisible: it names nothing that can be a registry; a path with nothing at it.
        Refused: an address that holds a password, or that git would take for an option.
    """
    if registry.startswith("/"):
        return _local(registry)
    if _FULL.fullmatch(registry):
        return Place(registry, "github", server().clone_url(registry), registry)
    if _SCP.fullmatch(registry):
        return Place(registry, "git", registry)
    parts = _split(registry)
    if parts.scheme == "file":
        return Place(registry, "git", registry)
    if parts.scheme != "ssh" and parts.netloc == server().host:
        full_name = parts.path.strip("/").removesuffix(".git")
        if _FULL.fullmatch(full_name):
            return Place(registry, "github", server().clone_url(full_name), full_name)
    return Place(registry, "git", registry)


def _split(registry: str) -> urllib.parse.SplitResult:
    try:
        parts = urllib.parse.urlsplit(registry)
    except ValueError:
        parts = urllib.parse.SplitResult("", "", "", "", "")
    if parts.password is not None or (parts.username is not None and parts.scheme != "ssh"):
        detail = "A registry's address must not hold a user's name or password: set SAESYNC_GITHUB_TOKEN, or use an ssh address."
        raise Refused("Registry address holds a secret", detail)
    host = parts.hostname or ""
    bad_host = host.startswith("-") or (not host and parts.scheme != "file")
    if parts.scheme not in _SCHEMES or bad_host or not parts.path.strip("/") or not registry.isprintable() or " " in registry:
        detail = f"{plain(registry)} is no registry: write owner/name, a git address (https, ssh or file), or an absolute path."
        raise NotVisible("Not a registry", detail)
    return parts


def _local(registry: str) -> Place:
    path = Path(registry)
    try:
        if path.is_file():
            return Place(registry, "file", str(path.resolve()))
        if path.is_dir():
            return Place(registry, "git", str(path.resolve()))
    except (OSError, ValueError) as error:
        raise NotVisible("Registry cannot be read", f"{plain(registry)}: {error}.") from None
    raise NotVisible("Registry is not there", f"Nothing is at {plain(registry)}: a git repository or a registry file is needed.")


def branch_of(release: str) -> str:
    """The branch a release is proposed on.

    Raises:
        Refused: git allows no branch of that name.
    """
    if not _RELEASE.fullmatch(release):
        detail = f"{plain(release)!r} cannot be part of a branch's name: letters, digits and . _ + - only, not ending in .lock."
        raise Refused("Release cannot be a branch", detail)
    return f"saesync/{release}"


def compare_url(place: Place, base: str, head_owner: str, head_name: str, branch: str) -> str:
    """GitHub's page that compares the branch with the base and opens a pull request from it."""
    head = branch if f"{head_owner}/{head_name}" == place.full_name else f"{head_owner}:{head_name}:{branch}"
    return f"{server().web}/{place.full_name}/compare/{_quoted(base)}...{_quoted(head)}?expand=1"


def compare_by_hand(url: str, base: str, branch: str) -> str:
    """How to look at a branch pushed to any git repository: a page where the host is known, else a command."""
    host, path = host_and_path(url)
    base_, branch_ = _quoted(base), _quoted(branch)
    pages = {
        "github.com": f"https://github.com/{path}/compare/{base_}...{branch_}?expand=1",
        "gitlab.com": f"https://gitlab.com/{path}/-/compare/{base_}...{branch_}",
        "codeberg.org": f"https://codeberg.org/{path}/compare/{base_}...{branch_}",
    }
    if host in pages:
        return pages[host]
    if not host:
        return f"git -C {shlex.quote(path_of(url))} diff {shlex.quote(f'{base}...{branch}')}"
    refs = shlex.quote(f"+{base}:refs/saesync/base"), shlex.quote(f"+{branch}:refs/saesync/new")
    return f"git fetch {shlex.quote(url)} {refs[0]} {refs[1]} && git diff refs/saesync/base...refs/saesync/new"


def path_of(url: str) -> str:
    """The folder a local address (a path or ``file://``) names."""
    return urllib.parse.unquote(urllib.parse.urlsplit(url).path) if url.startswith("file://") else url


def host_and_path(url: str) -> tuple[str, str]:
    """Host (empty for local paths) and repository path of a git address, without ``.git``."""
    scp = _SCP.fullmatch(url)
    if scp:
        host, path = scp["host"], scp["path"]
    else:
        parts = urllib.parse.urlsplit(url)
        host, path = parts.hostname or "", parts.path
    return host, path.strip("/").removesuffix(".git")


def _quoted(text: str) -> str:
    return urllib.parse.quote(text, safe="/:")

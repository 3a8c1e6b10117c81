"""What a repository's settings are, as far as the token may see: one snapshot, from which every check is made."""

from __future__ import annotations

import base64
import binascii
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from saesync.ci import codeowners
from saesync.ci.api import GitHub, Seen, part
from saesync.ci.inputs import DEFAULTS, POLICY, parsed, places
from saesync.errors import NotVisible, SaesyncError, Unavailable
from saesync.nothing import nothing

WORKFLOWS = ".github/workflows/"
OURS = tuple(f"{WORKFLOWS}{name}.yml" for name in ("plan", "comment", "apply"))
ENVIRONMENT = "publish"
_NOT_PROTECTED = "branch not protected"
HIDDEN = Seen(None, 403)
"""What this token may not see."""

_MOST_SECRETS = 1000


@dataclass(frozen=True, slots=True)
class Settings:
    """A repository at one moment. A ``Seen`` whose value is None with status 404 is absent; with 403 nothing is known.

    ``paths`` are the files of the default branch (None: too many to be listed), ``files`` the text of those that matter.
    ``protection`` is the classic branch protection, ``rules`` what rulesets ask of the default branch. ``policy_errors`` say why
    a policy cannot be used, by its path.
    """

    repository: str
    branch: str
    paths: frozenset[str] | None
    files: Mapping[str, str] = field(default_factory=nothing)
    protection: Seen = HIDDEN
    rules: Seen = HIDDEN
    owners_errors: Seen = HIDDEN
    environment: Seen = HIDDEN
    environment_branches: Seen = HIDDEN
    secrets: Seen = HIDDEN
    policy_errors: Mapping[str, str] = field(default_factory=nothing)


def snapshot(github: GitHub, repository: str, load_policy: Callable[[Path], object]) -> Settings:
    """Ask for everything. ``load_policy`` reads a policy file or raises a ``SaesyncError``.

    Raises:
        NotVisible: the repository itself is not visible.
        Unavailable: network, server or quota, after waiting.
    """
    root = f"/repos/{repository}"
    about = github.get(root)
    if not isinstance(about, dict) or not isinstance(about.get("default_branch"), str):
        raise Unavailable("GitHub's answer is not understood", f"{repository} has another form than documented.")
    branch = about["default_branch"]
    ref = part(branch)
    paths = _paths(github, root, ref)
    files = _texts(github, root, ref, _wanted(paths))
    policies = places(parsed(files, OURS), POLICY)
    files |= _texts(github, root, ref, (path for path in policies if paths is None or path in paths))
    environment = f"{root}/environments/{part(ENVIRONMENT)}"
    return Settings(
        repository,
        branch,
        paths,
        files,
        _protection(github.look(f"{root}/branches/{ref}/protection")),
        _listed(github, f"{root}/rules/branches/{ref}"),
        _inside(github.look(f"{root}/codeowners/errors"), "errors"),
        github.look(environment),
        _inside(github.look(f"{environment}/deployment-branch-policies"), "branch_policies"),
        _listed(github, f"{root}/actions/secrets", "secrets"),
        _policy_errors({path: files[path] for path in policies if path in files}, load_policy),
    )


def _protection(seen: Seen) -> Seen:
    """404 is the answer both for a branch without protection and for a token that may not know; only the words differ."""
    if seen.status == 404 and _NOT_PROTECTED not in seen.why.lower():
        return Seen(None, 403, seen.why)
    return seen


def _listed(github: GitHub, path: str, key: str | None = None) -> Seen:
    """All pages of a list, where 403 and 404 both mean that this token may not see it."""
    try:
        return Seen(github.pages(path, key=key, most=_MOST_SECRETS))
    except NotVisible as error:
        return Seen(None, 403, error.diagnostics[0].detail)


def _inside(seen: Seen, key: str) -> Seen:
    found = seen.value.get(key) if isinstance(seen.value, dict) else None
    return Seen(found, seen.status, seen.why) if isinstance(found, list) else Seen(None, seen.status, seen.why)


def _paths(github: GitHub, root: str, ref: str) -> frozenset[str] | None:
    tree = github.look(f"{root}/git/trees/{ref}", recursive=1).value
    if not isinstance(tree, dict) or tree.get("truncated") or not isinstance(tree.get("tree"), list):
        return None
    return frozenset(str(entry.get("path")) for entry in tree["tree"] if entry.get("type") == "blob")


def _wanted(paths: frozenset[str] | None) -> list[str]:
    """Files whose text is needed: as many as a repository with workflows has, never all."""
    fixed = list(codeowners.PLACES)
    if paths is None:
        return [*fixed, *OURS]
    workflows = [path for path in sorted(paths) if path.startswith(WORKFLOWS) and path.endswith((".yml", ".yaml"))]
    return [path for path in [*fixed, *workflows[:100]] if path in paths]


def _texts(github: GitHub, root: str, ref: str, paths: Iterable[str]) -> dict[str, str]:
    found = {path: _text(github, root, ref, path) for path in paths}
    return {path: text for path, text in found.items() if text is not None}


def _text(github: GitHub, root: str, ref: str, path: str) -> str | None:
    where = "/".join(part(piece) for piece in path.split("/"))
    found = github.look(f"{root}/contents/{where}", ref=ref).value
    content = found.get("content") if isinstance(found, dict) else None
    try:
        return base64.b64decode(content).decode("utf-8") if isinstance(content, str) else None
    except (binascii.Error, ValueError):
        return None


def _policy_errors(texts: Mapping[str, str], load_policy: Callable[[Path], object]) -> dict[str, str]:
    found: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="saesync-doctor-") as folder:
        for path, text in texts.items():
            file = Path(folder) / DEFAULTS[POLICY]
            file.write_text(text, encoding="utf-8")
            try:
                load_policy(file)
            except SaesyncError as error:
                first = error.diagnostics[0]
                at = f" (line {first.origin.line})" if first.origin is not None else ""
                found[path] = f"{first.summary}{at}: {first.detail.replace(folder, '').lstrip('/')}"
    return found

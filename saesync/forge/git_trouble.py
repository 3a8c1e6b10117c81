"""What went wrong with git, in the words of the error tree. Its text is matched in the C locale, shown as one line."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from saesync.errors import Missing, NotVisible, Refused, SaesyncError, Unavailable
from saesync.forge.credentials import HOW
from saesync.forge.patience import Stumbled
from saesync.inert import plain

_AGAIN = "Run the same command again later; what is done is kept."
_TRANSPORT = (
    "could not resolve host|couldn't connect|failed to connect|connection (?:refused|reset|timed out|was reset|closed)|"
    "empty reply|early eof|unexpected disconnect|the remote end hung up|rpc failed|operation too slow|transfer closed|timed out|"
    "recv failure|send failure|gnutls_|ssl_|tls connection|temporary failure|error: 5\\d\\d|http 5\\d\\d|network is unreachable|"
    "bad line length|expected flush after|curl \\d+|timeout:"
)


@dataclass(frozen=True, slots=True)
class Asked:
    """What git was run for. ``what`` completes "git was asked to ..."; ``where`` is the registry as the user wrote it."""

    what: str
    where: str
    token: bool
    github: bool
    write: bool = False


def stumbled(err: str, asked: Asked) -> Stumbled:
    """The trouble behind a failed git command. ``err`` is its redacted stderr."""
    text = err.lower()
    for pattern, make, retry in _TABLE:
        if re.search(pattern, text):
            return Stumbled(make(asked, err), retry)
    return Stumbled(_other(asked, err), False)


def said(err: str) -> str:
    """The line of git's stderr that says most: what the server said, else the last error."""
    lines = [line.strip() for line in err.replace("\r", "\n").splitlines() if line.strip()]
    remote = [line.removeprefix("remote:").strip() for line in lines if line.startswith("remote:")]
    errors = [line for line in lines if re.match(r"(fatal|error):", line)]
    found = " ".join(line for line in remote if line) or (errors[0] if errors else (lines[-1] if lines else "no message"))
    return plain(found, 300).rstrip(".")


def _no_login(asked: Asked, err: str) -> SaesyncError:
    if asked.token:
        detail = f"The server does not accept the token for {asked.where}: it is mistyped, expired or revoked. {HOW}"
        return NotVisible("Token is not valid", detail)
    if asked.github:
        kind = Missing if asked.write else NotVisible
        detail = f"{asked.where} is private or not there, or is to be written to: a token is needed. {HOW}"
        return kind("Registry needs a token", detail)
    detail = f"{asked.where} asks for a login. Use an ssh address of it, with a key that may read and write."
    return (Missing if asked.write else NotVisible)("Registry needs a login", detail)


def _forbidden(asked: Asked, err: str) -> SaesyncError:
    if asked.write:
        detail = f"Pushing to {asked.where} is not allowed ({said(err)}). Use a token with write access to the contents of it."
        return Missing("Token may not push" if asked.token else "Pushing is not allowed", detail)
    return NotVisible(
        "Registry may not be read", f"{asked.where} may not be read ({said(err)}). Use a token with read access to it."
    )


def _absent(asked: Asked, err: str) -> SaesyncError:
    hint = " or is private; without a token GitHub does not say which. " + HOW if asked.github and not asked.token else ""
    hint = hint or (", or the token may not see it. Check the name and the token." if asked.github else ". Check the address.")
    return NotVisible("Registry is not visible", f"There is no repository at {asked.where}{hint}")


def _moved(asked: Asked, err: str) -> SaesyncError:
    detail = f"{asked.where} redirects to another address; redirects are not followed. Write the new address."
    return NotVisible("Registry was renamed", detail)


def _rationed(asked: Asked, err: str) -> SaesyncError:
    detail = f"The server of {asked.where} allows no more requests for now, needed to {asked.what}. {_AGAIN}"
    return Unavailable("Registry rations requests", detail)


def _ssh(asked: Asked, err: str) -> SaesyncError:
    detail = f"ssh could not log in for {asked.where} ({said(err)}). Try `git ls-remote` with that address by hand."
    return (Missing if asked.write else NotVisible)("ssh login failed", detail)


def _protected(asked: Asked, err: str) -> SaesyncError:
    detail = f"{asked.where} refused the branch ({said(err)}). Allow pushing to branches named saesync/*, or use a fork."
    return Missing("Branch is protected", detail)


def _workflow(asked: Asked, err: str) -> SaesyncError:
    detail = (
        f"The fork for {asked.where} is behind, and bringing it up to date changes workflow files, which the token may not "
        "(it lacks the `workflow` scope). Press `Sync fork` on the fork's page, or give the token that scope."
    )
    return Missing("Token lacks the workflow scope", detail)


def _ownership(asked: Asked, err: str) -> SaesyncError:
    return NotVisible(
        "Registry belongs to another user", f"git refuses to read {asked.where}: {said(err)}. Make a clone of your own."
    )


def _disk(asked: Asked, err: str) -> SaesyncError:
    return Missing("Disk is full", f"No space is left to {asked.what}. Free some space and run again.")


def _cut(asked: Asked, err: str) -> SaesyncError:
    detail = f"git could not {asked.what}: {said(err)}. {_AGAIN}"
    return Unavailable("Registry cannot be reached", detail)


def _other(asked: Asked, err: str) -> SaesyncError:
    kind = Refused if asked.write else NotVisible
    return kind(
        "git could not do it", f"git was asked to {asked.what} and failed: {said(err)}. Try git with that address by hand."
    )


_TABLE: tuple[tuple[str, Callable[[Asked, str], SaesyncError], bool], ...] = (
    ("no space left|disk quota exceeded", _disk, False),
    ("workflow` scope|without `workflows?` permission", _workflow, False),
    ("dubious ownership", _ownership, False),
    ("error: 429|http 429|rate limit", _rationed, True),
    ("error: 30[1278]|unable to update url base", _moved, False),
    (r"permission denied \(|host key verification|no such identity", _ssh, False),
    ("authentication failed|could not read username|error: 401|http 401|terminal prompts disabled", _no_login, False),
    (
        "error: 403|http 403|permission to .* denied|not granted|permission denied|insufficient permission|read-only",
        _forbidden,
        False,
    ),
    ("hook declined|protected branch|gh006|gh013|refusing to update checked out|prohibited", _protected, False),
    ("repository .*not found|error: 404|does not appear to be a git|does not exist|not a git repository", _absent, False),
    (_TRANSPORT, _cut, True),
)

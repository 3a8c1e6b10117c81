"""What an operator lets manifests ask for: ``saesync-policy.yaml``.

Manifests come in pull requests; the policy comes from the default branch. What it does not allow is held by name, and never
stops the other releases. Without a policy (on one's own machine) everything is allowed that a manifest can ask for.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from saesync.errors import Diagnostic, ManifestError, Origin, Refused
from saesync.manifest import read_tree
from saesync.manifest.explain import explain
from saesync.manifest.paths import unexpanded
from saesync.manifest.yaml12 import Node
from saesync.model import PublishSpec, Refusal, Release, Sae, SourceSpec
from saesync.reason import Reason, ReasonCode
from saesync.schema.policy import REGISTRY, build

DEFAULT_FILE = "saesync-policy.yaml"
_LOCAL = "local"


@dataclass(frozen=True, slots=True)
class Policy:
    """What is allowed. ``targets`` maps a manifest's key (huggingface, local, saelens) to globs; None allows every place.

    ``secrets`` maps names of environment variables to the hosts that may learn their value; ``trust`` holds sha256 digests; None
    allows every one. ``roots`` are absolute folders.
    ``account`` is the owner of the token in use, once that is known. ``file`` is None where there is no policy.
    """

    targets: Mapping[str, tuple[str, ...]] | None = None
    secrets: Mapping[str, tuple[str, ...]] | None = None
    roots: tuple[Path, ...] = ()
    trust: frozenset[str] | None = None
    publishers: tuple[str, ...] = ()
    account: str | None = None
    file: str | None = None

    def allows_place(self, key: str, location: str) -> bool:
        """Whether manifests may name ``location`` under ``key``: ``huggingface``, ``local``, ``saelens``."""
        return self.targets is None or any(_matches(glob, location) for glob in self.targets.get(key, ()))

    def allows_secret(self, variable: str, host: str) -> bool:
        """Whether the value of an environment variable may be sent to a host (``name`` or ``name:port``, in any case).

        A host is allowed at the port that stands with it, and at no other; without a port in the policy, only where ``host``
        has none either (the usual one). Without a policy a variable may be used for every host.
        """
        return self.secrets is None or host.lower() in self.secrets.get(variable, ())

    def trusts(self, sha256: str) -> bool:
        """Whether a file may be read that ``trust`` in a manifest names."""
        return self.trust is None or sha256 in self.trust

    def distrusted(
        self, releases: Sequence[Release], digests: Callable[[SourceSpec], Sequence[str | None]]
    ) -> tuple[Refusal, ...]:
        """Every file that a manifest wants read under ``trust`` and this policy does not name.

        ``digests`` gives the sha256 of a source's files (None: not known, which no policy can name; empty: not reachable).
        """
        if self.trust is None:
            return ()
        found = []
        for release in releases:
            for sae in release.saes:
                if sae.source is None or not sae.source.options.get("trust"):
                    continue
                bad = [sha256 for sha256 in digests(sae.source) if sha256 is None or not self.trusts(sha256)]
                found += [self._distrusted(release, sae, sha256) for sha256 in bad[:1]]
        return tuple(found)

    def _distrusted(self, release: Release, sae: Sae, sha256: str | None) -> Refusal:
        origin = sae.origins.get("source.trust", sae.origin)
        name = DEFAULT_FILE if self.file is None else Path(self.file).name
        value = "a file without sha256" if sha256 is None else sha256
        data = {"key": "saes.source.trust", "value": value, "file": name, "at": None if origin is None else str(origin)}
        return Refusal(release.name, "saes", Reason(ReasonCode.NOT_ALLOWED, data), origin)

    def for_strangers(self) -> Policy:
        """The same for manifests of anybody: what they ask to be trusted has to be named, also where there is no policy."""
        return replace(self, trust=self.trust or frozenset())

    def counts(self, author: str | None) -> bool:
        """Whether a record last written by this account counts as evidence for registering. An unknown author never does."""
        known = self.publishers or ((self.account,) if self.account else ())
        return author is not None and author.casefold() in {name.casefold() for name in known}

    def with_account(self, account: str | None) -> Policy:
        """The same policy for the owner of the token in use."""
        return replace(self, account=account)

    def refusals(self, releases: Sequence[Release]) -> tuple[Refusal, ...]:
        """Every place that a manifest names and this policy does not allow."""
        return tuple(refusal for release in releases for refusal in self._refusals(release))

    def _refusals(self, release: Release) -> Iterator[Refusal]:
        for section, key, location, origin in _places(release):
            if not self.allows_place(key, location):
                at = None if origin is None else str(origin)
                name = None if self.file is None else Path(self.file).name
                data = {"key": f"{section}.{key}", "value": location, "file": name, "at": at}
                yield Refusal(release.name, section, Reason(ReasonCode.NOT_ALLOWED, data), origin)


OPEN = Policy()
"""What holds where nobody wrote a policy."""


def read_policy(file: Path) -> Policy:
    """The policy in a file.

    Raises:
        Refused: it cannot be read or is not a policy; everything that is wrong, each at its place.
    """
    try:
        root = read_tree(file)
        if not isinstance(root.value, dict):
            detail = "A policy is a mapping: it begins with `apiVersion: saesync/v1`."
            raise ManifestError("Not a policy", detail, root.origin(str(file)))
        value = root.plain_value()
        wrong, _ = explain(value, root, str(file), build())
        if wrong:
            raise ManifestError.of(sorted(wrong.values(), key=_place))
    except ManifestError as error:
        raise Refused.of(_worded(each) for each in error.diagnostics) from error
    return _policy(value, file, root)


def _policy(value: Mapping[str, Any], file: Path, root: Node) -> Policy:
    folder = file.resolve().parent
    targets = {key: tuple(globs) for key, globs in value["targets"].items()}
    for key in {_LOCAL, REGISTRY} & targets.keys():
        targets[key] = tuple(_absolute(glob, folder, key) for glob in targets[key])
    return Policy(
        targets,
        {name: tuple(hosts) for name, hosts in value.get("secrets", {}).items()},
        tuple(_root(folder, text, root.place(("roots", at)).origin(str(file))) for at, text in enumerate(value.get("roots", ()))),
        frozenset(value.get("trust", ())),
        tuple(value.get("publishers", ())),
        file=str(file),
    )


def _absolute(glob: str, folder: Path, key: str) -> str:
    """A local glob from the policy's folder on; registries' names and URLs stay as they are."""
    local = key == _LOCAL or glob.startswith(("./", "../", "/"))
    return os.path.normpath(folder / glob) if local else glob


def _root(folder: Path, text: str, origin: Origin) -> Path:
    found = (folder / text).resolve()
    if (word := unexpanded(text)) is not None:
        raise Refused("Root is refused", f"`{word}` is not expanded in a policy. Write the path itself.", origin)
    if found == found.parent:
        raise Refused("Root is refused", f"{text} would allow every path. Name the folder that manifests may read from.", origin)
    return found


def _places(release: Release) -> Iterator[tuple[str, str, str, Origin | None]]:
    """Section, key, location and place in the manifest of everywhere that a release writes to."""
    named: list[tuple[str, PublishSpec | None]] = [("publish", release.publish), ("records", release.records)]
    for section, spec in named:
        if spec is not None:
            yield section, spec.target, spec.location, spec.origin or release.origin
    if release.register is not None:
        yield "register", REGISTRY, release.register.registry, release.register.origin or release.origin


def _matches(glob: str, location: str) -> bool:
    """``*`` stands for anything but ``/``, ``**`` for anything; letters count as they are written."""
    parts = re.split(r"(\*\*|\*)", glob)
    pattern = "".join({"**": ".*", "*": "[^/]*"}.get(part, re.escape(part)) for part in parts)
    return re.fullmatch(pattern, location, re.DOTALL) is not None


def _worded(diagnostic: Diagnostic) -> Diagnostic:
    """What is said of manifests, said of policies: the same reader and the same checks speak of both."""
    words = {"Manifests are": "Policies are", "Manifest": "Policy", "manifest": "policy"}  # a policy's own words are of manifests
    summary, detail = (
        re.sub(r"\b(Manifests are|[Mm]anifest)\b", lambda found: words[found[0]], text)
        for text in (diagnostic.summary, diagnostic.detail)
    )
    return Diagnostic(summary, detail, diagnostic.origin)


def _place(diagnostic: Diagnostic) -> tuple[int, int]:
    return (0, 0) if diagnostic.origin is None else (diagnostic.origin.line, diagnostic.origin.column)

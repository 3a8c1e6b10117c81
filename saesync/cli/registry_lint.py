"""registry lint: what is wrong in a registry file, with the place of everything."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import click

from saesync.cache import Cache
from saesync.cli.output import is_terminal, put, say
from saesync.errors import Missing
from saesync.registry import report
from saesync.registry.document import MAX_BYTES, PATH
from saesync.registry.lint import Finding, Severity
from saesync.registry.lint import lint as lint_bytes
from saesync.registry.shipped import NAME, shipped

_REPO = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
_URL = re.compile(r"[a-z][a-z0-9+]*://|[\w.-]+@[\w.-]+:")
_FORMS: Mapping[str, Callable[[Sequence[Finding]], str]] = {
    "text": report.text,
    "json": report.as_json,
    "sarif": report.sarif,
    "github": report.github,
}


@click.command()
@click.argument("source", metavar="[FILE|REPO]", required=False)
@click.option(
    "--format", "format_", type=click.Choice(list(_FORMS)), default="text", show_default=True,
    help="Output form. github: annotations beside the lines of a pull request.",
)  # fmt: skip
@click.option("--strict", is_flag=True, help="Exit 1 for warnings too.")
@click.option("--online", is_flag=True, help="Also look on the Hub whether every path is there: one listing per repository.")
@click.pass_context
def lint(ctx: click.Context, source: str | None, format_: str, strict: bool, online: bool) -> None:
    """Check a registry file (pretrained_saes.yaml).

    FILE is such a file or a folder with a checkout of SAELens. REPO is owner/name on GitHub or a git URL, of which the default
    branch is read. Without either, the file of the installed sae-lens is checked. Exit code 1 when there are errors.
    """
    data, name = _read(source)
    findings = list(lint_bytes(data, name))
    if online:
        findings += _online(data, name, findings)
    findings.sort(key=lambda finding: finding.place)
    said = _FORMS[format_](findings)
    if said:
        put(said)
    say(report.summary(findings, name))
    bad = [finding for finding in findings if strict or finding.severity is Severity.ERROR]
    ctx.exit(1 if bad else 0)


def _read(source: str | None) -> tuple[bytes, str]:
    """The bytes of the registry that was asked for, and what to call it.

    Raises:
        Missing: there is no such file, or it cannot be read.
    """
    path = shipped() if source is None else Path(source)
    try:
        if path.is_dir():
            path = _inside(path)
        if source is not None and not path.exists() and _elsewhere(source):
            from saesync.forge import read_registry  # git and GitHub clients, for what is not on this disk

            return read_registry(source, Cache.checked())
        if path.exists() and not path.is_file():
            raise Missing("Registry cannot be read", f"{path} is not a regular file. Name a file, a folder, or owner/name.")
        with path.open("rb") as stream:
            return stream.read(MAX_BYTES + 1), str(path)
    except OSError as error:
        raise Missing("Registry cannot be read", f"{path}: {error.strerror}. Name a file, a folder, or owner/name.") from error


def _elsewhere(source: str) -> bool:
    """Whether this is the name of a repository rather than of a file that is not there."""
    named = _REPO.fullmatch(source) and not source.endswith((".yaml", ".yml"))
    return bool(named or _URL.match(source))


def _inside(folder: Path) -> Path:
    """The file in a checkout of SAELens, or in its package."""
    found = [path for path in (folder / PATH, folder / NAME) if path.is_file()]
    if not found:
        raise Missing("No registry there", f"{folder} holds no {PATH}. Name the file itself.")
    return found[0]


def _online(data: bytes, name: str, known: Sequence[Finding]) -> tuple[Finding, ...]:
    """What the Hub says, if the file can be read at all."""
    if any(finding.rule == "not-a-registry" for finding in known):
        return ()
    from saesync.hub import Hub
    from saesync.presence import missing_paths
    from saesync.registry.document import parse

    def progress(done: int, total: int) -> None:
        if is_terminal(sys.stderr):
            click.echo(f"\r{done} of {total} repositories", nl=done == total, err=True)

    return missing_paths(parse(data, name), Hub(Cache.checked()), progress)

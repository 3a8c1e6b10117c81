"""Findings in the forms that people and machines read: text, JSON, SARIF 2.1.0, and GitHub's workflow commands."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from saesync import __version__
from saesync.carets import escaped
from saesync.registry.lint import RULES, Finding, Severity

JSON_VERSION = 1
_SARIF = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"


def text(findings: Sequence[Finding]) -> str:
    """One line each: ``file:line:col: severity: sentence [rule]``."""
    return "\n".join(f"{escaped(str(f.origin))}: {f.severity}: {escaped(f.detail)} [{f.rule}]" for f in findings)


def summary(findings: Sequence[Finding], name: str) -> str:
    """How many there are."""
    counts = Counter(finding.severity for finding in findings)
    said = [f"{counts[kind]:,} {kind}{'s' * (counts[kind] != 1)}" for kind in Severity if counts[kind]]
    return f"{escaped(name)}: {' and '.join(said) or 'nothing found'}."


def as_json(findings: Sequence[Finding]) -> str:
    """A versioned object with one element per finding."""
    rows = [
        {
            "rule": f.rule,
            "severity": f.severity.value,
            "message": f.detail,
            "file": f.origin.file,
            "line": f.origin.line,
            "column": f.origin.column,
        }
        for f in findings
    ]
    return json.dumps({"type": "saesync-registry-lint", "version": JSON_VERSION, "findings": rows}, indent=2, ensure_ascii=True)


def sarif(findings: Sequence[Finding]) -> str:
    """A SARIF log with one run, for code scanning. Only rules that were broken are listed."""
    used = [rule for rule in RULES.values() if any(finding.rule == rule.id for finding in findings)]
    index = {rule.id: number for number, rule in enumerate(used)}
    rules = [
        {
            "id": rule.id,
            "shortDescription": {"text": f"{rule.summary[:1].upper()}{rule.summary[1:]}."},
            "fullDescription": {"text": f"Otherwise {rule.why}."},
            "defaultConfiguration": {"level": rule.severity.value},
        }
        for rule in used
    ]
    driver = {"name": "saesync", "version": __version__, "rules": rules}
    run = {"tool": {"driver": driver}, "columnKind": "unicodeCodePoints", "results": [_result(f, index) for f in findings]}
    return json.dumps({"$schema": _SARIF, "version": "2.1.0", "runs": [run]}, indent=2, ensure_ascii=True)


def _result(finding: Finding, index: dict[str, int]) -> dict[str, Any]:
    where = finding.origin
    region = {"startLine": where.line, "startColumn": where.column, "endColumn": where.column + where.width}
    location = {"artifactLocation": {"uri": quote(where.file.replace("\\", "/"))}, "region": region}
    return {
        "ruleId": finding.rule,
        "ruleIndex": index[finding.rule],
        "level": finding.severity.value,
        "message": {"text": finding.detail},
        "locations": [{"physicalLocation": location}],
    }


def github(findings: Sequence[Finding]) -> str:
    """One workflow command per finding, which GitHub shows beside the line."""
    return "\n".join(_command(finding) for finding in findings)


def _command(finding: Finding) -> str:
    where = finding.origin
    pairs = {"file": where.file, "line": where.line, "col": where.column, "title": finding.rule}
    said = ",".join(f"{name}={_property(str(value))}" for name, value in pairs.items())
    return f"::{finding.severity} {said}::{_message(finding.detail)}"


def _message(text: str) -> str:
    """Escaped as the runner's toolkit does it; other control characters are spelled out."""
    return escaped(text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A"))


def _property(text: str) -> str:
    return _message(text).replace(":", "%3A").replace(",", "%2C")

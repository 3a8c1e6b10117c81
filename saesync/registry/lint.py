"""Judging a whole registry file: what breaks SAELens, what it silently ignores, and what readers of the file stumble over.

``lint`` never raises: bytes that are no registry end in a finding.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import yaml

from saesync.errors import Origin, SaesyncError
from saesync.inert import plain
from saesync.registry.document import Document, parse
from saesync.registry.entry import is_number
from saesync.registry.nodes import INT, STR, items, pairs, repeated_keys
from saesync.registry.rules import well_formed

RELEASE_KEYS = ("config_overrides", "conversion_func", "links", "model", "repo_id", "saes")
SAE_KEYS = ("id", "l0", "neuronpedia", "norm_scaling_factor", "path", "variance_explained")
SCALED_LOADERS = ("llama_scope", "llama_scope_r1_distill")
"""Loaders whose cfg always wants scaled activations, so that every SAE needs a norm_scaling_factor."""


class Severity(StrEnum):
    """How bad a finding is. The words are those of compilers, SARIF and GitHub."""

    ERROR = "error"
    WARNING = "warning"


@dataclass(frozen=True, slots=True)
class Rule:
    """One thing that is looked for. ``why`` says what it does to users."""

    id: str
    severity: Severity
    summary: str
    why: str


_E, _W = Severity.ERROR, Severity.WARNING
RULES: Mapping[str, Rule] = {
    rule.id: rule
    for rule in (
        Rule("not-a-registry", _E, "the file is YAML: one mapping of releases", "nothing can be loaded by name"),
        Rule("duplicate-key", _E, "no key stands twice in a mapping", "the last one wins, neighbouring SAEs merge into one"),
        Rule("duplicate-id", _E, "SAE ids are unique in their release", "only the last one can be loaded"),
        Rule("missing-key", _E, "repo_id, model, saes, and each SAE's id and path are there", "SAELens fails for all releases"),
        Rule("invalid-value", _E, "values have the type and range that SAELens reads", "loading or evaluation fails or misleads"),
        Rule("nested-release", _E, "no release stands inside another", "what is nested is ignored"),
        Rule("missing-norm-factor", _E, "SAEs of llama_scope loaders have norm_scaling_factor", "features are wrong"),
        Rule("neuronpedia-shape", _E, "Neuronpedia ids are model/LAYER-SET", "links and dashboards lead nowhere"),
        Rule("neuronpedia-duplicate", _E, "Neuronpedia ids are unique in the file", "SAELens's own tests fail"),
        Rule("path-missing", _E, "paths are in their repository (`--online`)", "loading fails with a 404"),
        Rule("unknown-key", _W, "keys are those that SAELens reads", "they are ignored, also when misspelt"),
        Rule("int-path", _W, "paths are texts", "SAELens converts bare numbers; other readers may not"),
        Rule("conflicting-l0", _W, "the same weights have one l0", "one of the two numbers is wrong"),
        Rule("repo-not-visible", _W, "repositories can be seen (`--online`)", "their paths were not checked"),
    )
}  # fmt: skip
"""All rules by id, in the order of the documentation."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One place where a rule is not kept. ``detail`` is a full sentence."""

    rule: str
    detail: str
    origin: Origin

    @property
    def severity(self) -> Severity:
        """The rule's."""
        return RULES[self.rule].severity

    @property
    def place(self) -> tuple[int, int, str]:
        """What findings of one file are sorted by."""
        return self.origin.line, self.origin.column, self.rule


def lint(data: bytes, name: str) -> tuple[Finding, ...]:
    """Everything that is wrong in a registry file, sorted by place; ``name`` is what findings call it."""
    try:
        return lint_document(parse(data, name))
    except SaesyncError as error:
        return tuple(Finding("not-a-registry", each.detail, each.origin or Origin(name, 1, 1)) for each in error.diagnostics)


def lint_document(document: Document) -> tuple[Finding, ...]:
    """The same for a file that was read."""
    return tuple(sorted(_Linter(document).findings(), key=lambda finding: finding.place))


@dataclass
class _Linter:
    """One pass over the nodes, with what must be unique in the whole file."""

    document: Document
    neuronpedia: dict[str, int] = field(default_factory=dict)  # id -> line
    l0: dict[tuple[str, str], tuple[float, int]] = field(default_factory=dict)  # (repo, path) -> value, line

    def findings(self) -> Iterator[Finding]:
        for second, first in repeated_keys(self.document.root):
            detail = f"`{plain(second.value)}` stands in this mapping on line {_line(first)} already."
            yield self.at("duplicate-key", second, detail)
        for name, (key, node) in pairs(self.document.root).items():
            if key.tag != STR:
                yield self.at("invalid-value", key, f"The release name `{plain(name)}` is not a text. Put it in quotes.")
                continue
            value = self.document.value.get(name)
            if not isinstance(value, dict):
                yield self.at("invalid-value", node, f"{plain(name)} is not a mapping with repo_id, model and saes.")
            else:
                yield from self.release(key, node, value)

    def release(self, key: yaml.Node, node: yaml.Node, value: Mapping[Any, Any]) -> Iterator[Finding]:
        found, name = pairs(node), plain(key.value)
        yield from self.missing(key, found, ("repo_id", "model", "saes"), name)
        for unknown, (at, below) in found.items():
            if unknown not in RELEASE_KEYS and "saes" in pairs(below):
                detail = (
                    f"{plain(unknown)} is a release of its own, nested inside {name}: SAELens ignores it. Move it to the left."
                )
                yield self.at("nested-release", at, detail)
            elif unknown not in RELEASE_KEYS:
                yield self.unknown(at, unknown, RELEASE_KEYS, "a release")
        for wanted in ("repo_id", "model"):
            if wanted in found and not (isinstance(value.get(wanted), str) and value[wanted]):
                yield self.at("invalid-value", found[wanted][1], f"{wanted} of {name} is not a text.")
        if not isinstance(value.get("conversion_func"), str | None):
            yield self.at("invalid-value", found["conversion_func"][1], f"conversion_func of {name} is neither a text nor null.")
        for wanted in ("links", "config_overrides"):
            if not isinstance(value.get(wanted), dict | None):
                yield self.at("invalid-value", found[wanted][1], f"{wanted} of {name} is not a mapping.")
        if "saes" in found:
            yield from self.saes(name, found["saes"][1], value)

    def saes(self, name: str, node: yaml.Node, release: Mapping[Any, Any]) -> Iterator[Finding]:
        saes = release.get("saes")
        if not isinstance(saes, list):
            yield self.at("invalid-value", node, f"saes of {name} is not a list.")
            return
        ids: dict[str, int] = {}
        for item, value in zip(items(node), saes, strict=False):
            if not isinstance(value, dict):
                yield self.at("invalid-value", item, f"An SAE of {name} is not a mapping with id and path.")
                continue
            found = pairs(item)
            yield from self.keys(name, item, found)
            yield from self.values(name, found, value)
            if isinstance(sae_id := value.get("id"), str) and ids.setdefault(sae_id, _line(item)) != _line(item):
                detail = f"{plain(sae_id)} stands in {name} on line {ids[sae_id]} already."
                yield self.at("duplicate-id", found["id"][1], detail)
            if release.get("conversion_func") in SCALED_LOADERS and "norm_scaling_factor" not in found:
                detail = (
                    f"{plain(sae_id)} of {name} is loaded by {release['conversion_func']}, which leaves activations unscaled."
                )
                yield self.at("missing-norm-factor", item, f"{detail} Add norm_scaling_factor.")
            yield from self.across(name, found, value, release.get("repo_id"))

    def keys(self, name: str, item: yaml.Node, found: Mapping[str, tuple[yaml.Node, yaml.Node]]) -> Iterator[Finding]:
        yield from self.missing(item, found, ("id", "path"), f"An SAE of {name}")
        if "saes" in found:
            detail = f"A whole release stands inside this SAE of {name}: SAELens ignores all of it but id, path and numbers."
            yield self.at("nested-release", item, f"{detail} Remove its release keys.")
            return
        for unknown, (at, _) in found.items():
            if unknown not in SAE_KEYS:
                yield self.unknown(at, unknown, SAE_KEYS, "an SAE")

    def values(self, name: str, found: Mapping[str, tuple[yaml.Node, yaml.Node]], value: Mapping[Any, Any]) -> Iterator[Finding]:
        who = f"{plain(value.get('id'))} of {name}"
        for key, (fits, what) in _FITS.items():
            if key in found and not fits(value.get(key)):
                yield self.at("invalid-value", found[key][1], f"{key} of {who} is not {what}.")
        path = found.get("path")
        if path is not None and path[1].tag == INT:
            yield self.at("int-path", path[1], f"The path of {who} is the bare number {plain(path[1].value)}. Put it in quotes.")
        neuronpedia = value.get("neuronpedia")
        if isinstance(neuronpedia, str) and not well_formed(neuronpedia):
            detail = f"{plain(neuronpedia)} of {who} is not of the form model/LAYER-SET, as gpt2-small/8-res-jb."
            yield self.at("neuronpedia-shape", found["neuronpedia"][1], detail)

    def across(
        self, name: str, found: Mapping[str, tuple[yaml.Node, yaml.Node]], value: Mapping[Any, Any], repo: Any
    ) -> Iterator[Finding]:
        """What two releases can disagree about."""
        neuronpedia, l0, who = value.get("neuronpedia"), value.get("l0"), f"{plain(value.get('id'))} of {name}"
        if isinstance(neuronpedia, str):
            node = found["neuronpedia"][1]
            if (line := self.neuronpedia.setdefault(neuronpedia, _line(node))) != _line(node):
                detail = f"{plain(neuronpedia)} of {who} stands on line {line} already."
                yield self.at("neuronpedia-duplicate", node, detail)
        if is_number(l0) and l0 and isinstance(repo, str) and "path" in found:
            node = found["l0"][1]
            other, line = self.l0.setdefault((repo, str(value["path"])), (l0, _line(node)))
            if other != l0:
                detail = f"l0 of {who} is {l0}, and {other} for the same path of {plain(repo)} on line {line}."
                yield self.at("conflicting-l0", node, detail)

    def missing(self, at: yaml.Node, found: Iterable[str], wanted: Iterable[str], who: str) -> Iterator[Finding]:
        for key in wanted:
            if key not in found:
                yield self.at("missing-key", at, f"{who} has no {key}; SAELens stops at it, and no SAE loads by name.")

    def unknown(self, at: yaml.Node, key: str, known: tuple[str, ...], of: str) -> Finding:
        near = difflib.get_close_matches(key, known, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        return self.at("unknown-key", at, f"`{plain(key)}` is no key of {of}; SAELens ignores it.{hint}")

    def at(self, rule: str, node: yaml.Node, detail: str) -> Finding:
        return Finding(rule, detail, self.document.origin(node))


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


_FITS: Mapping[str, tuple[Any, str]] = {
    "id": (lambda value: isinstance(value, str) and value != "", "a text"),
    "path": (lambda value: type(value) in (str, int) and value != "", "a text"),
    "l0": (lambda value: is_number(value) and value >= 0, "a number from 0 on"),
    "variance_explained": (lambda value: is_number(value) and value <= 1, "a number up to 1"),
    "norm_scaling_factor": (lambda value: is_number(value) and value > 0, "a number above 0"),
    "neuronpedia": (lambda value: value is None or (isinstance(value, str) and value != ""), "a text"),
}

"""The linter: the real file's real defects, one file per rule, any bytes at all, and what it prints."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from servers.loopback import ALICE_READ, BOB, HubServer

from saesync.errors import Origin
from saesync.registry import report
from saesync.registry.document import Document
from saesync.registry.lint import RULES, Finding, lint, lint_document

PROGRAM = str(Path(sys.executable).with_name("saesync"))
GOOD = """\
a-res:
  conversion_func: null
  model: m
  repo_id: acme/a
  saes:
  - id: x
    path: x
    l0: 60
    neuronpedia: m/1-res
"""


def told(text: str) -> list[tuple[str, int, int]]:
    return [(each.rule, each.origin.line, each.origin.column) for each in lint(text.encode(), "r.yaml")]


def test_the_real_file_has_the_defects_it_has(real: Document) -> None:
    findings = lint_document(real)
    counts = Counter(finding.rule for finding in findings)
    assert counts["nested-release"] == 1
    assert counts.keys() <= {"nested-release", "int-path", "conflicting-l0"}
    (nested,) = [finding for finding in findings if finding.rule == "nested-release"]
    lines = real.text.splitlines()
    assert lines[nested.origin.line - 1] == "  - conversion_func: null"
    assert lines[nested.origin.line] == "    id: blocks.10.hook_resid_pre"
    assert "gpt2-small-res_scefr-ajt" in nested.detail
    ints = [lines[finding.origin.line - 1] for finding in findings if finding.rule == "int-path"]
    assert all(re.fullmatch(r"    path: \d+", line) for line in ints)
    assert len(ints) == len(re.findall(r"^    path: \d+$", real.text, re.MULTILINE))


def test_a_good_file_has_none() -> None:
    assert told(GOOD) == []
    assert told("") == []


CASES = {
    "duplicate-key": [("  model: m\n", "  model: m\n  model: n\n", 4, 3), ("    path: x\n", "    path: x\n    path: y\n", 8, 5)],
    "duplicate-id": [("    neuronpedia: m/1-res\n", "    neuronpedia: m/1-res\n  - id: x\n    path: y\n", 10, 9)],
    "missing-key": [("  model: m\n", "", 1, 1), ("  repo_id: acme/a\n", "", 1, 1), ("    path: x\n", "", 6, 5)],
    "invalid-value": [
        ("l0: 60", "l0: many", 8, 9),
        ("l0: 60", "l0: .nan", 8, 9),
        ("l0: 60", "l0: -1", 8, 9),
        ("l0: 60", "l0: true", 8, 9),
        ("l0: 60", "variance_explained: 71", 8, 25),
        ("l0: 60", "norm_scaling_factor: 0", 8, 26),
        ("id: x", "id: 3", 6, 9),
        ("path: x", "path: [x]", 7, 11),
        ("path: x", "path: 1.5", 7, 11),
        ("neuronpedia: m/1-res", "neuronpedia: 3", 9, 18),
        ("model: m", "model: 3", 3, 10),
        ("repo_id: acme/a", "repo_id: null", 4, 12),
        ("conversion_func: null", "conversion_func: []", 2, 20),
        ("model: m", "model: m\n  links: x", 4, 10),
        ("model: m", "model: m\n  config_overrides: [x]", 4, 21),
        ("a-res:", "3:", 1, 1),
        ("a-res:\n", "other: text\na-res:\n", 1, 8),
        ("  - id: x", "  - text\n  - id: x", 6, 5),
    ],
    "nested-release": [
        ("    l0: 60\n", "    l0: 60\n    repo_id: acme/a\n    saes:\n    - id: y\n      path: y\n", 6, 5),
        ("  saes:\n", "  b-res:\n    model: m\n    repo_id: a/b\n    saes: []\n  saes:\n", 5, 3),
    ],
    "missing-norm-factor": [("conversion_func: null", "conversion_func: llama_scope", 6, 5)],
    "neuronpedia-shape": [("m/1-res", "m-1-res", 9, 18), ("m/1-res", "m/res", 9, 18)],
    "neuronpedia-duplicate": [("a-res:\n", GOOD.replace("a-res", "b-res").replace("acme/a", "acme/b") + "a-res:\n", 18, 18)],
    "unknown-key": [("    l0: 60", "    L0: 60", 8, 5), ("  model: m\n", "  model: m\n  license: mit\n", 4, 3)],
    "int-path": [("path: x", "path: 7", 7, 11)],
    "conflicting-l0": [
        ("a-res:\n", GOOD.replace("a-res", "b-res").replace("m/1-res", "m/2-res").replace("60", "48") + "a-res:\n", 17, 9)
    ],
    "not-a-registry": [("a-res:", "a-res: b: c", 1, 9), (GOOD, "- x\n", 1, 1), (GOOD, "a: *b\n", 1, 4)],
}  # fmt: skip
SEPARATE = [(rule, *case) for rule, cases in CASES.items() for case in cases]


@pytest.mark.parametrize(("rule", "old", "new", "line", "column"), SEPARATE)
def test_each_rule_has_its_place(rule: str, old: str, new: str, line: int, column: int) -> None:
    assert old in GOOD
    assert told(GOOD.replace(old, new, 1)) == [(rule, line, column)]


def test_every_offline_rule_is_tested() -> None:
    assert set(CASES) == set(RULES) - {"path-missing", "repo-not-visible"}


def test_a_misspelt_key_gets_a_suggestion() -> None:
    (finding,) = lint(GOOD.replace("neuronpedia:", "neuropedia:").encode(), "r")
    assert finding.detail == "`neuropedia` is no key of an SAE; SAELens ignores it. Did you mean neuronpedia?"


WORDS = ["a-res", "saes", "id", "path", "l0", "model", "repo_id", "links", "neuronpedia", "conversion_func", "<<", "x", "3", "~"]
WORDS += [
    "m/1-x",
    "null",
    "2001-99-99",
    "!!int ''",
    "&a",
    "*a",
    "? ",
    ": ",
    "- ",
    "{",
    "}",
    "[",
    "]",
    "\n",
    "\n  ",
    "\n    ",
    "\t",
    "'",
    '"',
    "|",
    "#",
]
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(WORDS),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(WORDS) | st.integers(), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None)
@given(
    st.binary(max_size=60)
    | st.lists(st.sampled_from(WORDS), max_size=14).map(lambda words: "".join(words).encode())
    | VALUES.map(lambda value: yaml.safe_dump(value).encode())
    | st.dictionaries(st.sampled_from(WORDS), VALUES, max_size=3).map(lambda value: yaml.safe_dump({"r": value}).encode())
)
def test_any_bytes_end_in_findings(data: bytes) -> None:
    findings = lint(data, "r.yaml")
    assert list(findings) == sorted(findings, key=lambda finding: finding.place)
    for form in (report.text, report.as_json, report.sarif, report.github):
        form(findings).encode()


# ------------------------------------------------------------------------------------------------------- forms

FINDINGS = (
    Finding("nested-release", "100% of it,\nsays: \x1b[31m<b>", Origin("a:b,c/r.yaml", 3, 5, 2)),
    Finding("int-path", "The path is 3.", Origin("a:b,c/r.yaml", 4, 11)),
)


def test_github_annotations_are_escaped_as_the_runner_reads_them() -> None:
    first, second = report.github(FINDINGS).splitlines()
    assert first == ("::error file=a%3Ab%2Cc/r.yaml,line=3,col=5,title=nested-release::100%25 of it,%0Asays: \\x1b[31m<b>")
    assert second == "::warning file=a%3Ab%2Cc/r.yaml,line=4,col=11,title=int-path::The path is 3."


def test_text_is_one_inert_line_each() -> None:
    first, second = report.text(FINDINGS).splitlines()
    assert first == "a:b,c/r.yaml:3:5: error: 100% of it,\\nsays: \\x1b[31m<b> [nested-release]"
    assert second == "a:b,c/r.yaml:4:11: warning: The path is 3. [int-path]"
    assert report.summary(FINDINGS, "r.yaml") == "r.yaml: 1 error and 1 warning."
    assert report.summary((), "r.yaml") == "r.yaml: nothing found."


def test_sarif_holds_what_code_scanning_asks_for() -> None:
    log = json.loads(report.sarif(FINDINGS))
    assert (log["version"], len(log["runs"])) == ("2.1.0", 1)
    driver = log["runs"][0]["tool"]["driver"]
    assert [rule["id"] for rule in driver["rules"]] == ["nested-release", "int-path"]
    for result, finding in zip(log["runs"][0]["results"], FINDINGS, strict=True):
        assert driver["rules"][result["ruleIndex"]]["id"] == result["ruleId"] == finding.rule
        assert result["level"] == finding.severity.value
        place = result["locations"][0]["physicalLocation"]
        assert place["artifactLocation"]["uri"] == "a%3Ab%2Cc/r.yaml"
        assert (place["region"]["startLine"], place["region"]["startColumn"]) == (finding.origin.line, finding.origin.column)
    assert json.loads(report.sarif(()))["runs"][0]["results"] == []


def test_json_is_versioned() -> None:
    value = json.loads(report.as_json(FINDINGS))
    assert (value["type"], value["version"]) == ("saesync-registry-lint", 1)
    assert value["findings"][1] == {
        "rule": "int-path", "severity": "warning", "message": "The path is 3.", "file": "a:b,c/r.yaml", "line": 4, "column": 11,
    }  # fmt: skip


def test_the_table_of_the_docs_is_not_stale() -> None:
    text = (Path(__file__).parent.parent.parent / "docs" / "registry.md").read_text(encoding="utf-8")
    rows = [f"| `{rule.id}` | {rule.severity} | {rule.summary} | {rule.why} |" for rule in RULES.values()]
    assert [line for line in text.splitlines() if line.startswith("| `") and line.count("|") == 5] == rows


# ------------------------------------------------------------------------------------------------------ command


def run(*words: str, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [PROGRAM, "registry", "lint", *words],
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        env={**os.environ, **environment},
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done


def test_without_a_word_the_installed_file_is_checked() -> None:
    done = run()
    assert done.returncode == 1
    assert re.search(r"pretrained_saes\.yaml:\d+:5: error: A whole release stands inside .* \[nested-release\]", done.stdout)
    assert done.stderr.endswith("pretrained_saes.yaml: 1 error and 27 warnings.\n")


def test_exit_codes_and_places_to_look(tmp_path: Path) -> None:
    folder = tmp_path / "SAELens" / "sae_lens"
    folder.mkdir(parents=True)
    file = folder / "pretrained_saes.yaml"
    file.write_text(GOOD)
    assert run(str(file)).returncode == 0
    assert run(str(tmp_path / "SAELens")).stderr.endswith("sae_lens/pretrained_saes.yaml: nothing found.\n")
    file.write_text(GOOD.replace("path: x", "path: 7"))
    assert run(str(file)).returncode == 0
    assert run("--strict", str(file)).returncode == 1
    done = run("sae_lens/pretrained_saes.yaml", "--format", "github", cwd=tmp_path / "SAELens")
    assert done.stdout.startswith("::warning file=sae_lens/pretrained_saes.yaml,line=7,col=11,title=int-path::")
    file.write_text("a: b: c")
    done = run(str(file), "--online")
    assert (done.returncode, done.stdout) == (
        1,
        f"{file}:1:5: error: mapping values are not allowed in this context. [not-a-registry]\n",
    )


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("nothing.yaml", "nothing.yaml: No such file"),
        ("sae_lens/pretrained_saes.yml", "No such file"),
        ("/dev/zero", "not a regular file"),
        (".", "holds no sae_lens"),
    ],
)
def test_what_is_not_there_is_one_message(source: str, said: str, tmp_path: Path) -> None:
    done = run(source, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert said in done.stderr


HUB = """\
native:
  conversion_func: null
  model: m
  repo_id: sae-org/native
  saes:
  - {id: a, path: a}
  - {id: b, path: b}
  - {id: gone, path: gone}
foreign:
  conversion_func: dictionary_learning_1
  model: m
  repo_id: sae-org/foreign
  saes:
  - {id: folder, path: x/y}
  - {id: file, path: x/y/ae.pt}
  - {id: stem, path: x/y/ae}
  - {id: prefix, path: x/}
  - {id: part, path: x/y/a}
clt:
  conversion_func: mntss_clt_layer_transcoder
  model: m
  repo_id: sae-org/foreign
  saes:
  - {id: layer_0, path: '0'}
  - {id: layer_1, path: '1'}
root:
  conversion_func: null
  model: m
  repo_id: sae-org/root
  saes:
  - {id: r, path: .}
private:
  conversion_func: null
  model: m
  repo_id: bob/private
  saes:
  - {id: p, path: p}
"""


@pytest.mark.parametrize("hub_process", ["lfs"], indirect=True)
def test_paths_are_looked_up_with_one_listing_per_repository(hub_server: HubServer, tmp_path: Path) -> None:
    files = {"cfg.json": b"{}", "sae_weights.safetensors": b"w"}
    for repo in ("sae-org/native", "sae-org/foreign", "sae-org/root"):
        hub_server.create_repo(repo)
    hub_server.create_repo("bob/private", private=True, token=BOB)
    hub_server.push("sae-org/native", {**{f"a/{name}": data for name, data in files.items()}, "b/cfg.json": b"{}"})
    hub_server.push("sae-org/foreign", {"x/y/ae.pt": b"1", "W_enc_0.safetensors": b"1"})
    hub_server.push("sae-org/root", dict(files))
    file = tmp_path / "r.yaml"
    file.write_text(HUB)
    hub_server.restart_counters()
    done = run(str(file), "--online", **hub_server.environment(ALICE_READ, SAESYNC_RETRY_SECONDS="1"))
    assert done.returncode == 1, done.stderr
    found = re.findall(r"r\.yaml:(\d+):\d+: (\w+): (.*) \[([\w-]+)\]", done.stdout)
    assert [(int(line), severity, rule) for line, severity, _, rule in found] == [
        (7, "error", "path-missing"),
        (8, "error", "path-missing"),
        (18, "error", "path-missing"),
        (25, "error", "path-missing"),
        (35, "warning", "repo-not-visible"),
    ]
    assert "gone of native is not in sae-org/native" in found[1][2]
    assert "bob/private cannot be seen, so its paths were not checked" in found[4][2]
    assert hub_server.count() == 4 + 3


def test_an_unreachable_hub_makes_nothing_missing(tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    file.write_text(HUB)
    done = run(str(file), "--online", HF_ENDPOINT="http://127.0.0.1:9", SAESYNC_RETRY_SECONDS="0")
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("[repo-not-visible]") == 4
    assert "path-missing" not in done.stdout

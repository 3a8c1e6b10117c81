"""pin: commit hashes are filled in, and every other byte stays."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from manifest_support import COMMIT, GOOD, OTHER, changed

from saesync.errors import ManifestError, NotVisible
from saesync.manifest import load
from saesync.pin import Change, pin

Asked = list[tuple[str, str, str | None]]


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return Path("m.yaml")


def run(file: Path, text: str, asked: Asked | None = None) -> tuple[list[Change], str]:
    file.write_bytes(text.encode())

    def resolve(repo: str, kind: str, revision: str | None) -> str:
        if asked is not None:
            asked.append((repo, kind, revision))
        return COMMIT

    changes = pin(file, resolve)
    return changes, file.read_bytes().decode()


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("model: google/gemma  # c\n", f"model: {{name: google/gemma, revision: {COMMIT}}}  # c\n"),
        ('model: "google/gemma"\n', f'model: {{name: "google/gemma", revision: {COMMIT}}}\n'),
        ("model:\n  name: a/b  # c\n  dtype: x\n", f"model:\n  name: a/b  # c\n  revision: {COMMIT}\n  dtype: x\n"),
        ("model:\r\n  name: a/b\r\n", f"model:\r\n  name: a/b\r\n  revision: {COMMIT}\r\n"),
        ("model:\n    name: a/b", f"model:\n    name: a/b\n    revision: {COMMIT}"),
        ("model: {name: a/b, dtype: x}\n", f"model: {{name: a/b, revision: {COMMIT}, dtype: x}}\n"),
        ("model:\n  revision: main # c\n  name: a/b\n", f"model:\n  revision: {COMMIT} # c\n  name: a/b\n"),
        ("model: {name: a/b, revision: 'v1.0'}\n", f"model: {{name: a/b, revision: {COMMIT}}}\n"),
        ("model:\n  revision: # todo\n  name: a/b\n", f"model:\n  revision: {COMMIT} # todo\n  name: a/b\n"),
        ("model:\n  revision:\n  name: a/b\n", f"model:\n  revision: {COMMIT}\n  name: a/b\n"),
        ("model:\n  revision: ~\n  name: a/b\n", f"model:\n  revision: {COMMIT}\n  name: a/b\n"),
        ("\ufeffmodel: a/b\n", f"\ufeffmodel: {{name: a/b, revision: {COMMIT}}}\n"),
        ("x: é😀\nmodel: a/b\n", f"x: é😀\nmodel: {{name: a/b, revision: {COMMIT}}}\n"),
    ],
)
def test_minimal_splices(file: Path, before: str, after: str) -> None:
    changes, text = run(file, before)
    assert text == after
    assert [change.key for change in changes] == ["model.revision"]
    assert run(file, after) == ([], after)


@pytest.mark.parametrize("commit", ["1" * 40, "1" * 20 + "e" + "2" * 19, "0" * 39 + "1", "1e" + "0" * 38])
def test_hashes_that_read_as_numbers_are_quoted(file: Path, commit: str) -> None:
    file.write_text("model: a/b\n")
    pin(file, lambda repo, kind, revision: commit)
    assert file.read_text() == f'model: {{name: a/b, revision: "{commit}"}}\n'


def test_every_place_is_asked_once_with_its_kind(file: Path) -> None:
    text = (
        "model: a/m\nsaes:\n  source: {repo: a/s, revision: dev}\n  train: {dataset: a/t}\n"
        "validate:\n  dataset: &d {repo: a/v}\ndashboards:\n  dataset: *d\n"
    )
    asked: Asked = []
    changes, pinned = run(file, text, asked)
    assert asked == [("a/m", "model", None), ("a/s", "model", "dev"), ("a/t", "dataset", None), ("a/v", "dataset", None)]
    assert pinned.count(COMMIT) == 4
    assert str(changes[1]) == f"m.yaml:3:18: saes.source.revision of a/s is {COMMIT} (was dev)"


def test_a_pinned_manifest_loads(file: Path) -> None:
    loose = changed(
        (f"    revision: {OTHER}\n", ""),
        (f"  dataset:\n    repo: monology/pile\n    revision: {COMMIT}\n", "  dataset: monology/pile\n"),
        (f"model:\n  name: google/gemma-2-2b\n  revision: {COMMIT}\n", "model: google/gemma-2-2b\n"),
    )
    file.write_text(loose, encoding="utf-8")
    with pytest.raises(ManifestError, match="saesync pin m"):
        load([file])
    run(file, loose)
    (release,) = load([file])
    assert release.saes[0].source is not None
    assert release.saes[0].source.revision == COMMIT


@pytest.mark.parametrize(
    "text",
    [
        GOOD,
        "model: ./folder\n",
        "model: {path: x}\n",
        "validate: {dataset: {path: x}}\n",
        'saes: {source: {repo: a/b, revision: "{r}"}}\n',
        "saes: {source: {path: x}}\n",
        "other: 1\n",
    ],
)
def test_nothing_to_pin_writes_nothing(file: Path, text: str) -> None:
    file.write_text(text, encoding="utf-8")
    before = file.stat()
    asked: Asked = []

    def resolve(repo: str, kind: str, revision: str | None) -> str:
        asked.append((repo, kind, revision))
        return COMMIT

    assert pin(file, resolve) == []
    assert asked == []
    assert (file.stat().st_ino, file.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


@pytest.mark.parametrize(
    "text",
    [
        "saes: {source: {repo: 'a/{x}'}}\n",
        "saes: {source: {repo: 'a/{x}', revision: main}}\n",
        "x: &r a/b\nmodel: {name: *r}\n",
        "x: &r main\nmodel: {name: a/b, revision: *r}\n",
        "model:\n  name: >-\n    a/b\n  dtype: x\n",
        "model: {name: a/b,\n  revision: |\n    x\n}\n",
    ],
)
def test_what_cannot_be_pinned_is_said_and_the_file_stays(file: Path, text: str) -> None:
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ManifestError) as caught:
        pin(file, lambda repo, kind, revision: COMMIT)
    assert caught.value.diagnostics[0].origin is not None
    assert file.read_text(encoding="utf-8") == text


def test_errors_of_the_hub_get_their_place_and_nothing_is_written(file: Path) -> None:
    text = "model: a/m\nvalidate:\n  dataset: a/d\n"
    file.write_text(text, encoding="utf-8")

    def resolve(repo: str, kind: str, revision: str | None) -> str:
        if kind == "dataset":
            raise NotVisible("Not visible", "There is no such dataset.")
        return COMMIT

    with pytest.raises(NotVisible) as caught:
        pin(file, resolve)
    assert str(caught.value.diagnostics[0].origin) == "m.yaml:3:12"
    assert file.read_text(encoding="utf-8") == text
    with pytest.raises(ManifestError, match="no 40-digit commit hash"):
        pin(file, lambda repo, kind, revision: "main")


def test_a_linked_manifest_stays_a_link(file: Path, tmp_path: Path) -> None:
    real = tmp_path / "real.yaml"
    real.write_text("model: a/b\n", encoding="utf-8")
    file.symlink_to(real)
    pin(file, lambda repo, kind, revision: COMMIT)
    assert file.is_symlink()
    assert COMMIT in real.read_text(encoding="utf-8")


SPACE = st.sampled_from(["", " ", "  # note", "  # {é}"])


@settings(max_examples=60, deadline=None)
@given(SPACE, SPACE, st.booleans(), st.sampled_from(["\n", "\r\n"]), st.sampled_from([None, "main", "'v1'", OTHER]))
def test_only_hashes_differ(
    tmp_path_factory: pytest.TempPathFactory, one: str, two: str, flow: bool, newline: str, revision: str | None
) -> None:
    file = tmp_path_factory.mktemp("pin") / "m.yaml"
    given_revision = [] if revision is None else [f"revision: {revision}"]
    if flow:
        lines = [f"model: {{{', '.join(['name: a/b', *given_revision, 'dtype: x'])}}}{one}", f"other: 1{two}"]
    else:
        lines = [f"model:{one}", f"  name: a/b{two}", *(f"  {line}" for line in given_revision), "  dtype: x", f"other: 1{two}"]
    text = newline.join(lines) + newline
    _, pinned = run(file, text)
    wanted = OTHER if revision == OTHER else COMMIT
    assert wanted in pinned
    if revision is not None:
        assert pinned == text.replace(f"revision: {revision}", f"revision: {wanted}")
    elif flow:
        assert pinned.replace(f", revision: {COMMIT}", "") == text
    else:
        assert pinned.replace(f"  revision: {COMMIT}{newline}", "") == text

"""Whoever reads what is printed may be gone, on a full disk, or of another alphabet: the work and its exit code stay the same."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from cli_support import PROGRAM, Done, Place

ASCII = {"PYTHONIOENCODING": "ascii"}
NARROW = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}

pytestmark = pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device that is always full")


def through_shell(place: Place, line: str, **variables: str) -> Done:
    """A shell's line with PROGRAM as ``saesync``: for redirections. Its exit code is the program's."""
    done = subprocess.run(
        ["bash", "-c", f'saesync() {{ {PROGRAM} "$@"; }}; set -o pipefail; {line}'],
        cwd=place.folder,
        env={**place.environment, **variables},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert "Traceback" not in done.stderr
    return Done(done.returncode, done.stdout, done.stderr)


def test_a_log_that_cannot_be_written_stops_nothing(own: Place) -> None:
    done = through_shell(own, "saesync apply -y manifests/good.yaml 2>/dev/full")
    assert done.code == 0, done.said
    assert own.published() == {"layer_0/topk", "layer_0/standard", "layer_1/batchtopk"}


@pytest.mark.parametrize(
    ("words", "code"), [("plan nope", 1), ("plan --bogus", 2), ("apply", 2), ("plan --adopt '*topk'", 0), ("plan --check", 1)]
)
def test_exit_codes_are_the_same_when_nothing_can_be_said(applied: Place, words: str, code: int) -> None:
    for where in ("2>/dev/full", "2>&-", "<&- 2>&-"):
        assert through_shell(applied, f"saesync {words} {where}").code == code, where


@pytest.mark.parametrize(
    "words",
    [
        "--help",
        "plan --help",
        "--version",
        "plan",
        "check",
        "schema",
        "apply -y",
        "init sources/sweep -o -",
        "plan --format json",
    ],
)
def test_data_that_cannot_be_written_is_said_to_be_lost(applied: Place, words: str) -> None:
    done = through_shell(applied, f"saesync {words} >/dev/full")
    assert done.code == 1
    assert "error: Output cannot be written\n  Standard output: No space left on device." in done.err
    assert "SAESYNC_CACHE" not in done.err, "which is not where it was to be written"


def test_events_that_are_lost_are_said_to_be_and_the_run_goes_on(own: Place) -> None:
    done = through_shell(own, "saesync apply -y --format json manifests/good.yaml >/dev/full")
    assert done.code == 1, "all is as asked, but whoever reads the events does not know"
    assert done.err.startswith("error: Output cannot be written\n")
    assert own.published() == {"layer_0/topk", "layer_0/standard", "layer_1/batchtopk"}


def test_what_ends_an_apply_before_its_run_is_said_also_when_events_are_lost(own: Place) -> None:
    done = through_shell(own, "saesync apply -y --format json --only zzz >/dev/full")
    assert done.code == 2
    assert "--only 'zzz' matches no SAE" in done.err


def test_a_plan_may_be_written_into_a_pipe_that_has_no_name(own: Place) -> None:
    (own.folder / "pipe.json").symlink_to("/dev/fd/3")
    done = through_shell(own, "saesync plan --out pipe.json 3>&1 >plan.txt | cat >got.json")
    assert done.code == 0
    assert json.loads((own.folder / "got.json").read_text())["type"] == "saesync-plan"
    assert (own.folder / "pipe.json").is_symlink()


@pytest.mark.parametrize("variables", [NARROW, ASCII])
def test_signs_that_the_terminal_lacks_are_spelt(own: Place, variables: dict[str, str]) -> None:
    if not str(own.folder).isascii():
        pytest.skip("the folder of temporary files has a name that the locale lacks")
    plan = own.run("plan", **variables)
    assert plan.code == 0, plan.said
    assert "layer_0/topk ... layer_1/batchtopk (3)" in plan.out
    done = own.run("apply", "-y", "manifests/good.yaml", **variables)
    assert done.code == 0, done.said
    assert "  + layer_0/topk" in done.err
    assert "max|diff|" in done.err


_WIDE, _SPELT = ("läng…日本", 9), ("l\\u00e4ng...\\u65e5\\u672c", 24)


@pytest.mark.parametrize(("variables", "marked"), [({}, _WIDE), ({"LC_ALL": "C"}, _WIDE), (NARROW, _SPELT), (ASCII, _SPELT)])
def test_carets_stand_under_what_is_shown(own: Place, variables: dict[str, str], marked: tuple[str, int]) -> None:
    """Where characters are spelt, so is what a caret underlines."""
    own.world.good.write_text(own.world.good.read_text() + "läng…日本: 1\n")
    lines = own.run("check", "manifests/good.yaml", **variables).err.splitlines()
    at = next(number for number, line in enumerate(lines) if "^" in line)
    shown, carets = (line.partition("| ")[2] for line in lines[at - 1 : at + 1])
    assert (shown, carets) == (f"{marked[0]}: 1", "^" * marked[1])


def test_json_stays_json_where_the_encoding_lacks_a_character(own: Place) -> None:
    text = own.world.good.read_text().replace("../model", "../mödel×…𝛼")
    own.world.good.write_text(text)
    own.world.model.rename(own.folder / "mödel×…𝛼")
    wide, narrow = (json.loads(own.run("plan", "--format", "json", "manifests/good.yaml", **more).out) for more in ({}, ASCII))
    assert wide == narrow
    events = own.run("apply", "-y", "--format", "json", "manifests/good.yaml", **ASCII)
    assert events.code == 0, events.said
    assert [event["type"] for event in events.events()][-1] == "summary"


def test_a_path_that_the_locale_cannot_spell_is_not_taken_for_missing(own: Place) -> None:
    own.world.good.write_text(own.world.good.read_text().replace("../model", "../mödel"))
    own.world.model.rename(own.folder / "mödel")
    done = own.run("plan", "manifests/good.yaml", **NARROW)
    assert done.code == 1
    assert "error: Path is refused\n  --> manifests/good.yaml:" in done.err
    assert "Names of files are ascii here" in done.err
    assert "Set PYTHONUTF8=1" in done.err


def test_a_manifest_on_stdout_is_utf_8_as_files_are(own: Place) -> None:
    (own.folder / "sources" / "sweep").rename(own.folder / "sources" / "größe")
    words = [PROGRAM, "init", "sources/größe", "-o", "-"]
    done = subprocess.run(
        words, cwd=own.folder, env={**own.environment, "PYTHONIOENCODING": "latin-1"}, capture_output=True, check=True
    )
    assert "größe" in done.stdout.decode("utf-8")


@pytest.mark.parametrize("words", [["plan", "manifests"], ["check", "manifests"], ["convert", "sources/legacy", "out"]])
def test_a_folder_above_that_the_locale_cannot_spell_is_told_what_helps(own: Place, words: list[str]) -> None:
    """Its name is UTF-8: it need not be renamed."""
    place = replace(own, world=own.world.copy(own.folder.parent / "mödel"))
    done = place.run(*words, **NARROW)
    assert done.code == 1
    assert "Names of files are ascii here" in done.err
    assert "Set PYTHONUTF8=1" in done.err
    assert "UTF-8." not in done.err.replace("UTF-8 locale.", "")
    done = own.run(*words, **NARROW, SAESYNC_CACHE=str(own.folder.parent / "möcache"))
    assert "error: Cache has no place\n  Names of files are ascii here" in done.err or words[0] == "check"


def test_names_that_are_not_utf_8_are_refused_by_name(own: Place) -> None:
    folder = own.folder / "\udcff"
    for name in ("manifests", "sources", "data", "model"):
        folder.mkdir(exist_ok=True)
        (own.folder / name).rename(folder / name)
    for words in (["plan", "\udcff/manifests"], ["apply", "-y", "\udcff/manifests"], ["check", "\udcff/manifests/good.yaml"]):
        done = own.run(*words)
        assert done.code == 1
        assert "error: Path is refused\n" in done.err
        assert "\\xff/published, whose name is not UTF-8. Rename" in done.err


def test_a_cache_whose_name_is_not_utf_8_is_refused(applied: Place) -> None:
    done = applied.run("plan", SAESYNC_CACHE="/tmp/c\udcff")
    assert done.code == 1
    assert done.err.startswith("error: Cache has no place\n  /tmp/c\\xff is not UTF-8.")


def test_closed_descriptors_are_not_given_to_files(tmp_path: Path) -> None:
    """What a library writes to descriptor 2 must not end up in whatever file was opened next."""
    found = tmp_path / "found"
    program = (
        "import atexit, os, pathlib; from saesync.cli import main;"
        "found = lambda: ' '.join(os.readlink(f'/proc/self/fd/{n}') for n in range(3));"
        "look = lambda: pathlib.Path(os.environ['FOUND']).write_text(found());"
        "atexit.register(look); main(['formats'])"
    )
    subprocess.run(
        ["bash", "-c", f'{sys.executable} -c "{program}" <&- >&- 2>&-'], env={"FOUND": str(found), "PATH": "/usr/bin"}, check=True
    )
    assert found.read_text() == "/dev/null /dev/null /dev/null"

"""apply in a process of its own: what it says, on a terminal and elsewhere, plan files, and Ctrl-C."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cli_support import PROGRAM, SGR, Done, Place, interrupted, masked, shown_on_terminal
from planning import golden

from saesync.planfile import digests

GOOD = {"layer_0/topk", "layer_0/standard", "layer_1/batchtopk"}


# ------------------------------------------------------------------------------------------------- what it says


def test_lines_without_a_terminal(first_apply: tuple[Place, Done]) -> None:
    place, done = first_apply
    assert done.code == 1
    assert not SGR.search(done.said)
    assert "\r" not in done.said
    # Which release comes first is a matter of milliseconds: lines of a release are compared, not their order.
    body, _, summary = masked(done.err, place).partition("\n\n")
    lines = sorted(body.splitlines())
    golden("cli/apply.txt", "\n".join([*lines, "", summary]))
    assert place.published() == {*GOOD, "sweep/layer_0"}
    columns = {line.index("converted") for line in done.err.splitlines() if re.match("  ✓ layer_", line)}
    assert len(columns) == 1


def test_events_are_versioned_json_lines(own: Place) -> None:
    done = own.run("apply", "-y", "--format", "json")
    assert done.code == 1
    events = done.events()
    assert events[0] == {"type": "version", "saesync": events[0]["saesync"], "format": 1}
    assert events[1]["type"] == "plan"
    assert events[-1]["type"] == "summary"
    assert events[-1]["exit_code"] == 1
    assert {event["address"] for event in events if event["type"] == "sae_finished" and event["outcome"] == "published"} == {
        "tiny-sweep/sweep/layer_0",
        *(f"tiny-res/{name}" for name in GOOD),
    }
    assert done.err == ""


def misspell(place: Place) -> None:
    place.world.good.write_text(place.world.good.read_text().replace("tokens: 1024", "tokns: 1024"))


def lose_the_tokenizer(place: Place) -> None:
    (place.world.model / "tokenizer.json").unlink()


def lower_a_bound(place: Place) -> None:
    place.world.good.write_text(place.world.good.read_text().replace("l0: {max: 40}", "l0: {max: 30}"))


@pytest.mark.parametrize(
    ("edit", "words", "code", "summary", "line"),
    [
        (misspell, ("-y", "manifests/good.yaml"), 1, "Unknown key", "tokns:"),
        (lose_the_tokenizer, ("-y", "manifests/good.yaml"), 1, "Tokenizer is missing", "../model"),
        (lower_a_bound, ("p.json",), 4, "Plan is stale", None),
    ],
)
def test_what_ends_an_apply_before_its_run_is_its_last_event(
    own: Place, edit: Callable[[Place], None], words: tuple[str, ...], code: int, summary: str, line: str | None
) -> None:
    assert own.run("plan", "manifests/good.yaml", "--out", "p.json").code == 0
    edit(own)
    said = own.run("apply", *words)
    done = own.run("apply", *words, "--format", "json")
    assert (done.code, done.err) == (code, said.err.lstrip("\n")), "as in text, where an empty line follows the plan"
    first, last = done.events()
    assert first == {"type": "version", "saesync": first["saesync"], "format": 1}
    assert (last["type"], last["exit_code"]) == ("ended", code)
    found = last["diagnostics"][0]
    assert found["summary"] == summary
    assert found["detail"].split(".")[0] in " ".join(done.err.split())
    if line is not None:
        file, at, column, _ = found["origin"]
        assert line in (own.folder / file).read_text().splitlines()[at - 1][column - 1 :]
    assert not own.world.published.exists()


@pytest.mark.parametrize("words", [(), ("-y", "--only", "tiny-res/layr_0/*")])
def test_wrong_usage_that_ends_an_apply_is_an_event(own: Place, words: tuple[str, ...]) -> None:
    done = own.run("apply", "manifests/good.yaml", *words, "--format", "json")
    first, last = done.events()
    assert (done.code, first["type"], last["type"], last["exit_code"]) == (2, "version", "ended", 2)
    (found,) = last["diagnostics"]
    assert found["summary"] == "Wrong usage"
    assert found["detail"].split()[0] in done.err


def test_interrupted_while_planning_ends_at_once_and_is_an_event(own: Place) -> None:
    """The Hub takes the request and does not answer."""
    own.world.publish_to({"huggingface": "acme/tiny"})
    with socket.create_server(("127.0.0.1", 0)) as hub:
        hub.settimeout(60)
        address = f"http://127.0.0.1:{hub.getsockname()[1]}"
        silent = replace(own, environment={**own.environment, "HF_ENDPOINT": address, "HF_TOKEN": "hf_x"})
        process = silent.start("apply", "manifests/good.yaml", "-y", "--format", "json")
        connection, _ = hub.accept()
        began = time.monotonic()
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=60)
        connection.close()
    assert time.monotonic() - began < 8  # an answer is waited for longer than that
    last = json.loads(out.splitlines()[-1])
    assert (process.returncode, last["type"], last["exit_code"], err.strip()) == (130, "ended", 130, "Interrupted.")


@pytest.mark.skipif(sys.platform != "linux", reason="GNU OpenMP is what says something")
@pytest.mark.parametrize("debug", [True, False])
def test_debug_tells_what_a_failing_worker_said(own: Place, debug: bool) -> None:
    damaged = own.world.sources / "goodfire" / "layer_0.pth"
    damaged.write_bytes(damaged.read_bytes()[:-100])
    words = ["-y", "--format", "json", "--only", "tiny-res/layer_0/standard", *(["--debug"] if debug else [])]
    done = own.run("apply", *words, OMP_DISPLAY_ENV="TRUE")
    assert done.code == 1
    told = [event["text"] for event in done.events() if event["type"] == "note"]
    assert any("OPENMP DISPLAY ENVIRONMENT END" in text for text in told) == debug


def test_a_reader_that_goes_away_does_not_stop_an_apply(own: Place) -> None:
    line = f"{PROGRAM} apply -y --format json manifests/good.yaml | head -1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", line], cwd=own.folder, env=dict(own.environment), capture_output=True, text=True, check=False
    )
    version, code = done.stdout.splitlines()
    assert json.loads(version)["type"] == "version"
    assert code == "0", done.stderr
    assert done.stderr == ""
    assert own.published() == GOOD


def test_streams_that_are_closed_are_no_error(own: Place) -> None:
    environment, shell = dict(own.environment), ["bash", "-c"]
    for redirections, code in (
        ("<&-", 2),
        ("-y manifests/good.yaml 2>&- >&-", 0),
        ("-y manifests/good.yaml --format json >&-", 0),
    ):
        done = subprocess.run([*shell, f"{PROGRAM} apply {redirections}"], cwd=own.folder, env=environment, check=False)
        assert done.returncode == code
    assert own.published() == GOOD


def test_the_second_apply_does_nothing(applied: Place) -> None:
    """No step, no worker, no model: also for the SAE that fails, which is not measured again."""
    place = applied
    before = {path: path.stat().st_mtime_ns for path in place.world.published.rglob("*") if path.is_file()}
    done = place.run_without_torch("apply", "-y", "--format", "json")
    assert done.code == 1
    assert [event["type"] for event in done.events()] == ["version", "plan", "summary"]
    assert done.events()[1]["steps"] == done.events()[2]["commits"] == done.events()[2]["bytes"] == 0
    assert {path: path.stat().st_mtime_ns for path in place.world.published.rglob("*") if path.is_file()} == before
    assert place.run_without_torch("apply", "-y", "manifests/good.yaml").code == 0


@pytest.mark.slow
def test_the_named_device_must_be_here_before_any_work(own: Place) -> None:
    done = own.run("apply", "-y", "--device", "cuda:63", "manifests/good.yaml", SAESYNC_CACHE=str(own.folder / "other-cache"))
    assert done.code == 1
    assert "error: Device is not here" in done.err
    assert "cuda:63" in done.err
    assert not own.world.published.exists()


# ------------------------------------------------------------------------------------------------ on a terminal


def test_on_a_terminal_it_asks(own: Place) -> None:
    code, shown = shown_on_terminal(own, "apply", "manifests/good.yaml", answer="n")
    assert code == 1
    assert "Do this? [y/N]: n\nNothing was done.\n" in shown
    assert not own.world.published.exists()
    code, shown = shown_on_terminal(own, "apply", "manifests/good.yaml", answer="y")
    assert code == 0, shown
    assert "\x1b[32m✓\x1b[0m layer_0/topk" in shown
    assert "Done in" in shown
    assert "To do exactly this" not in SGR.sub("", shown), "the plan was just shown to be done"
    assert shown.count("\x1b[?25l") == shown.count("\x1b[?25h"), "the cursor is shown again"
    assert own.published() == GOOD
    code, shown = shown_on_terminal(own, "apply", "manifests/good.yaml")
    assert code == 0, "nothing to do, nothing to ask"
    assert "Nothing to do" in shown


@pytest.mark.parametrize(("words", "variables"), [(["--no-color"], {}), ([], {"NO_COLOR": "1"}), ([], {"TERM": "dumb"})])
def test_no_color_on_a_terminal(own: Place, words: list[str], variables: dict[str, str]) -> None:
    code, shown = shown_on_terminal(own, "plan", *words, **variables)
    assert code == 0
    assert not SGR.search(shown)
    code, shown = shown_on_terminal(own, "apply", "-y", "manifests/good.yaml", *words, **variables)
    assert code == 0
    assert not re.search(r"\x1b\[[\d;]*[1-9]\d*m", shown), "bars may move the cursor; nothing has a color"


def test_color_on_a_terminal(applied: Place) -> None:
    colored, plain = shown_on_terminal(applied, "plan")[1], applied.run("plan").out
    assert SGR.search(colored)
    assert SGR.sub("", colored) == plain
    assert "\x1b[1;31merror" in shown_on_terminal(applied, "plan", "nope")[1]


# --------------------------------------------------------------------------------------------------- plan files

Edit = Callable[[Place], None]


def write_foreign_files(place: Place) -> None:
    folder = place.world.published / "layer_0" / "topk"
    folder.mkdir(parents=True)
    (folder / "cfg.json").write_text("{}")


def change_a_source(place: Place) -> None:
    path = place.world.sources / "legacy" / "sae_weights.safetensors"
    path.write_bytes(path.read_bytes()[:-4] + b"\0\0\0\0")


def drop_a_manifest(place: Place) -> None:
    place.world.failing.unlink()


def add_a_manifest(place: Place) -> None:
    later = place.world.good.read_text().replace("tiny-res", "tiny-later").replace("../published", "../later")
    (place.folder / "manifests" / "later.yaml").write_text(later)


def ask_for_other_measurements(place: Place) -> None:
    place.world.good.write_text(place.world.good.read_text().replace("tokens: 1024", "tokens: 512"))


@pytest.mark.parametrize(
    ("edit", "named"),
    [
        (lower_a_bound, r"tiny-res +l0 max 40 → 30 \(3 SAEs\) +\(manifests/good.yaml:31:15\)"),
        (write_foreign_files, r"tiny-res/layer_0/topk +was absent, now holding files without a record"),
        (change_a_source, r"tiny-res/layer_0/topk +source\S* \S+ → \S+ +\(manifests/good.yaml:"),
        (drop_a_manifest, r"tiny-sweep +is not in the plan any more \(2 SAEs\)"),
        (add_a_manifest, r"tiny-later +not in the plan \(3 SAEs\)"),
        (ask_for_other_measurements, r"tiny-res +validate.tokens 1024 → 512 \(3 SAEs\)"),
    ],
)
def test_anything_else_changed_is_refused_by_name(own: Place, edit: Edit, named: str) -> None:
    assert own.run("plan", "--out", "p.json").code == 0
    edit(own)
    before = sorted(own.world.published.rglob("*"))
    done = own.run("apply", "p.json")
    assert done.code == 4, done.said
    assert done.err.startswith(
        "error: Plan is stale\n  p.json was made from other inputs than the ones here now. Nothing was done.\n"
    )
    assert re.search(named, done.err), done.err
    assert done.out == ""
    assert sorted(own.world.published.rglob("*")) == before


def test_a_stale_plan_reads_well(own: Place) -> None:
    own.run("plan", "manifests", "--only", "tiny-res/*", "--out", "my plan.json")
    lower_a_bound(own)
    write_foreign_files(own)
    golden("cli/stale.txt", masked(own.run("apply", "my plan.json").err, own))


def forged(change: Callable[[dict[str, Any]], Any]) -> Callable[[str], str]:
    def edit(text: str) -> str:
        plan = json.loads(text)
        change(plan)
        return json.dumps(plan)

    return edit


def signed(change: Callable[[dict[str, Any]], Any]) -> Callable[[str], str]:
    """As ``forged``, by somebody who knows how the digest is made."""

    def both(plan: dict[str, Any]) -> None:
        change(plan)
        plan["digest"] = digests(plan).whole

    return forged(both)


@pytest.mark.parametrize(
    ("edit", "code", "said"),
    [
        (lambda text: text[:300], 1, "It is not JSON"),
        (lambda text: "[]", 1, "It is not a plan"),
        (forged(lambda plan: plan.update(version=2)), 1, "It is of version 2, this saesync reads version 1"),
        (forged(lambda plan: plan.update(asked={})), 1, 'Its "asked" is not of the form'),
        (forged(lambda plan: plan["items"][0].update(basis=7)), 1, "Its item 1 is not of the form"),
        (forged(lambda plan: plan["items"][0].update(steps=[])), 1, "edited by hand"),
        (forged(lambda plan: plan["items"].clear()), 1, "edited by hand"),
        (signed(lambda plan: plan["items"][0].update(steps=[])), 4, "would now also fetch, convert, validate, publish"),
        (signed(lambda plan: plan["items"][0].update(id="../../x\n\x1b[31m")), 4, r"../../x\n\x1b[31m"),
        (signed(lambda plan: plan["items"].clear()), 4, "not in the plan"),
        (forged(lambda plan: plan["asked"].update(paths=["data"])), 1, "No manifest found"),
    ],
)
def test_a_plan_file_is_never_an_instruction(own: Place, edit: Callable[[str], str], code: int, said: str) -> None:
    own.run("plan", "--out", "p.json")
    path = own.folder / "p.json"
    path.write_text(edit(path.read_text()))
    done = own.run("apply", "p.json")
    assert done.code == code, done.said
    assert said in done.err
    assert "\x1b" not in done.err
    assert not own.world.published.exists()


@pytest.mark.parametrize("named", [("manifests/good.yaml",), ()])
def test_a_plan_file_from_another_folder_says_where_it_belongs(own: Place, tmp_path: Path, named: tuple[str, ...]) -> None:
    own.run("plan", *named, "--out", "p.json")
    (own.folder / "manifests").rename(tmp_path / "elsewhere")
    done = own.run("apply", "p.json")
    assert done.code == 4, done.said
    assert f"p.json is of {named[0] if named else 'manifests'}, which is not here. Nothing was done." in done.err
    assert "apply it there, or make a new plan" in done.err


# ------------------------------------------------------------------------------------------------------- Ctrl-C


@pytest.fixture
def long(cold: Place, tmp_path: Path) -> Place:
    """Eight releases of one SAE that are measured one after the other; nothing is in the cache."""
    place = Place(cold.world.copy(tmp_path / "world"), {**cold.environment, "SAESYNC_CACHE": str(tmp_path / "cache")})
    text = place.world.failing.read_text().replace("first: 0, last: 1", "first: 0, last: 0")
    for path in (place.world.good, place.world.failing):
        path.unlink()
    for number in range(8):
        own = text.replace("tiny-sweep", f"r{number}").replace("id: sweep/", f"id: r{number}/")
        own = own.replace("tokens: 1024", f"tokens: {4096 + 32 * number}")
        (place.folder / "manifests" / f"r{number}.yaml").write_text(own)
    return place


def recorded(place: Place) -> set[str]:
    found = set()
    for path in (place.world.published / "saesync").glob("*.json"):
        record = json.loads(path.read_text())
        assert not record.get("pending"), record
        found |= set(record["saes"])
    return found


def test_ctrl_c_finishes_what_runs_and_the_same_plan_file_goes_on(long: Place) -> None:
    assert long.run("plan", "--out", "p.json").code == 0
    done = interrupted(long.start("apply", "p.json"), lambda line: "✓" in line, times=1)
    assert done.code == 130, done.said
    assert re.search(r"^(Finishing .+, then stopping|Stopping)\. Press Ctrl-C again to stop now\.$", done.err, re.MULTILINE)
    told = re.search(
        r"^Stopped\. (\d) published, (\d) not started; nothing is half-done\.\n"
        r"Run the same command to continue: finished SAEs are skipped\.\n\Z",
        done.err,
        re.MULTILINE,
    )
    assert told is not None, done.err
    assert "not started  " not in done.err, "what was not started is counted, not listed"
    assert done.err.count("✓") == int(told[1]) == len(recorded(long))
    assert long.published() == recorded(long), "nothing is half-done"
    again = long.run("apply", "p.json")
    assert again.code == 0, again.said
    assert again.err.count("✓") == int(told[2])
    assert len(recorded(long)) == len(long.published()) == 8
    assert long.run("plan", "--check").code == 0


def test_a_second_ctrl_c_stops_now(long: Place) -> None:
    process = long.start("apply", "-y", "--format", "json")
    pressed_at: list[float] = []

    def when(line: str) -> bool:
        if '"type": "committed"' in line and not pressed_at:
            pressed_at.append(time.monotonic())
        return bool(pressed_at)

    done = interrupted(process, when, times=2)
    assert time.monotonic() - pressed_at[0] < 5
    assert done.code == 130, done.said
    assert done.events()[-1]["exit_code"] == 130
    assert recorded(long) <= long.published()
    left = subprocess.run(["ps", "-eo", "pgid="], capture_output=True, text=True, check=True).stdout.split()
    assert str(process.pid) not in left, "workers are gone too"


@pytest.mark.slow
def test_after_a_second_ctrl_c_the_next_run_does_the_rest(long: Place) -> None:
    interrupted(long.start("apply", "-y"), lambda line: "✓" in line, times=2)
    done = long.run("apply", "-y")
    assert done.code == 0, done.said
    assert len(recorded(long)) == len(long.published()) == 8


@pytest.mark.parametrize(
    "in_the_way", ["layer_0", "saesync", "README.md/", "saesync/tiny-res.json/", "layer_1/batchtopk/cfg.json/"]
)
def test_what_stands_in_the_way_is_named_before_any_work(own: Place, in_the_way: str) -> None:
    at = own.world.published / in_the_way
    at.mkdir(parents=True) if in_the_way.endswith("/") else (at.parent.mkdir(parents=True), at.touch())
    before = sorted(own.world.published.rglob("*"))
    done = own.run_without_torch("apply", "-y", "manifests/good.yaml")
    assert done.code == 1, done.said
    assert "error: Something is in the way\n" in done.err
    assert f"{at} is a f" in done.err
    assert "Move it away, and run again." in done.err
    assert sorted(own.world.published.rglob("*")) == before


@pytest.mark.parametrize("kind", ["pipe", "folder"])
def test_a_model_file_that_is_no_file_is_named_and_not_waited_for(own: Place, kind: str) -> None:
    config = own.world.model / "config.json"
    config.unlink()
    config.mkdir() if kind == "folder" else os.mkfifo(config)
    shutil.rmtree(own.world.published, ignore_errors=True)
    done = own.run("apply", "-y", "manifests/good.yaml", timeout=30)
    assert done.code == 1
    assert f"config.json in {own.world.model} is not a regular file." in done.err
    assert "manifests/good.yaml:" in done.err

"""Every command and its wrong uses: exit codes, and where what is said stands."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cli_support import PROGRAM, Place, masked
from planning import golden
from unprivileged import no_override

from saesync.formats import formats

COMMANDS = ("init", "inspect", "check", "plan", "apply", "show", "pin", "formats", "targets", "schema", "demo", "registry")


def test_help_fits_and_no_summary_is_cut(applied: Place) -> None:
    done = applied.run("--help", COLUMNS="80")
    assert done.code == 0
    assert not [line for line in done.out.splitlines()[1:] if len(line) > 80 or line.endswith("...")]
    for command in COMMANDS:
        assert f"\n  {command} " in done.out


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(applied: Place, command: str) -> None:
    done = applied.run(command, "--help")
    assert done.code == 0
    assert done.err == ""
    for option in ("--no-color", "--debug", "-h, --help"):
        assert option in done.out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["pln"], "No such command 'pln'. Did you mean 'plan'?"),
        (["plan", "--bogus"], "No such option '--bogus'"),
        (["plan", "--format", "yaml"], "'yaml' is not one of 'text', 'markdown', 'json'"),
        (["plan", "-v", "--format", "json"], "-v unfolds the text"),
        (["plan", "--out", "manifests"], "is a directory"),
        (["plan", "--out", "plan.txt"], "ends in .json"),
        (["plan", "plan.json"], "`saesync apply plan.json` carries out a plan"),
        (["check", "plan.json"], "`saesync apply plan.json` carries out a plan"),
        (["pin", "plan.json"], "`saesync apply plan.json` carries out a plan"),
        (["show", "a/b", "--manifests", "plan.json"], "`saesync apply plan.json` carries out a plan"),
        (["show"], "Missing argument 'ADDRESS'"),
        (["show", "tiny-res/layer_0/topk", "--format", "markdown"], "'markdown' is not one of"),
        (["apply"], "There is no terminal to ask on: give a plan file, or -y."),
        (["apply", "--format", "json"], "--format json cannot ask: give a plan file, or -y."),
        (["apply", "--format", "markdown"], "'markdown' is not one of"),
        (["apply", "plan.json", "manifests"], "A plan file stands alone"),
        (["apply", "manifests", "plan.json"], "A plan file stands alone"),
        (["apply", "plan.json", "--only", "*"], "A plan file stands alone"),
        (["apply", "plan.json", "--replace", "*"], "A plan file stands alone"),
        (["apply", "-y", "--device", "warp"], "'warp' is no device. Known: cpu, mps, cuda"),
        (["plan", "--only", "layer_0/topk"], "matches no SAE. It is compared with whole addresses, release/id."),
        (["plan", "--only", "layer_0/topk"], "Did you mean tiny-res/layer_0/topk?"),
        (["plan", "--only", "tiny-res/*", "--only", "zzz*"], "--only 'zzz*' matches no SAE"),
        (["plan", "--only", ""], "--only '' matches no SAE"),
        (["apply", "-y", "--only", "zzz"], "--only 'zzz' matches no SAE"),
        (["plan", "--adopt", "zzz"], "--adopt 'zzz' matches no SAE"),
        (["plan", "--replace", "zzz"], "--replace 'zzz' matches no SAE"),
        (["plan", "--prune", "*"], "--prune '*': no release of that name is here. Type its whole name."),
        (["plan", "--prune", "tiny-re"], "Did you mean tiny-res?"),
        (["demo"], "Missing argument 'FOLDER'"),
        (["demo", ""], "The name is empty"),
        (["apply", "-y", ""], "The name is empty: maybe a variable of the shell is not set."),
        (["check", ""], "The name is empty"),
        (["convert", "sources/legacy", ""], "The name is empty"),
        (["plan", "--root", "nowhere"], "Directory 'nowhere' does not exist."),
        (["init"], "Missing argument 'SOURCE'"),
    ],
)
def test_wrong_use_is_told_with_exit_code_2(applied: Place, words: list[str], said: str) -> None:
    done = applied.run(*words)
    assert done.code == 2, done.said
    assert said in done.err
    assert done.err.startswith("Usage: saesync")
    assert [event["type"] for event in done.events()] == (["version", "ended"] if {"apply", "json"} <= {*words} else [])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["plan", "nope", "nope2"], ["There is no nope here.", "There is no nope2 here."]),
        (["check", "nope"], ["There is no nope here."]),
        (["pin", "nope"], ["Manifest cannot be read", "nope: No such file"]),
        (["pin", "manifests"], ["not a regular file"]),
        (["apply", "nope.json"], ["Plan file cannot be read", "`saesync plan --out nope.json`"]),
        (["plan", "data"], ["No manifest found", "data holds no manifest"]),
        (["check", "data"], ["No manifest found"]),
        (["show", "tiny-res/layer_0/topl"], ["Unknown address", "Did you mean tiny-res/layer_0/topk?"]),
        (["show", "tiny-res"], ["That is a release. Its SAEs: tiny-res/layer_0/topk, tiny-res/layer_0/standard,"]),
        (["show", "?"], ["`saesync plan -v` lists the addresses"]),
        (["inspect", "nope"], ["Source not found"]),
        (["init", "https://huggingface.co/acme/saes"], ["Not a Hub reference", "Write `hf://acme/saes`."]),
        (["inspect", "manifests"], ["Nothing to inspect"]),
        (["inspect", "hf://"], ["Not a Hub reference", "hf://owner/repo[/path][@revision]"]),
        (["inspect", "hf://acme/saes@"], ["Not a Hub reference", "names no revision"]),
        (["inspect", "hf://nope/nope"], ["Hub cannot be reached", "HF_ENDPOINT"]),
        (["init", "model"], ["Nothing here can be converted"]),
        (["init", "sources", "--release", "../evil"], ["Not a release name"]),
        (["init", "sources", "-o", "manifests/good.yaml"], ["File exists", "not overwritten"]),
        (["plan", "--out", "manifests/good.yaml/x.json"], ["File cannot be written", "manifests/good.yaml/x.json"]),
    ],
)
def test_what_cannot_be_done_is_told_with_exit_code_1(applied: Place, words: list[str], said: list[str]) -> None:
    done = applied.run(*words)
    assert done.code == 1, done.said
    assert done.err.startswith("error: ")
    for part in said:
        assert part in done.err
    assert done.out == ""


def test_a_folder_without_manifests_says_what_to_do(applied: Place) -> None:
    elsewhere = Place(applied.world.__class__(applied.folder / "data"), applied.environment)
    done = elsewhere.run("plan")
    assert done.code == 1
    assert "There is no folder manifests here. Write a manifest with `saesync init`" in done.err


BAD = """\
apiVersion: saesync/v1
release: bad
model:
  path: ../model
saes:
  for_each:
    layer: {first: 0, last: 1}
  id: layer_{layer}
  hoook: blocks.{layer}.hook_resid_post
  source:
    path: ../sources/sweep/layer_{layer}
    format: goodfyre
validate:
  tokens: lots
publish:
  local: ../published
  license: mit
"""


def test_errors_of_a_manifest(own: Place) -> None:
    folder = own.folder / "bad"
    folder.mkdir()
    (folder / "bad.yaml").write_text(BAD)
    (folder / "good.yaml").write_text(own.world.good.read_text())
    checked, planned, applied = (own.run(*words, "bad") for words in (["check"], ["plan"], ["apply", "-y"]))
    golden("cli/check_errors.txt", checked.err.replace(", ".join(formats()), "FORMATS"))  # a new one changes nothing here
    assert checked.out == planned.out == ""
    assert checked.code == planned.code == applied.code == 1
    assert checked.err.endswith("\n6 errors in 2 manifests.\n")
    assert planned.err.endswith("\n6 errors in 2 manifests. Nothing was planned.\n")
    assert applied.err.endswith("\n6 errors in 2 manifests. Nothing was done.\n")
    beside = own.run("plan", "bad/good.yaml").err
    note = "Other manifests of the folder are read, too: what they ask for is no orphan."
    assert beside.endswith(f"\n6 errors in 2 manifests. Nothing was planned.\n{note}\n"), "why it was read at all is said"
    assert not own.world.published.exists()


@pytest.mark.parametrize("text", ["hello: 1\n", "a: [1,\n", "", "relase: x\n"])
def test_a_file_that_does_not_look_like_a_manifest_is_still_read_when_it_is_named(own: Place, text: str) -> None:
    """It would be passed over in a folder; named, it must not pass as "nothing to do"."""
    path = own.folder / "manifests" / "other.yaml"
    path.write_text(text)
    for command in ("plan", "check"):
        done = own.run(command, str(path.relative_to(own.folder)))
        assert done.code == 1, done.said
        assert "manifests/other.yaml" in done.err
        assert "in 1 manifest." in done.err


def test_one_file_under_several_names_is_one_manifest(applied: Place) -> None:
    done = applied.run("check", "manifests", "manifests/good.yaml", str(applied.world.good), "./manifests/../manifests")
    assert (done.code, done.out) == (0, "2 manifests, 5 SAEs: fine.\n")


def test_permissions_that_nothing_needs_are_named(applied: Place) -> None:
    done = applied.run("plan", "--adopt", "*topk", "--replace", "tiny-res/*", "--prune", "tiny-res")
    assert done.code == 0
    for flag in ("--adopt '*topk'", "--replace 'tiny-res/*'", "--prune 'tiny-res'"):
        assert f"Note: nothing here needs {flag}.\n" in done.err


def written_by_others(weights: Path) -> None:
    """The same tensors in a file that is not ours, byte for byte: its header says who wrote it."""
    data = weights.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.dumps({**json.loads(data[8 : 8 + size]), "__metadata__": {"by": "others"}}).encode()
    weights.write_bytes(len(header).to_bytes(8, "little") + header + data[8 + size :])


def test_replace_restores_what_was_changed(own: Place) -> None:
    assert own.run("apply", "-y", "manifests/good.yaml").code == 0
    weights = own.world.published / "layer_0/standard/sae_weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\0")
    held = own.run("plan", "--check", "manifests/good.yaml")
    assert held.code == 1
    assert "sae_weights.safetensors was changed outside saesync" in held.out
    assert "saesync show tiny-res/layer_0/standard --manifests manifests/good.yaml\n" in held.out
    assert own.run("apply", "-y", "manifests/good.yaml").code == 1, "held is not as asked"
    restored = own.run("apply", "-y", "--replace", "tiny-res/layer_0/standard", "manifests/good.yaml")
    assert restored.code == 0, restored.said
    assert "Note" not in restored.err


@pytest.mark.slow
def test_adopt_takes_over_what_others_wrote(own: Place) -> None:
    assert own.run("apply", "-y", "manifests/good.yaml").code == 0
    record = own.world.published / "saesync" / "tiny-res.json"
    record.unlink()
    written_by_others(own.world.published / "layer_0/topk/sae_weights.safetensors")
    foreign = own.run("plan", "--check", "--only", "tiny-res/layer_0/topk", "manifests/good.yaml")
    assert foreign.code == 1
    advised = "saesync plan manifests/good.yaml --only tiny-res/layer_0/topk --adopt tiny-res/layer_0/topk"
    assert f"To take over layer_0/topk:  {advised}\n" in foreign.out
    adopted = own.run("apply", "-y", "--adopt", "tiny-res/*", "manifests/good.yaml")
    assert adopted.code == 0, adopted.said
    assert json.loads(record.read_text())["saes"]["layer_0/topk"]["adopted"] is True
    assert own.run("plan", "--check", "manifests/good.yaml").code == 0


def test_a_target_of_another_package_is_one_like_ours(own: Place) -> None:
    """One class and one entry point: it is a key of `publish`, and is planned and published to."""
    package = own.folder.parent / "acme"
    (package / "acme-1.0.dist-info").mkdir(parents=True)
    (package / "acme_mirror.py").write_text(
        "from saesync.targets.local import Local\n\nclass Mirror(Local):\n    name, summary = 'mirror', 'a folder of theirs'\n"
    )
    (package / "acme-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: acme\nVersion: 1.0\n")
    (package / "acme-1.0.dist-info" / "entry_points.txt").write_text("[saesync.targets]\nmirror = acme_mirror:Mirror\n")
    own.world.good.write_text(own.world.good.read_text().replace("  local: ../published", "  mirror: ../mirrored"))
    alone = own.run("plan", "manifests/good.yaml")
    assert alone.code == 1
    assert '"mirror" is not a key of publish' in alone.err
    there = {"PYTHONPATH": str(package)}
    assert "mirror" in json.loads(own.run("schema", **there).out)["properties"]["publish"]["properties"]
    done = own.run("apply", "-y", "manifests/good.yaml", **there)
    assert done.code == 0, done.said
    assert (own.folder / "mirrored" / "layer_0" / "topk" / "cfg.json").exists()
    assert own.run("plan", "--check", "manifests/good.yaml", **there).code == 0


def test_prune_deletes_what_no_manifest_names(own_applied: Place) -> None:
    place = own_applied
    text = place.world.good.read_text()
    place.world.good.write_text("".join(line for line in text.splitlines(keepends=True) if "id: layer_0/standard" not in line))
    listed = place.run("plan", "manifests/good.yaml")
    assert "published, but in no manifest; --prune deletes" in listed.out
    assert place.run("apply", "-y", "manifests/good.yaml").code == 0
    assert "layer_0/standard" in place.published(), "only listed"
    wrong = place.run("apply", "-y", "--prune", "tiny-rse", "manifests/good.yaml")
    assert wrong.code == 2
    pruned = place.run("apply", "-y", "--prune", "tiny-res", "manifests/good.yaml")
    assert pruned.code == 0, pruned.said
    assert "1 deleted" in pruned.err
    assert "layer_0/standard" not in place.published()


def test_exit_codes_of_plan_check(own: Place) -> None:
    assert own.run("plan").code == 0
    assert own.run("plan", "--check").code == 3
    assert own.run("plan", "--check", "--format", "json").code == 3
    assert own.run("apply", "-y", "manifests/good.yaml").code == 0
    assert own.run("plan", "--check", "manifests/good.yaml").code == 0
    assert own.run("plan", "--check", "manifests/failing.yaml").code == 3
    assert own.run("apply", "-y", "manifests/failing.yaml").code == 1
    assert own.run("plan", "--check", "manifests/failing.yaml").code == 1
    assert own.run("plan", "--check", "--only", "tiny-sweep/sweep/layer_0").code == 0


def test_data_goes_to_stdout_and_the_rest_to_stderr(applied: Place, tmp_path: Path) -> None:
    plan = applied.run("plan", "--format", "json", "--adopt", "*topk")
    assert json.loads(plan.out)["type"] == "saesync-plan"
    assert plan.err == "Note: nothing here needs --adopt '*topk'.\n"
    assert json.loads(applied.run("show", "tiny-res/layer_0/topk", "--format", "json").out)["status"] == "current"
    assert applied.run("plan", "--format", "markdown").out.startswith("<!-- saesync:plan -->\n")
    for what, some in (("formats", {"saelens", "goodfire"}), ("targets", {"local", "huggingface"})):
        known = json.loads(applied.run(what, "--format", "json").out)
        assert (known["type"], known["version"]) == (f"saesync-{what}", 1)
        assert {entry["name"] for entry in known[what]} >= some
    assert json.loads(applied.run("schema").out)["properties"]["release"]
    inspected = json.loads(applied.run("inspect", "sources", "--format", "json").out)
    assert (inspected["type"], inspected["version"]) == ("saesync-inspection", 1)
    assert len(inspected["saes"]) == 5
    saved = applied.run("plan", "--out", str(tmp_path / "p.json"))
    assert saved.err == f"Wrote {tmp_path / 'p.json'}.\n"


def test_a_reader_that_goes_away_is_no_error(applied: Place) -> None:
    for command, code in (("schema", 0), ("plan --check -v", 1), ("plan --format json", 0)):
        line = f"{PROGRAM} {command} | true; echo ${{PIPESTATUS[0]}}"
        done = subprocess.run(
            ["bash", "-c", line], cwd=applied.folder, env=dict(applied.environment), capture_output=True, text=True, check=False
        )
        assert done.stderr == ""
        assert done.stdout == f"{code}\n"


def test_output_that_cannot_be_written_is_an_error(applied: Place) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    line = f"{PROGRAM} schema > /dev/full"
    done = subprocess.run(["bash", "-c", line], env=dict(applied.environment), capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: Output cannot be written\n")


@pytest.mark.parametrize(
    "words",
    [["plan", "~/x"], ["plan", "--out", "$HOME/p.json"], ["convert", "sources/legacy", "~/new"], ["inspect", "$HOME/x"],
     ["init", "sources/legacy", "-o", "${HOME}/a.yaml"], ["check", "--root", "~"]],
)  # fmt: skip
def test_what_the_shell_did_not_expand_is_no_folder_of_that_name(own: Place, words: list[str]) -> None:
    before = set(own.folder.iterdir())
    done = own.run(*words)
    assert done.code != 0
    assert "only outside of quotes" in done.err
    assert set(own.folder.iterdir()) == before


@pytest.mark.parametrize("command", [["plan"], ["apply", "-y"]])
def test_a_cache_that_cannot_be_written_is_called_by_its_name(applied: Place, command: list[str]) -> None:
    """And not taken for something that the target lacks."""
    done = applied.run(*command, SAESYNC_CACHE="/dev/null/cache")
    assert done.code == 1
    assert done.out == ""
    assert done.err.startswith("error: Cache cannot be written\n")
    assert "Set SAESYNC_CACHE" in done.err


def test_debug_shows_where_it_came_from(applied: Place) -> None:
    done = applied.run("plan", "nope", "--debug")
    assert "Traceback" in done.err
    assert "\nerror: No such manifest\n  There is no nope here. Check the name." in done.err


def test_inspect_and_init(own: Place) -> None:
    several = own.run("inspect", "sources")
    assert several.code == 0
    assert '\nsaes:\n  for_each:\n    - {id: goodfire, path: ../sources/goodfire, format: goodfire, hook: "?"}\n' in several.out
    one = own.run("inspect", "sources/goodfire/layer_0.pth")
    assert "\n  goodfire: architecture standard," in one.out
    assert "\n  needs hook: the files do not say it\n  needs model: the files do not say it\n" in one.out
    ready = "source:\n  path: ../sources/goodfire/layer_0.pth\n  format: goodfire\n"
    assert one.out.endswith(f"\nFor a manifest in manifests/, from where its paths start:\n\n{ready}")
    (own.folder / "broken.safetensors").write_bytes(b"\x07" * 3000)
    broken = own.run("inspect", "broken.safetensors")
    assert broken.code == 1
    assert "not a whole safetensors file" in broken.out
    made = own.run("init", "sources/sweep", "--release", "mine")
    assert (made.code, made.out) == (0, "Wrote manifests/mine.yaml.\n")
    assert "then run `saesync plan manifests/mine.yaml`" in made.err
    path = own.folder / "manifests" / "mine.yaml"
    path.write_text(path.read_text().replace("name: tiny ", "path: ../model").replace("../published", "../mine"))
    assert own.run("check").out == "3 manifests, 7 SAEs: fine.\n"
    unknown = own.run("init", "sources", "-o", "-")
    (own.folder / "manifests" / "unknown.yaml").write_text(unknown.out)
    told = own.run("check", "manifests/unknown.yaml")
    assert told.code == 1
    assert '"?"' in told.err, "a hook that the files do not say has to be filled in"


def test_init_says_what_it_leaves_out(own: Place) -> None:
    (own.folder / "sources" / "sweep" / "layer_9").mkdir()
    (own.folder / "sources" / "sweep" / "layer_9" / "broken.safetensors").write_bytes(b"\x07" * 3000)
    for out in ("-", "manifests/partly.yaml"):
        done = own.run("init", "sources/sweep", "-o", out)
        assert done.code == 0
        assert "Left out: layer_9: broken.safetensors is not a whole safetensors file" in done.err


def test_golden_plan(own: Place) -> None:
    golden("cli/plan.txt", masked(own.run("plan").out, own))


def test_golden_show(applied: Place) -> None:
    golden("cli/show.txt", masked(applied.run("show", "tiny-res/layer_0/topk").out, applied))


def test_what_a_failed_proof_said_is_kept_and_shown(own: Place) -> None:
    """Decoder rows that nearly cancel survive in float32 and not in bfloat16."""
    file = own.world.sources / "goodfire" / "layer_0.pth"
    state = torch.load(file, weights_only=True)
    state["encoder_linear.weight"][1::2] = state["encoder_linear.weight"][::2]
    state["encoder_linear.bias"][1::2] = state["encoder_linear.bias"][::2]
    state["decoder_linear.weight"] *= 3000
    noise = 0.03 * torch.randn(32, 32, generator=torch.Generator().manual_seed(0))
    state["decoder_linear.weight"][:, 1::2] = noise - state["decoder_linear.weight"][:, ::2]
    torch.save(state, file)
    whole = own.world.good.read_text().replace("\nvalidate:", "  dtype: bfloat16\n\nvalidate:")
    own.world.good.write_text(whole)
    address = "tiny-res/layer_0/standard"
    done = own.run("apply", "-y", "manifests/good.yaml", "--only", address)
    assert done.code == 1
    assert "Choose a wider dtype" in done.err
    assert re.search(r"Choose a wider dtype \(manifests/good.yaml:\d+:\d+\)", done.err)
    assert not own.published()
    shown = own.run("show", address)
    assert re.search(r"^failed proof\n  verdict  failing\n +In bfloat16 the SAE differs .*cast_fvu", shown.out, re.MULTILINE), (
        shown.out
    )
    view = json.loads(own.run("show", address, "--format", "json").out)
    assert view["failed_proof"]["summary"] == "Cast loses too much"
    own.world.good.write_text(whole.replace("dtype: bfloat16", "dtype: float32"))
    assert "failed proof" not in own.run("show", address).out, "of another conversion"


def test_what_no_manifest_names_is_shown_too(own_applied: Place) -> None:
    """An SAE of a release that has one, and one of a release that has none: both stand in the plan."""
    place = own_applied
    text = place.world.good.read_text()
    place.world.good.write_text("".join(line for line in text.splitlines(keepends=True) if "id: layer_0/standard" not in line))
    place.world.failing.unlink()
    listed = place.run("plan", "-v").out
    for address in ("tiny-res/layer_0/standard", "tiny-sweep/sweep/layer_0"):
        assert address.split("/", 1)[1] in listed
        shown = place.run("show", address)
        assert shown.code == 0, shown.said
        assert re.search(r"nothing +no manifest asks for it", shown.out)
        assert re.search(r"cfg.json .* as recorded", shown.out)
        assert "asked for at" not in shown.out
        assert "than the manifest asks" not in shown.out
        assert json.loads(place.run("show", address, "--format", "json").out)["desired"] is None


def test_commands_that_are_advised_work_where_they_are_advised(applied: Place) -> None:
    """Run from another folder, with manifests named on the command line: so do the commands that are printed."""
    above = Place(applied.world.__class__(applied.folder.parent), applied.environment)
    manifests = f"{applied.folder.name}/manifests"
    done = above.run("apply", "-y", manifests)
    assert done.code == 1
    (advised,) = [line.strip() for line in done.err.splitlines() if "saesync show" in line]
    command = advised.removeprefix("saesync ").removesuffix(" for all numbers").split()
    shown = above.run(*command)
    assert shown.code == 0, shown.said
    assert "failing" in shown.out
    assert f"After mending what failed:  saesync apply {manifests} -y" in done.err
    done = above.run("apply", "-y", manifests, "--steps", "publish", "--device", "cpu")
    assert f"After mending what failed:  saesync apply {manifests} --steps publish --device cpu -y" in done.err


def test_nothing_is_planned_twice_for_one_place(own: Place) -> None:
    done = own.run("plan")
    assert done.out.count("does not exist yet") == 1
    assert "1 place to create" in done.out


def test_verbose_lists_everything(applied: Place) -> None:
    done = applied.run("plan", "-v")
    for sae in ("sweep/layer_0", "layer_0/topk", "layer_0/standard", "layer_1/batchtopk"):
        assert f"  = {sae}" in done.out
    assert "  x sweep/layer_1" in done.out


@pytest.mark.parametrize(
    "words", [["plan"], ["apply", "-y"], ["convert", "sources/legacy", "converted"], ["doctor", "sae", "tiny-res/layer_0/topk"]]
)
def test_a_home_that_may_not_be_written_to_is_called_the_caches_place(own: Place, words: list[str]) -> None:
    home = own.folder / "home"
    home.mkdir(mode=0o500)
    environment = {name: value for name, value in own.environment.items() if not name.startswith(("SAESYNC_", "XDG_"))}
    done = subprocess.run(
        [PROGRAM, *words],
        cwd=own.folder,
        env={**environment, "HOME": str(home)},
        preexec_fn=no_override,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: Cache cannot be written\n  No permission to write to {home}")
    assert "Set SAESYNC_CACHE" in done.stderr
    assert not (own.folder / "converted").exists()


def test_a_package_that_is_not_installed_is_named(own: Place) -> None:
    """An installation may be for planning alone (requirements-plan.txt), or in parts."""
    code = "import sys; sys.modules['yaml'] = None; from saesync.cli import main; main(['check'])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=own.folder, env=dict(own.environment), capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: Package is missing\n  This needs the Python module yaml, which is not installed here.")


@pytest.mark.parametrize(
    "words", ["plan {}/manifests/good.yaml", "check {}/manifests", "inspect {}/sources/goodfire", "demo demo"]
)
def test_a_working_folder_that_was_removed_is_named(applied: Place, tmp_path: Path, words: str) -> None:
    line = f"mkdir gone && cd gone && rmdir ../gone && {PROGRAM} {words.format(applied.folder)}"
    done = subprocess.run(
        ["bash", "-c", line], cwd=tmp_path, env=dict(applied.environment), capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: Working folder is gone\n")


@pytest.mark.parametrize(
    ("variable", "value", "summary"),
    [
        pytest.param(
            *("ALL_PROXY", "socks5://me:hidden@127.0.0.1:1", "Package is missing"),
            marks=pytest.mark.skipif(importlib.util.find_spec("socksio") is not None, reason="the package is here"),
        ),
        ("HTTPS_PROXY", "http://me:hidden@host:port", "Proxy is not usable"),
        ("ALL_PROXY", "gopher://me:hidden@127.0.0.1:1", "Proxy is not usable"),
        ("SSL_CERT_FILE", "/hidden/nowhere.pem", "Certificates cannot be read"),
        ("SAESYNC_RETRY_SECONDS", "hidden", "Environment variable is not usable"),
        ("HF_HUB_DOWNLOAD_TIMEOUT", "hidden", "Environment variable is not usable"),
    ],
)
def test_variables_that_the_hubs_client_cannot_use_are_named(applied: Place, variable: str, value: str, summary: str) -> None:
    done = applied.run("inspect", "hf://owner/repo", **{variable: value})
    assert done.code == 1
    assert done.err.startswith(f"error: {summary}\n")
    assert variable in done.err
    assert "hidden" not in done.err


@pytest.mark.parametrize("command", [["check"], ["plan"], ["apply", "-y"], ["pin"], ["show", "a/b", "--manifests"]])
def test_a_manifest_that_may_not_be_read_is_told_alike_everywhere(own: Place, command: list[str]) -> None:
    own.world.good.chmod(0)
    done = subprocess.run(
        [PROGRAM, *command, "manifests/good.yaml"],
        cwd=own.folder,
        env=dict(own.environment),
        preexec_fn=no_override,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: Manifest cannot be read\n  manifests/good.yaml: Permission denied.")

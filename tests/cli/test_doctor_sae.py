"""`saesync doctor`: an SAE's declared hook and flags against real activations, as users ask for it."""

from __future__ import annotations

import json

from cli_support import Place

ADDRESS = "tiny-res/layer_0/standard"


def test_a_right_manifest_and_a_wrong_one(own: Place) -> None:
    done = own.run("doctor", ADDRESS, "--tokens", "1024")
    assert done.code == 0, done.said
    assert "What is declared is the best of them." in done.out
    assert "<- declared" in done.out.splitlines()[2]
    manifest = own.world.good
    manifest.write_text(manifest.read_text(encoding="utf-8").replace("layer: 0, format: goodfire", "layer: 1, format: goodfire"))
    done = own.run("doctor", "sae", ADDRESS, "--tokens", "1024", "--format", "json")
    assert done.code == 1, done.said
    said = json.loads(done.out)
    assert (said["type"], said["subject"]) == ("saesync-doctor-sae", ADDRESS)
    assert [finding["kind"] for finding in said["findings"]] == ["Wrong hook"]
    assert said["trials"][0]["hook"] == "blocks.0.hook_resid_post"
    assert sum(trial["declared"] for trial in said["trials"]) == 1


def test_a_path_says_what_it_lacks_and_takes_it_from_the_command_line(own: Place) -> None:
    source = "sources/goodfire/layer_0.pth"
    done = own.run("doctor", source)
    assert done.code == 1
    assert all(word in done.err for word in ("--hook", "--model", "--dataset"))
    words = ("--hook", "blocks.0.hook_resid_post", "--model", "model", "--dataset", "data/held_out.jsonl", "--context", "32")
    done = own.run("doctor", source, *words, "--tokens", "1024", "--no-prepend-bos")
    assert done.code == 1, done.said
    assert "x Missing BOS." in done.out


def test_the_reading_that_is_found_is_among_those_shown(own: Place) -> None:
    """Only k is wrong. Whatever doctor makes of it, its findings and its table have the same number."""
    source = own.folder / "sources" / "sweep" / "layer_0"
    cfg = json.loads((source / "cfg.json").read_text(encoding="utf-8"))
    (source / "cfg.json").write_text(json.dumps({**cfg, "k": 1}), encoding="utf-8")
    words = ("--model", "model", "--dataset", "data/held_out.jsonl", "--context", "32", "--tokens", "1024")
    done = own.run("doctor", str(source), *words)
    assert done.code == 1, done.said
    (row,) = (line for line in done.out.splitlines() if line.endswith("<- meant below"))
    found = [line for line in done.out.splitlines() if line.startswith("x ")]
    assert found, done.out
    assert all(f" {row.split()[0]} of the variance" in line for line in found), done.out


def test_an_unknown_address_is_named(own: Place) -> None:
    done = own.run("doctor", "tiny-res/layer_7")
    assert (done.code, done.out) == (1, "")
    assert "tiny-res/layer_0/topk" in done.err


def test_a_mistyped_path_is_named_where_there_are_no_manifests(own: Place) -> None:
    own.world.good.parent.rename(own.folder / "elsewhere")
    done = own.run("doctor", "sources/goodfire/layer_7.pth")
    assert done.code == 1
    assert done.err.startswith("error: No such SAE\n  'sources/goodfire/layer_7.pth' is no file or folder")
    assert "--manifest FILE" in done.err

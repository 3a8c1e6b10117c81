"""Plans as people read them: golden texts, folding, inertness, limits."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

import pytest
from planning import BOUND, HUB, SPEC, World, evidence_of, files_of, golden, inputs_of, published, release, sae, wanted_of

from saesync.digest import digest_bytes
from saesync.errors import Origin
from saesync.inert import width
from saesync.model import CFG_FILE, SAE_FILES, WEIGHTS_FILE, Observed, PublishSpec, RegisterSpec
from saesync.planfile import plan_json
from saesync.reason import Reason, ReasonCode
from saesync.render import markdown, plan_text
from saesync.render.markdown import MAX_CHARACTERS

GEMMA, LLAMA, MLP = "gemma-2-2b-res-acme", "llama-3.1-8b-instruct-res-goodfire", "gemma-2-2b-mlp-acme"
SGR = re.compile(r"\x1b\[[0-9;]*m")


def view(world: World, **choices: tuple[str, ...]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(json.dumps(plan_json(world.plan(**choices))))
    return found


def big_world() -> World:
    """A bit of everything: new layers, another measurement, a file changed by hand, a failure, an orphan, a held section."""
    llama = release(LLAMA, ["layer_19"], location="acme/llama")
    mlp = release(MLP, [f"layer_{n}/seed_{s}" for n in (6, 12) for s in (0, 1)] + ["layer_18/seed_0"], location="acme/mlp")
    world = published(llama, mlp)
    ids = [f"layer_{n}" for n in range(26) if n != 13]
    gemma = release(GEMMA, ids, location="acme/gemma-2-2b-res-saes", register=RegisterSpec("decoderesearch/SAELens"))
    tokens = replace(llama.saes[0], validate=replace(SPEC, tokens=409600))
    world.releases = [gemma, replace(llama, saes=(tokens,)), replace(mlp, saes=mlp.saes[:-1])]
    new = World([gemma])
    world.wanted |= {**new.wanted, tokens.address: wanted_of(tokens)}
    world.observed |= new.observed
    files = {**world.at("acme/mlp").files, f"layer_12/seed_1/{WEIGHTS_FILE}": digest_bytes(b"changed")}
    world.put("acme/mlp", files=files)
    inputs = inputs_of(gemma.saes[2])
    world.wanted[gemma.saes[2].address] = wanted_of(gemma.saes[2], evidence=evidence_of(inputs, files_of(inputs), 0.614))
    return world


def test_text() -> None:
    golden("plan.txt", plan_text(view(big_world()), arguments=("manifests", "--only", "*")) + "\n")


def test_text_unfolded_with_a_plan_file() -> None:
    golden("plan_verbose.txt", plan_text(view(big_world()), plan_file="my plan.json", verbose=True) + "\n")


def test_markdown() -> None:
    golden("plan.md", markdown(view(big_world())))


def test_everything_up_to_date() -> None:
    world = published(release("res", ["layer_0", "layer_1"]), release("mlp", ["layer_2"]))
    text = plan_text(view(world))
    assert text.splitlines()[0] == "Read 2 manifests, 3 SAEs. Looked at 1 Hub repository."
    assert "Nothing to do: 3 SAEs up to date." in text
    assert "layer_0" not in text
    assert "saesync apply" not in text
    assert "layer" not in markdown(view(world))


def test_places_of_evidence_are_counted_too() -> None:
    """They are looked at as the others are; one that several releases name is one."""
    records = PublishSpec("local", "/lab/records")
    world = World([release(), release("mlp", ["layer_2"], records=records), release("att", ["layer_3"], records=records)])
    world.observed[("local", "/lab/records")] = Observed("local", "/lab/records", exists=True)
    assert plan_text(view(world)).splitlines()[0] == "Read 3 manifests, 3 SAEs. Looked at 1 Hub repository and 1 folder."


def test_no_manifest_at_all() -> None:
    assert "Nothing to do" in plan_text(view(World([])))
    assert "nothing to do" in markdown(view(World([])))


def test_other_rows() -> None:
    """Adopt, restore, relabel, move, delete, card, unknown and visibility, each once."""
    world = published(
        release("res", ["layer_0", "layer_1", "layer_2", "layer_3"]), release("old", ["layer_9"], location="acme/old")
    )
    world.releases = [
        replace(world.releases[0], saes=(*world.releases[0].saes[:3], sae("res", "layer_7", hook="blocks.3.hook_resid_post"))),
        replace(world.releases[1], retire=True),
        release("secret", ["layer_0"], location="acme/secret", publish=PublishSpec("huggingface", "acme/secret", private=True)),
        release("hidden", ["layer_0", "layer_1", "layer_2"], location="acme/hidden"),
        release("theirs", ["layer_0"], location="acme/theirs"),
    ]
    fresh = World(world.releases)
    world.observed |= {place: seen for place, seen in fresh.observed.items() if place not in world.observed}
    world.wanted |= {address: one for address, one in fresh.wanted.items() if address not in world.wanted}
    old = world.wanted["res/layer_3"].inputs
    world.wanted["res/layer_7"] = replace(world.wanted["res/layer_7"], inputs=old)
    world.wanted["res/layer_1"] = wanted_of(
        sae("res", "layer_1"), inputs=inputs_of(sae("res", "layer_1"), neuronpedia_id="1-res")
    )
    world.put(files={**world.at().files, f"layer_2/{WEIGHTS_FILE}": digest_bytes(b"changed")})
    world.put("acme/secret", exists=True, visibility="public")
    world.put("acme/hidden", unknown=Reason(ReasonCode.NOT_VISIBLE, {"location": "acme/hidden", "detail": "needs a token"}))
    world.put(
        "acme/theirs", exists=True, visibility="public", files={f"layer_0/{name}": digest_bytes(b"theirs") for name in SAE_FILES}
    )
    data = view(world, adopt=("theirs/*",), replace=("res/*",))
    golden("plan_rows.txt", plan_text(data) + "\n")
    golden("plan_rows.md", markdown(data))


def test_foreign_files_bring_the_command_that_takes_them_over() -> None:
    world = World([release()])
    theirs = {f"layer_0/{name}": digest_bytes(b"theirs") for name in SAE_FILES}
    world.put(exists=True, visibility="public", files=theirs)
    text = plan_text(view(world), arguments=("my manifests",))
    assert "To take over layer_0:  saesync plan 'my manifests' --adopt res/layer_0" in text
    assert "saesync apply" not in text
    world.put(exists=True, visibility="public", files={f"layer_0/{WEIGHTS_FILE}": theirs[f"layer_0/{WEIGHTS_FILE}"]})
    text = plan_text(view(world), arguments=("my manifests",))
    assert "without cfg.json: nothing to adopt until it is put there; --replace overwrites" in text
    assert "--adopt res/layer_0" not in text


def test_foreign_files_that_are_overwritten_are_named_and_are_no_addition() -> None:
    world = World([release()])
    world.put(exists=True, visibility="public", files={f"layer_0/{name}": digest_bytes(b"theirs") for name in ("a.md", CFG_FILE)})
    data = view(world, replace=("res/*",))
    (line,) = (line for line in plan_text(data).splitlines() if "layer_0" in line)
    assert line.split()[:2] == ["~", "layer_0"]
    assert line.endswith("--replace overwrites files that saesync did not publish: cfg.json; 1 other stays")
    assert "1 to overwrite" in plan_text(data)


def test_what_is_not_measured_or_not_pinned_is_said() -> None:
    source = replace(sae().source or sae().source, revision=None)  # type: ignore[type-var]
    world = World([release(saes=(sae(validate=None, source=source),))])
    text = plan_text(view(world))
    assert "Not measured (no validate section): res." in text
    assert "Source not pinned to a commit: res." in text
    assert "Not measured" in markdown(view(world))


def test_color_changes_nothing_but_color() -> None:
    data = view(big_world())
    colored = plan_text(data, color=True)
    assert SGR.search(colored)
    assert SGR.sub("", colored) == plan_text(data)


def test_columns_line_up_by_display_width() -> None:
    world = World([release(ids=["層_0", "layer_1"])])
    world.wanted["res/layer_1"] = wanted_of(sae(sae_id="layer_1"), blocked=Reason(ReasonCode.SOURCE_NOT_HERE, {"path": "x"}))
    rows = [line for line in plan_text(view(world)).splitlines() if "publish" in line or "held" in line][:2]
    first, second = (width(row[: row.index(word)]) for row, word in zip(rows, ("convert", "held"), strict=True))
    assert first == second


EVIL = "a|b`c<img src=x>@everyone --><!-- saesync:plan -->![i](http://evil)\u202e\x1b[31m\n# h"


def evil_world() -> World:
    one = release(EVIL, [EVIL, "layer_1", "layer_2", "layer_3"], location=EVIL)
    world = World([replace(one, later=((EVIL, Origin("m", 1, 1)),))])
    world.wanted[one.saes[1].address] = wanted_of(
        one.saes[1], blocked=Reason(ReasonCode.SOURCE_MISSING, {"path": EVIL, "detail": EVIL})
    )
    return world


def test_markdown_is_inert() -> None:
    text = markdown(view(evil_world()))
    assert text.count("<!--") == 1
    assert text.startswith("<!-- saesync:plan -->\n")
    for bad in ("<img", "\u202e", "\x1b", "](http", "![", "\n# h"):
        assert bad not in text
    outside = re.sub(r"`[^`\n]*`", "", re.sub(r"<code>.*?</code>", "", text))
    assert "@everyone" not in outside
    assert "http" not in outside
    rows = [line for line in text.splitlines() if line.startswith("| ") and "SAE" not in line]
    assert {line.count("|") for line in rows} == {5, 4}  # the table, and the details


def test_text_is_inert() -> None:
    text = plan_text(view(evil_world()), arguments=(EVIL,), verbose=True)
    assert all(line.isprintable() for line in text.split("\n"))


@pytest.mark.parametrize("saes", [500, 5000])
def test_markdown_fits_and_says_what_is_left_out(saes: int) -> None:
    ids = [f"layer_{n}/width_16k/average_l0_{n}" for n in range(saes)]
    whole = markdown(view(World([release(ids=ids)])))
    assert len(whole) <= MAX_CHARACTERS
    shown = whole.count("`blocks.")
    assert f"… and {saes - shown:,} more." in whole
    assert f"({saes:,})" in whole
    world = World([release(ids=ids)])
    for at, asked in enumerate(world.releases[0].saes):  # nothing folds: every line has a reason of its own
        reason = Reason(ReasonCode.SOURCE_MISSING, {"path": f"{at}.pt", "detail": "x" * 100})
        world.wanted[asked.address] = replace(world.wanted[asked.address], inputs=None, blocked=reason)
    cut = markdown(view(world))
    assert len(cut) <= MAX_CHARACTERS
    left = re.search(r"… and ([\d,]+) more lines \(([\d,]+) entries\)", cut)
    assert left is not None
    assert int(left[1].replace(",", "")) == saes - cut.count("| **!** |")
    assert "Digest" in cut


def test_failing_near_its_bound_shows_that_it_is_below() -> None:
    world = published()
    world.ev = {"res/layer_0": 0.69996}
    world.put(files={}, records={})
    world.apply()
    inputs = inputs_of(sae())
    world.wanted["res/layer_0"] = wanted_of(sae(), evidence=evidence_of(inputs, files_of(inputs), 0.69996))
    assert "explained_variance 0.69996 ± 0.003 < min 0.7 (within 2 standard errors)" in plan_text(view(world))
    assert BOUND.bound == 0.7
    assert HUB in plan_text(view(World([release()])))

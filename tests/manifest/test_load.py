"""From files to releases: what a manifest that is fine becomes, expansion, and where its paths may lead."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from huggingface_hub.utils import HFValidationError, validate_repo_id
from hypothesis import given, settings
from hypothesis import strategies as st
from manifest_support import COMMIT, GOOD, OTHER, changed, complaints, release, said, write

from saesync.carets import show
from saesync.errors import ManifestError, Origin
from saesync.manifest import find, load
from saesync.model import DatasetSpec, ModelSpec, PublishSpec, SourceSpec
from saesync.schema import build
from saesync.schema.fast import compile_schema

FOR_EACH = "    layer: {first: 0, last: 25}\n"


def test_the_whole_manifest(here: Path) -> None:
    found = release(here, GOOD)
    assert (found.name, found.manifest, found.retire, found.records, found.later) == ("gemma-res-acme", "m.yaml", False, None, ())
    assert found.publish == PublishSpec("huggingface", "acme/gemma-saes", "mit", False)
    assert found.origin == Origin("m.yaml", 2, 10, 14)
    assert [sae.id for sae in found.saes] == [f"layer_{n}/width_16k" for n in range(26)]
    sae = found.saes[7]
    assert sae.address == "gemma-res-acme/layer_7/width_16k"
    assert sae.hook == "blocks.7.hook_resid_post"
    assert sae.model == ModelSpec("google/gemma-2-2b", None, COMMIT)
    assert sae.source == SourceSpec("acme/dictionaries", OTHER, "resid_post_layer_07/ae.pt", "goodfire")
    assert sae.dtype == "float32"
    assert sae.validate is not None
    assert sae.validate.dataset == DatasetSpec("monology/pile", None, COMMIT)
    assert (sae.validate.tokens, sae.validate.context, sae.validate.prepend_bos) == (204800, 1024, True)
    assert [(r.metric, r.kind, r.bound) for r in sae.validate.require] == [
        ("explained_variance", "min", 0.7),
        ("l0", "max", 150.0),
    ]


def test_every_value_keeps_its_place(here: Path) -> None:
    sae = release(here, GOOD).saes[0]
    places = {name: (origin.line, origin.column) for name, origin in sae.origins.items()}
    lines = GOOD.splitlines()
    for name, text in {
        "hook": "blocks.",
        "id": "layer_{",
        "source.revision": OTHER,
        "source.format": "goodfire",
        "source": "source:",
        "validate": "validate:",
        "validate.tokens": "204800",
        "validate.require.explained_variance.min": "0.70",
        "publish.license": "mit",
        "model.name": "google",
        "release": "gemma-res",
    }.items():
        line, column = places[name]
        assert lines[line - 1][column - 1 :].startswith(text), name
    assert sae.validate is not None
    assert sae.validate.require[0].origin == sae.origins["validate.require.explained_variance.min"]
    assert sae.origin == sae.origins["id"]


def test_sections_of_later_versions_are_kept_with_their_place(here: Path) -> None:
    more = f"""\
register: {{saelens: decoderesearch/SAELens, partial: true}}
dashboards:
  dataset: {{repo: m/p, revision: {COMMIT}}}
neuronpedia:
  model: gemma-2-2b
  set: res-acme
  postgres: {{dsn_from: NEURONPEDIA_DSN}}
  export: s3://bucket/prefix
  inference: false
records: {{local: ./records}}
retire: true
"""
    found = release(here, GOOD + more)
    assert found.register is not None
    assert (found.register.registry, found.register.partial) == ("decoderesearch/SAELens", True)
    assert [name for name, _ in found.later] == ["dashboards", "neuronpedia.postgres", "neuronpedia.export"]
    assert all(origin.line > GOOD.count("\n") for _, origin in found.later)
    assert found.records == PublishSpec("local", str(here / "records"))
    assert found.retire
    assert found.saes[3].neuronpedia_id == "gemma-2-2b/3-res-acme"


def test_training_is_kept_for_later(here: Path) -> None:
    start, end = GOOD.index("  source:"), GOOD.index("\nvalidate:")
    train = f"""\
  train:
    architecture: batchtopk
    d_sae: 16384
    k: 64
    dataset: {{repo: m/p, revision: {COMMIT}}}
    tokens: 5e8
    lr: 3e-4
    seed: "{{layer}}"
"""
    found = release(here, GOOD[:start] + train + GOOD[end:])
    assert [name for name, _ in found.later] == ["train"]
    assert found.saes[5].source is None
    assert found.saes[5].train is not None
    assert found.saes[5].train["seed"] == 5  # a whole-text placeholder keeps the number's type
    assert found.saes[5].train["lr"] == 3e-4


# ------------------------------------------------------------------------------------------------- expansion


def ids(here: Path, for_each: str, template: str = "l{layer}") -> list[str]:
    text = changed((FOR_EACH, for_each), ("layer_{layer}/width_16k", template))
    return [sae.id for sae in release(here, text).saes]


def test_axes_multiply(here: Path) -> None:
    axes = "    layer: [6, 12]\n    seed: {first: 0, last: 1}\n"
    assert ids(here, axes, "l{layer}_s{seed}") == ["l6_s0", "l6_s1", "l12_s0", "l12_s1"]


def test_except_leaves_out(here: Path) -> None:
    axes = "    layer: [6, 12]\n    seed: {first: 0, last: 1}\n    except: [{layer: 6, seed: 1}, {layer: 12}]\n"
    assert ids(here, axes, "l{layer}_s{seed}") == ["l6_s0"]


def test_rows(here: Path) -> None:
    assert ids(here, "    - {layer: 0, l0: 105}\n    - {layer: 1, l0: 102}\n", "l{layer}_{l0}") == ["l0_105", "l1_102"]


def test_formats_braces_and_kinds(here: Path) -> None:
    rows = "    - {layer: 3, w: 16k, r: 0.5}\n"
    assert ids(here, rows, "l{layer:03d}_{w}_{w:>5s}x_{r:.2f}".replace("{w:>5s}", "{w:s}")) == ["l003_16k_16kx_0.50"]


def test_no_for_each_is_one_sae(here: Path) -> None:
    text = changed(
        ("  for_each:\n" + FOR_EACH, ""), ("layer_{layer}/", "l/"), ("blocks.{layer}", "blocks.0"), ("_{layer:02d}", "")
    )
    assert [sae.id for sae in release(here, text).saes] == ["l/width_16k"]


@pytest.mark.parametrize(
    ("for_each", "template", "expected"),
    [
        (FOR_EACH, "l{layr}", ["Unknown placeholder @ a.yaml:11:7"]),
        (FOR_EACH, "l{layer.real}", ["Placeholder is malformed @ a.yaml:11:7"]),
        (FOR_EACH, "l{layer[0]}", ["Placeholder is malformed @ a.yaml:11:7"]),
        (FOR_EACH, "l{layer!r}", ["Placeholder is malformed @ a.yaml:11:7"]),
        (FOR_EACH, "l{}", ["Placeholder is malformed @ a.yaml:11:7"]),
        (FOR_EACH, "l{0}", ["Placeholder is malformed @ a.yaml:11:7"]),
        (FOR_EACH, "l{layer:999999999d}", ["Placeholder is malformed @ a.yaml:11:7"]),
        (FOR_EACH, "l{layer:{layer}d}", ["Placeholder is malformed @ a.yaml:11:7"]),
        (FOR_EACH, "l{layer", ["Placeholder is malformed @ a.yaml:11:7"]),
        (FOR_EACH, "l{layer}}", ["Placeholder is malformed @ a.yaml:11:7"]),
        ("    layer: [a]\n", "l{layer:02d}", ["Placeholder does not fit @ a.yaml:11:7"]),
        (FOR_EACH + "    width: [1]\n", "l{layer}", ["Placeholder is never used @ a.yaml:11:5"]),
        (FOR_EACH + "    except: [{layer: 99}]\n", "l{layer}", ["Exception matches nothing @ a.yaml:11:22"]),
        (FOR_EACH + "    except: [{lyer: 9}]\n", "l{layer}", ["Unknown placeholder @ a.yaml:11:15"]),
        ("    layer: [1]\n    except: [{layer: 1}]\n", "l{layer}", ["for_each has no values @ a.yaml:9:3"]),
        ("    except: [{layer: 1}]\n", "l{layer}", ["for_each has no values @ a.yaml:10:5"]),
        ("    layer: {first: 5, last: 4}\n", "l{layer}", ["Range runs backwards @ a.yaml:10:29"]),
        ("    layer: {first: 5}\n", "l{layer}", ["Missing key @ a.yaml:10:12"]),
        ("    layer: 5\n", "l{layer}", ["Wrong type @ a.yaml:10:12"]),
        ("    layer: [1, 1]\n", "l{layer}", ["Value is out of range @ a.yaml:10:16"]),
        ("    layer: [[1]]\n", "l{layer}", ["Wrong type @ a.yaml:10:13"]),
        ("    my-layer: [1]\n", "l", ["Unknown key @ a.yaml:10:5"]),
        ("    - {layer: 0}\n    - {layer: 1, x: 2}\n", "l{layer}", ["Rows differ in their names @ a.yaml:11:7"]),
        ("    layer: {first: 0, last: 20000}\n", "l{layer}", ["Too many SAEs @ a.yaml:9:3"]),
    ],
)
def test_expansions_that_are_refused(here: Path, for_each: str, template: str, expected: list[str]) -> None:
    text = changed((FOR_EACH, for_each), ("layer_{layer}/width_16k", f"'{template}'"), ("_{layer:02d}", ""))
    if "my-layer" in for_each:
        text = changed(("blocks.{layer}", "blocks.0"), base=text)
    found = complaints(here, text)
    assert said(found) == expected
    assert all(each.detail.endswith((".", "?")) for each in found)


def test_suggestions_for_placeholders(here: Path) -> None:
    (unknown,) = complaints(here, changed(("layer_{layer}/", "layer_{layr}/")))
    assert unknown.detail == '"layr" is not a name of for_each. Did you mean `{layer}`?'


def test_saes_are_counted_before_they_are_made_over_all_manifests(here: Path) -> None:
    huge = changed((FOR_EACH, "".join(f"    {name}: {{first: 0, last: 999999999}}\n" for name in ("layer", "b", "c"))))
    huge = changed(("layer_{layer}/", "layer_{layer}{b}{c}/"), base=huge)
    start = time.process_time()
    assert said(complaints(here, huge)) == ["Too many SAEs @ a.yaml:9:3"]
    assert time.process_time() - start < 2
    parts = [
        changed(
            (FOR_EACH, "    layer: {first: 0, last: 10000}\n"), ("release: gemma", f"release: g{n}"), ("acme/gemma", f"acme/{n}")
        )
        for n in range(2)
    ]
    (found,) = complaints(here, *parts)
    assert str(found.origin) == "b.yaml:9:3"
    assert "10,001 SAEs, with 10,001 of the manifests before it" in found.detail


def test_an_error_of_all_saes_stands_once_at_the_template(here: Path) -> None:
    (found,) = complaints(here, changed(("blocks.{layer}.hook_resid_post", "'blocks {layer}'")))
    assert str(found.origin) == "a.yaml:12:9"
    assert found.detail == (
        '"blocks 0" does not do for saes.hook: a hook\'s name begins with a letter, and has no spaces and no braces. '
        "The same goes for 25 other SAEs of this template."
    )


def test_an_error_of_one_sae_among_many_is_found(here: Path) -> None:
    rows = "".join(f"    - {{layer: {n}, name: {'con' if n == 7 else n}}}\n" for n in range(9))
    (found,) = complaints(here, changed((FOR_EACH, rows), ("layer_{layer}/", "x/{name}/")))
    assert found.detail == '"x/con/width_16k" does not do for saes.id: Windows reserves this name (con, nul, com1 …).'


def test_whole_numbers_may_be_written_as_powers(here: Path) -> None:
    sae = release(here, changed(("tokens: 204800", "tokens: 2e5"))).saes[0]
    assert sae.validate is not None
    assert repr(sae.validate.tokens) == "200000"


# ----------------------------------------------------------------------------------------------------- paths


LOCAL = changed(("    repo: acme/dictionaries\n", ""), (f"    revision: {OTHER}\n", ""), ("resid_post_layer_", "./w/l"))


def test_local_paths_start_at_the_manifest(here: Path) -> None:
    (here / "manifests").mkdir()
    (here / "manifests" / "m.yaml").write_text(changed(("./w/l", "../w/l"), base=LOCAL), encoding="utf-8")
    (found,) = load([Path("manifests/m.yaml")])
    source = found.saes[0].source
    assert source is not None
    assert (source.repo, source.path) == (None, str(here / "w" / "l00" / "ae.pt"))


@pytest.mark.parametrize(
    "path", ["../../outside", "/etc/passwd", "/etc", "/", "link/x", "link", "~/x", "w/../../../x", "$HOME/x", "x/$USER/y"]
)
def test_paths_outside_the_project_are_refused(here: Path, path: str) -> None:
    (here / "link").symlink_to(here.parent.parent)
    text = LOCAL.replace("./w/l{layer:02d}/ae.pt", path)
    (found,) = complaints(here, text)
    assert found.summary in ("Path leads outside the project", "Path is refused")
    assert "a.yaml:14:" in str(found.origin)
    assert ("--root" in found.detail) == (path not in ("~/x", "/", "$HOME/x", "x/$USER/y"))
    assert "--root /`" not in found.detail, "nobody is told to allow everything"


def test_whoever_works_at_the_root_of_the_disk_allows_no_more(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container whose working directory nobody set: all paths would be inside it."""
    files = [path.absolute() for path in write(here, m=LOCAL.replace("./w/l{layer:02d}/ae.pt", "/etc/passwd"))]
    monkeypatch.chdir("/")
    with pytest.raises(ManifestError, match="outside the project") as caught:
        load(files)
    assert str(here) in caught.value.diagnostics[0].detail
    (found,) = load(files, roots=[Path("/")])
    assert found.saes[0].source is not None
    assert found.saes[0].source.path == "/etc/passwd", "one that was typed does"


def test_a_path_that_the_system_refuses_says_why(here: Path) -> None:
    (found,) = complaints(here, LOCAL.replace("./w/l{layer:02d}/ae.pt", "x" * 300))
    assert (found.summary, found.detail) == (
        "Path is refused",
        "This is not a path that the system can follow: File name too long.",
    )


def test_roots_allow_more(here: Path) -> None:
    text = LOCAL.replace("./w/l", "../shared/l")
    files = write(here, m=text)
    with pytest.raises(ManifestError):
        load(files)
    (found,) = load(files, roots=[here.parent / "shared"])
    assert found.saes[0].source is not None
    assert found.saes[0].source.path == str(here.parent / "shared" / "l00" / "ae.pt")


def test_the_project_is_the_repository(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nested = here / "a" / "b"
    nested.mkdir(parents=True)
    monkeypatch.chdir(nested)
    text = LOCAL.replace("./w/l", "../../w/l")
    with pytest.raises(ManifestError):
        load(write(nested, m=text))
    subprocess.run(["git", "init", "-q", str(here)], check=True)
    assert load(write(nested, m=text))


def test_every_local_path_is_bounded(here: Path) -> None:
    start, end = GOOD.index("    repo: monology"), GOOD.index("  tokens:")
    text = GOOD[:start] + "    path: /etc/text\n" + GOOD[end:]
    text = changed(("  huggingface: acme/gemma-saes", "  local: /etc/out"), base=text)
    text = changed((f"  name: google/gemma-2-2b\n  revision: {COMMIT}\n", "  path: /etc/model\n"), base=text)
    text += (
        "records: {local: /etc/records}\nregister: {saelens: /etc/git}\nneuronpedia: {model: m, set: s, export: /etc/export}\n"
    )
    assert [each.summary for each in complaints(here, text)] == ["Path leads outside the project"] * 6


# -------------------------------------------------------------------------------------------------- finding


def test_find_takes_manifests_and_leaves_other_yaml(here: Path) -> None:
    folder = here / "manifests"
    folder.mkdir()
    for name, text in {"b.yaml": GOOD, "a.yml": GOOD, "c.yaml": "services: {}\n", ".d.yaml": GOOD, "e.txt": GOOD}.items():
        (folder / name).write_text(text, encoding="utf-8")
    expected = [Path("manifests/a.yml"), Path("manifests/b.yaml")]
    assert find([]) == expected
    assert find([Path("manifests")]) == expected
    assert find([Path("manifests/c.yaml"), Path("manifests/c.yaml")]) == [Path("manifests/c.yaml")]


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("M.YAML", GOOD.encode()),
        ("m.yaml", GOOD.encode("utf-16")),
        ("m.yaml", ("# Mac line ends\n" + GOOD).replace("\n", "\r").encode()),
        ("m.yaml", json.dumps({"release": "x", "apiVersion": "saesync/v1"}).encode()),
        ("m.yaml", json.dumps({"apiVersion": "saesync/v1"}, indent=2).encode()),
        ("m.yaml", b'"apiVersion": saesync/v1\n'),
        ("m.yaml", b"{apiVersion: saesync/v1, release: x}\n"),
    ],
)
def test_a_manifest_of_a_folder_is_not_overlooked(here: Path, name: str, data: bytes) -> None:
    (here / "mine").mkdir()
    (here / "mine" / name).write_bytes(data)
    assert [path.name for path in find([Path("mine")])] == [name]


def test_a_manifest_further_below_is_not_overlooked(here: Path) -> None:
    """Nor is it read unasked: local paths start at its folder. It would be one whose SAEs nobody asks for."""
    inside = here / "manifests" / "team" / "a"
    inside.mkdir(parents=True)
    (here / "manifests" / "a.yaml").write_text(GOOD)
    (inside / "policy.yaml").write_text("apiVersion: saesync/v1\ntargets: {huggingface: [acme/*-saes]}\n")
    (inside / ".hidden.yaml").write_text(GOOD)
    (inside / "link.yaml").symlink_to("../../a.yaml")
    os.mkfifo(inside / "pipe.yaml")
    (here / "manifests" / ".old").mkdir()
    (here / "manifests" / ".old" / "b.yaml").write_text(GOOD)
    assert find([]) == [Path("manifests/a.yaml")]
    (inside / "b.yaml").write_text(GOOD)
    with pytest.raises(
        ManifestError, match=r"manifests/team/a/b\.yaml is not one of them\. Move it, or name manifests/team/a, too"
    ):
        find([])
    (inside / "link.yaml").unlink()
    (inside / "policy.yaml").unlink()
    both = [Path("manifests/a.yaml"), Path("manifests/team/a/b.yaml")]
    assert find([Path("manifests"), Path("manifests/team/a")]) == both
    assert find([Path("manifests"), both[1]]) == both
    assert find([both[0]]) == [both[0]]
    (here / "manifests" / "a.yaml").unlink()
    with pytest.raises(ManifestError, match=r"manifests/team/a/b\.yaml is not one of them"):
        find([])


def test_find_says_what_is_missing(here: Path) -> None:
    (here / "empty").mkdir()
    with pytest.raises(ManifestError) as caught:
        find([Path("nowhere.yaml"), Path("empty")])
    assert [each.summary for each in caught.value.diagnostics] == ["No such manifest", "No manifest found"]
    with pytest.raises(ManifestError, match="saesync init"):
        find([])


def test_find_refuses_links_to_nothing(here: Path) -> None:
    """A manifest that is not read would be one whose SAEs nobody asks for any more."""
    folder = here / "manifests"
    folder.mkdir()
    (folder / "a.yaml").write_text(GOOD)
    (folder / "b.yaml").symlink_to("gone.yaml")
    with pytest.raises(ManifestError, match="is a link to something that is not there"):
        find([folder])


def test_find_refuses_links_out_of_the_folder(here: Path) -> None:
    (here / "secret.yaml").write_text(GOOD, encoding="utf-8")
    (here / "manifests").mkdir()
    (here / "manifests" / "x.yaml").symlink_to(here / "secret.yaml")
    with pytest.raises(ManifestError, match="link to a file outside"):
        find([])


def test_files_that_cannot_be_read(here: Path) -> None:
    os.mkfifo(here / "pipe.yaml")
    (here / "circle.yaml").symlink_to("circle.yaml")
    for path in (Path("pipe.yaml"), Path("nowhere.yaml"), find([Path("circle.yaml")])[0], here):
        with pytest.raises(ManifestError, match="Manifest cannot be read"):
            load([path])


def test_a_root_in_a_circle_allows_nothing(here: Path) -> None:
    (here / "circle").symlink_to("circle")
    assert load(write(here, m=GOOD), roots=[Path("circle")])


# --------------------------------------------------------------------------------------------------- economy


def test_14_000_saes_load(here: Path) -> None:
    files = {
        f"m{n:03}": changed(
            (FOR_EACH, "    layer: {first: 0, last: 81}\n"), ("release: gemma", f"release: g{n}"), ("acme/gemma", f"acme/g{n}")
        )
        for n in range(170)
    }
    paths = write(here, **files)
    releases = load(paths)
    assert sum(len(each.saes) for each in releases) == 13_940


def test_a_good_manifest_needs_no_jsonschema(here: Path) -> None:
    write(here, m=GOOD)
    program = (
        "import sys; from pathlib import Path; from saesync.manifest import load\n"
        "load([Path('m.yaml')]); print('jsonschema' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_errors_can_be_shown(here: Path) -> None:
    text = show(complaints(here, changed(("format: goodfire", "format: goodfyre"))), color=False)
    assert text == (
        "error: Unknown value\n"
        "  --> a.yaml:17:13\n"
        "   |\n"
        "17 |     format: goodfyre\n"
        "   |             ^^^^^^^^\n"
        f'   = "goodfyre" is not a known format. Did you mean "goodfire"? Known: {KNOWN}.'
    )


def _known() -> str:
    from saesync.formats import formats

    return ", ".join(sorted(formats()))


KNOWN = _known()


@settings(max_examples=300, deadline=None)
@given(
    st.text("aZ0_.-/", min_size=1, max_size=8) | st.sampled_from(["a/" + "b" * 96, "a/" + "b" * 97, "a.git", "a/b.git", "a\n"])
)
def test_hub_ids_are_those_that_huggingface_hub_takes(name: str) -> None:
    taken = compile_schema({"$ref": "#/$defs/hubId", "$defs": build()["$defs"]})(name)
    try:
        validate_repo_id(name)
    except HFValidationError:
        assert not taken
    else:
        assert taken

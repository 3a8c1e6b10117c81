"""What is said about manifests that are wrong: at the exact place, with advice, everything at once."""

from __future__ import annotations

import json
import random
import shlex
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from manifest_support import COMMIT, GOOD, OTHER, changed, complaints, release, said, write

from saesync.carets import show
from saesync.errors import ManifestError
from saesync.manifest import load


@pytest.mark.parametrize(
    ("change", "place", "detail"),
    [
        (("  hook:", "  hoook:"), "Unknown key @ a.yaml:12:3", '"hoook" is not a key of saes. Did you mean "hook"?'),
        (
            ("  hook: blocks.{layer}.hook_resid_post", "  hook: {layer}"),
            "Quote the placeholder @ a.yaml:12:9",
            'A value that begins with a brace is a mapping in YAML. To use the placeholder, quote it: `"{layer}"`.',
        ),
        (
            (f"revision: {OTHER}", "revision: main"),
            "Not pinned @ a.yaml:15:15",
            'saes.source.revision needs a 40-digit commit hash, not "main"; `saesync pin a.yaml` fills it in.',
        ),
        (
            ("explained_variance: {min: 0.70}", "explained_variance: {min: 70}"),
            "Value is out of range @ a.yaml:26:31",
            "validate.require.explained_variance.min is 70; it must be at most 1.",
        ),
        (
            ("l0: {max: 150}", "dead_features: {max: -0.1}"),
            "Value is out of range @ a.yaml:27:26",
            "validate.require.dead_features.max is -0.1; it must be at least 0.",
        ),
        (
            (f"revision: {OTHER}", f"revision: {OTHER.upper()}"),
            "Not pinned @ a.yaml:15:15",
            "saes.source.revision has capital letters; write the commit hash in lower case.",
        ),
        *(
            (("acme/gemma-saes", name), "Invalid value @ a.yaml:30:16", f'"{name}" does not do for publish.huggingface: {rule}.')
            for name, rule in (
                ("gemma-saes", "a repository to write to has an owner: `owner/name`"),
                ("acme/gemma..saes", "a Hub id holds no `--` and no `..`"),
                ("acme/gemma-", "owner and name of a Hub id end neither with a dot nor with `-`"),
                ("acme/gemma.git", "the name of a repository does not end with `.git`"),
            )
        ),
        (
            (f"    revision: {OTHER}\n", ""),
            "Not pinned @ a.yaml:14:11",
            "saes.source.repo needs a 40-digit commit hash beside it, as `revision`; `saesync pin a.yaml` fills it in.",
        ),
        (
            (f"  dataset:\n    repo: monology/pile\n    revision: {COMMIT}\n", "  dataset: monology/pile\n"),
            "Not pinned @ a.yaml:20:12",
            '"monology/pile" needs a 40-digit commit hash; `saesync pin a.yaml` fills it in.',
        ),
        (
            (f"  dataset:\n    repo: monology/pile\n    revision: {COMMIT}\n", "  dataset: ./held_out.jsonl\n"),
            "Wrong type @ a.yaml:20:12",
            "validate.dataset is local: write it as `path: ./held_out.jsonl` below `dataset:`.",
        ),
        (
            (f"model:\n  name: google/gemma-2-2b\n  revision: {COMMIT}\n", "model: google/gemma-2-2b\n"),
            "Not pinned @ a.yaml:4:8",
            '"google/gemma-2-2b" needs a 40-digit commit hash; `saesync pin a.yaml` fills it in.',
        ),
        (
            ("release: gemma-res-acme", "release: gemma/res"),
            "Invalid value @ a.yaml:2:10",
            '"gemma/res" does not do for release: a release name has only letters, digits, `.`, `_` and `-`, '
            "and begins with a letter or a digit.",
        ),
        (
            ("    explained_variance:", "    explained_varience:"),
            "Unknown key @ a.yaml:26:5",
            '"explained_varience" is not a key of validate.require. Did you mean "explained_variance"?',
        ),
        (
            ("  tokens: 204800", "  tokens: many"),
            "Wrong type @ a.yaml:23:11",
            'validate.tokens takes a whole number, not the text "many".',
        ),
        (
            ("  tokens: 204800", '  tokens: "204800"'),
            "Wrong type @ a.yaml:23:11",
            'validate.tokens takes a whole number, not the text "204800". Remove the quotes.',
        ),
        (
            ("{min: 0.70}", "0.7"),
            "Wrong type @ a.yaml:26:25",
            "validate.require.explained_variance takes a mapping, not the number 0.7. Write `{min: 0.7}` or `{max: 0.7}`.",
        ),
        (
            ("{first: 0, last: 25}", "0-25"),
            "Wrong type @ a.yaml:10:12",
            'saes.for_each.layer takes a list or a mapping, not the text "0-25". The values of one placeholder: a list, `[0, 3]`,'
            " or consecutive whole numbers, `{first: 0, last: 3}`.",
        ),
        (
            ("{min: 0.70}", "'>= 0.7'"),
            "Wrong type @ a.yaml:26:25",
            'validate.require.explained_variance takes a mapping, not the text ">= 0.7".'
            " Write `{min: NUMBER}` or `{max: NUMBER}`.",
        ),
        (
            ("  context: 1024", "  context: 1"),
            "Value is out of range @ a.yaml:24:12",
            "validate.context is 1; it must be at least 2.",
        ),
        (
            ("  license: mit", "  license: 7"),
            "Wrong type @ a.yaml:31:12",
            "publish.license takes a text, not the number 7. Put it in quotes.",
        ),
        (
            ("  license: mit", "  private: no"),
            "Wrong type @ a.yaml:31:12",
            'publish.private takes true or false, not the text "no". YAML 1.2 writes them only so.',
        ),
        (
            ("  license: mit", "  license:"),
            "Wrong type @ a.yaml:31:11",
            "publish.license takes a text, not nothing. Give it a value, or remove the key.",
        ),
        (
            ("  license: mit", "  local: ./out"),
            "Keys exclude each other @ a.yaml:31:3",
            "publish takes only one of huggingface, local; found huggingface and local. Remove one.",
        ),
        (
            ("  huggingface: acme/gemma-saes\n", ""),
            "Missing key @ a.yaml:29:1",
            "publish needs one of huggingface, local.",
        ),
        (
            ("publish:\n  huggingface: acme/gemma-saes\n  license: mit\n", ""),
            "Missing key @ a.yaml:1:1",
            "the manifest needs at least one of publish, records, for what `validate` finds.",
        ),
        (
            ("  tokens: 204800\n", ""),
            "Missing key @ a.yaml:19:1",
            '"tokens" is missing from validate. Tokens to measure on, in all.',
        ),
        (
            ("  license: mit", "  hook: x"),
            "Unknown key @ a.yaml:31:3",
            '"hook" is not a key of publish. It is a key of saes.',
        ),
        (
            ("    explained_variance: {min: 0.70}", "    explained_variance: {}"),
            "Value is out of range @ a.yaml:26:25",
            "validate.require.explained_variance is empty. Give it a value, or remove the key.",
        ),
        (
            ("    explained_variance: {min: 0.70}", "    explained_variance: {min: 0.7, max: 0.6}"),
            "Bounds exclude each other @ a.yaml:26:41",
            "No explained_variance is at least 0.7 and at most 0.6. Swap or change them.",
        ),
        (
            (f"  name: google/gemma-2-2b\n  revision: {COMMIT}\n", "  path: .\n  loader: HookedTransformer\n"),
            "Loader does not fit @ a.yaml:6:11",
            "HookedTransformer loads models by official names only, and `path` is a folder. Use `loader: TransformerBridge`, "
            "which loads any folder.",
        ),
        (
            ("apiVersion: saesync/v1", "apiVersion: saesync/v2"),
            "Unknown value @ a.yaml:1:13",
            'apiVersion is "saesync/v2"; this saesync reads saesync/v1.',
        ),
        (
            ("  huggingface: acme/gemma-saes", "  huggingface: acme/{layer}"),
            "Invalid value @ a.yaml:30:16",
            '"acme/{layer}" does not do for publish.huggingface: a Hub id looks like `owner/name`. '
            "Placeholders stand only under saes, and in neuronpedia.set.",
        ),
        (
            ("    format: goodfire", "    format: goodfire\n    norm_scaling_factor: 2"),
            "Unknown key @ a.yaml:18:5",
            '"norm_scaling_factor" is not a key of saes.source. Known: repo, revision, path, format, k.',
        ),
    ],
)
def test_messages(here: Path, change: tuple[str, str], place: str, detail: str) -> None:
    found = complaints(here, changed(change))
    assert said(found) == [place]
    assert found[0].detail == detail


@pytest.mark.parametrize(
    ("path", "rule"),
    [("/a", "relative"), ("a/../b", "no `..`"), ("..", "no `..`"), ("a\\b", "backslash"), ('"a\\u001bb"', "control")],
)
def test_paths_in_repos(here: Path, path: str, rule: str) -> None:
    (found,) = complaints(here, changed(("resid_post_layer_{layer:02d}/ae.pt", path)))
    assert str(found.origin) == "a.yaml:16:11"
    assert rule in found.detail


@pytest.mark.parametrize(
    "bad",
    [
        "/abs", "a//b", "a/", "../up", "a/../b", ".hidden", "a/.b", "a\\\\b", "a\\u0007b", "a\\u200bb", "a\\u202eb", "nul",
        "COM1.txt",         "a/Lpt9/b", "saesync", "SAESYNC/x", "saesync-x", "native/x", "Native", "README.md",
        "readme.md/x", "a.", "a /b", " a", "a:b",
        "a?b", "a#b", "a%2e", "a\\nb", "a\\n", "a\\u0600b", "",
    ],
)  # fmt: skip
def test_ids_that_are_refused(here: Path, bad: str) -> None:
    escaped = bad.replace("{", "{{")
    (found,) = complaints(here, changed(("layer_{layer}/width_16k", f'"{escaped}"'), (FOR_EACH, "    layer: [0]\n")))
    assert str(found.origin) == "a.yaml:11:7"


FOR_EACH = "    layer: {first: 0, last: 25}\n"


@pytest.mark.parametrize(
    "good", ["a", "layer_1/width_16k/average_l0_71", "Ebene-é", "console", "commit", "a.b", "a/b.c", "x+y@z,1=2"]
)
def test_ids_that_are_fine(here: Path, good: str) -> None:
    assert release(here, changed(("layer_{layer}/width_16k", good), (FOR_EACH, "    layer: [0]\n"))).saes[0].id == good


@pytest.mark.parametrize(
    "name",
    ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "GH_TOKEN", "GITHUB_TOKEN", "AWS_SECRET_ACCESS_KEY", "ACTIONS_RUNTIME_TOKEN",
     "GOOGLE_APPLICATION_CREDENTIALS", "AZURE_CLIENT_SECRET", "CI_JOB_TOKEN", "PATH", "lower", "A B", "SAESYNC_CACHE"],
)  # fmt: skip
def test_reserved_variables_are_never_named(here: Path, name: str) -> None:
    text = GOOD + f"neuronpedia: {{model: m, set: s, postgres: {{dsn_from: {name}}}}}\n"
    (found,) = complaints(here, text)
    assert found.summary == "Invalid value"
    assert str(found.origin).startswith("a.yaml:32:")


def test_a_secret_is_told_where_to_live(here: Path) -> None:
    text = GOOD + "neuronpedia: {model: m, set: s, postgres: {dsn: 'postgres://u:p@h/d'}}\n"
    (found,) = complaints(here, text)
    assert "`dsn_from` names the environment variable" in found.detail
    assert "postgres://" not in found.detail
    credentials = GOOD + "register: {saelens: 'https://user:token@example.org/x'}\n"
    assert [each.summary for each in complaints(here, credentials)] == ["Invalid value"]


@pytest.mark.parametrize("token", ["hf_" + "aB3" * 12, "ghp_" + "a1" * 18, "github_pat_" + "a_1" * 20, "AKIA" + "Q7" * 8])
def test_tokens_are_refused_and_not_shown(here: Path, token: str) -> None:
    found = complaints(here, GOOD + f"# {token}\n")
    assert [each.summary for each in found] == ["Secret in a manifest"]
    text = show(found, color=False)
    assert "a.yaml:32:3" in text
    assert token not in text


@pytest.mark.parametrize(
    "written",
    ["neuronpedia: {model: m, set: s, postgres: {dsn: 'postgres://hunter:two three@h/d'}}", "publish: {token: hunter2}",
     "register: {saelens: 'https://hunter:2@example.org/x'}", 'HF_TOKEN: "hunter 2"', "password : hunter2", "api_key: 'hunter2",
     '"client_secret": "hunter2", "publish": 1', "neuronpedia: {model: m, set: s, postgres: {dsn_from: 'hunter:2@h'}}",
     "neuronpedia: {model: m, set: s, postgres: {dsn_from: hunter2}}"],
)  # fmt: skip
def test_a_line_with_a_secret_is_shown_without_it(here: Path, written: str) -> None:
    found = complaints(here, GOOD + written + "\n")
    text = show(found, color=False)
    assert "hunter" not in text + json.dumps([each.to_json() for each in found])
    assert "***" in text
    assert written[:3] in text


def test_variables_that_hold_secrets_are_shown(here: Path) -> None:
    text = show(complaints(here, GOOD + "neuronpedia: {model: m, set: s, postgres: {dsn_from: HF_TOKEN}}\n"), color=False)
    assert "dsn_from: HF_TOKEN}" in text


def test_everything_at_once_in_order_of_place(here: Path) -> None:
    first = changed(("  hook:", "  hoook:"), ("format: goodfire", "format: goodfyre"), ("  tokens:", "  tokns:"))
    own = (("gemma-res", "gemma-att"), ("acme/gemma-saes", "acme/att-saes"))
    second = changed(("apiVersion: saesync/v1", "apiVersion: saesync/v1\napiVersion: x"), *own)
    third = changed(("layer_{layer}/", "layer_{lyr}/"), ("context: 1024", "context: -3"), ("gemma-res", "gemma-mlp"))
    assert said(complaints(here, first, second, third)) == [
        "Unknown key @ a.yaml:12:3",
        "Unknown value @ a.yaml:17:13",
        "Unknown key @ a.yaml:23:3",
        "Duplicate key @ b.yaml:2:1",
        "Unknown placeholder @ c.yaml:11:7",
        "Value is out of range @ c.yaml:24:12",
    ]


def test_what_only_several_values_show_is_said_with_the_rest(here: Path) -> None:
    """Paths, bounds that exclude each other, and two SAEs in one folder; in another manifest, its name."""
    publish = ("  huggingface: acme/gemma-saes", "  local: /etc/saes")
    first = changed(publish, ("id: layer_{layer}/width_16k", "id: one"), ("    l0: {max: 150}", "    l0: {min: 9, max: 5}"))
    second = changed(("  context:", "  contxt:"), ("gemma-res", "gemma-mlp"))
    assert said(complaints(here, first, second, GOOD)) == [
        "Folder is taken @ a.yaml:11:7",
        "Bounds exclude each other @ a.yaml:27:23",
        "Path leads outside the project @ a.yaml:30:10",
        "Unknown key @ b.yaml:24:3",
        "Release name is taken @ c.yaml:2:10",
        "Folder is taken @ c.yaml:11:7",
    ]


def test_of_very_many_errors_the_first_are_shown(here: Path) -> None:
    found = complaints(here, GOOD + "".join(f"k{n}: 1\n" for n in range(150)))
    assert len(found) == 101
    assert found[-1].detail == "a.yaml has 50 more errors. Fix those shown first."


def test_a_root_that_is_no_mapping(here: Path) -> None:
    for text in ("- 1\n", "word\n", "null\n"):
        assert [each.summary for each in complaints(here, text)] == ["Not a manifest"]


def test_a_release_that_only_registers_may_leave_its_source_unpinned(here: Path) -> None:
    start, end = GOOD.index("validate:"), len(GOOD)
    text = GOOD[:start] + "register: {saelens: decoderesearch/SAELens}\n" + GOOD[end:]
    found = release(here, changed((f"    revision: {OTHER}\n", ""), base=text))
    assert found.publish is None
    assert found.saes[0].source is not None
    assert found.saes[0].source.revision is None


# ------------------------------------------------------------------------------------------------ collisions


def named(name: str, repo: str, template: str = "layer_{layer}/width_16k", more: str = "") -> str:
    return (
        changed(
            ("gemma-res-acme", name),
            ("acme/gemma-saes", repo),
            ("layer_{layer}/width_16k", template),
            (FOR_EACH, "    layer: [1]\n"),
        )
        + more
    )


def test_equal_release_names(here: Path) -> None:
    (found,) = complaints(here, named("same", "acme/a"), named("Same", "acme/b"))
    assert (found.summary, str(found.origin)) == ("Release name is taken", "b.yaml:2:10")
    assert "a.yaml:2:10" in found.detail


@pytest.mark.parametrize(
    ("one", "two"),
    [
        ("l{layer}", "l{layer}"),
        ("l{layer}", "L{layer}"),
        ('"\\u00e9{layer}"', '"e\\u0301{layer}"'),
        ("stra\u00dfe{layer}", "strasse{layer}"),
    ],
)
def test_equal_folders_in_one_target(here: Path, one: str, two: str) -> None:
    (found,) = complaints(here, named("x", "acme/a", one), named("y", "Acme/A", two))
    assert (found.summary, str(found.origin)) == ("Folder is taken", "b.yaml:11:7")
    assert "a.yaml:11:7" in found.detail
    assert load(write(here, a=named("x", "acme/a", one), b=named("y", "acme/b", two)))


@pytest.mark.parametrize("swap", [False, True])
def test_a_folder_inside_another(here: Path, swap: bool) -> None:
    texts = [named("x", "acme/a", "l{layer}"), named("y", "acme/a", "l{layer}/deeper/still")]
    (found,) = complaints(here, *(reversed(texts) if swap else texts))
    assert found.summary == "Folder is inside another"
    assert {str(found.origin), found.detail.split(" of ")[1].split(".yaml")[0] + ".yaml:11:7"} == {"a.yaml:11:7", "b.yaml:11:7"}


def test_local_folders_meet_across_locations(here: Path) -> None:
    one = changed(("  huggingface: acme/a", "  local: ./out"), base=named("x", "acme/a", "sub/l{layer}"))
    two = changed(("  huggingface: acme/b", "  local: ./out/sub"), base=named("y", "acme/b", "l{layer}"))
    assert [each.summary for each in complaints(here, one, two)] == ["Folder is taken"]


def test_records_among_published_saes(here: Path) -> None:
    """Evidence without weights would look like SAEs whose files are missing."""
    section = "records: {huggingface: Acme/A}\n"
    (found,) = complaints(here, named("x", "acme/a"), named("y", "acme/b", more=section))
    assert (found.summary, str(found.origin)) == ("Records are among published SAEs", "b.yaml:32:24")
    assert load(write(here, a=named("x", "acme/c", more=section), b=named("y", "acme/b", more=section)))


@pytest.mark.parametrize("inside", ["saesync", "Saesync/deeper", "native"])
def test_a_location_among_the_files_that_saesync_keeps(here: Path, inside: str) -> None:
    one = changed(("  huggingface: acme/a", "  local: ./out"), base=named("x", "acme/a"))
    two = changed(("  huggingface: acme/b", f"  local: ./out/{inside}"), base=named("y", "acme/b"))
    (found,) = complaints(here, one, two)
    assert (found.summary, str(found.origin)) == ("Folder is inside another", "b.yaml:11:7")
    assert "saesync itself keeps there for x (a.yaml:30:10)" in found.detail
    assert load(write(here, a=one, b=two.replace(f"./out/{inside}", "./out/beside")))


@pytest.mark.parametrize("where", ["./out/l1", "./out/l1/evidence"])
def test_evidence_inside_an_sae(here: Path, where: str) -> None:
    one = changed(("  huggingface: acme/a", "  local: ./out"), base=named("x", "acme/a", "l{layer}"))
    (found,) = complaints(here, one, named("y", "acme/b", more=f"records: {{local: {where}}}\n"))
    assert (found.summary, str(found.origin)) == ("Folder is inside another", "b.yaml:32:18")
    assert '"l1" of a.yaml:11:7' in found.detail


def test_commands_to_copy_are_quoted(here: Path) -> None:
    (file,) = write(here, **{"it's mine": changed((f"revision: {OTHER}", "revision: main"))})
    with pytest.raises(ManifestError) as caught:
        load([file])
    assert f"`saesync pin {shlex.quote(str(file))}` fills it in" in caught.value.diagnostics[0].detail
    outside = here.parent / "out there"
    (found,) = complaints(here, changed(("  huggingface: acme/gemma-saes", f'  local: "{outside}/saes"')))
    assert found.detail.endswith(f"add `--root '{outside}'`.")


def test_a_plan_file_under_another_name_is_told_apart(here: Path) -> None:
    (found,) = complaints(here, '{"type": "saesync-plan", "version": 1, "items": []}')
    assert (found.summary, str(found.origin)) == ("Not a manifest", "a.yaml:1:10")
    assert "let it end in `.json`" in found.detail


def test_a_conversion_is_quoted_as_it_stands(here: Path) -> None:
    (found,) = complaints(here, changed(("layer_{layer}/", "layer_{layer!r}/")))
    assert "`{layer!r}` is not" in found.detail


def test_ids_that_forget_a_placeholder(here: Path) -> None:
    found = complaints(here, changed(("layer_{layer}/", "layer/")))
    assert said(found) == ["Folder is taken @ a.yaml:11:7"]
    assert "Use every placeholder" in found[0].detail


@pytest.mark.parametrize(("one", "two"), [("16K", "16k"), ("caf\\u00e9", "cafe\\u0301")])
def test_ids_of_one_template_that_some_file_systems_take_for_one(here: Path, one: str, two: str) -> None:
    text = changed((FOR_EACH, f'{FOR_EACH}    width: ["{one}", "{two}"]\n'), ("width_16k", "width_{width}"))
    (found,) = complaints(here, text)
    assert said([found]) == ["Folder is taken @ a.yaml:12:7"]
    spelt = [json.loads(f'"layer_0/width_{name}"') for name in (one, two)]
    assert found.detail.startswith(f'"{spelt[0]}" and "{spelt[1]}" of this template are one folder')


def test_equal_neuronpedia_ids(here: Path) -> None:
    section = "neuronpedia: {model: m, set: res}\n"
    (found,) = complaints(here, named("x", "acme/a", more=section), named("y", "acme/b", more=section))
    assert (found.summary, str(found.origin)) == ("Neuronpedia id is taken", "b.yaml:32:30")
    assert "a.yaml:32:30" in found.detail
    wide = changed((FOR_EACH, FOR_EACH + "    width: [16k, 65k]\n"), ("width_16k", "width_{width}"))
    assert [each.summary for each in complaints(here, wide + section)] == ["Neuronpedia id is taken"]
    sets = [sae.neuronpedia_id for sae in release(here, wide + 'neuronpedia: {model: m, set: "res-{width}"}\n').saes]
    assert sets[:2] == ["m/0-res-16k", "m/0-res-65k"]


def test_neuronpedia_needs_a_layer_in_the_hook(here: Path) -> None:
    text = changed(("blocks.{layer}.hook_resid_post", "hook_embed{layer}")) + "neuronpedia: {model: m, set: res}\n"
    assert said(complaints(here, text)) == ["Hook has no layer @ a.yaml:12:9"]


# -------------------------------------------------------------------------------------------------- anything

LINES = GOOD.splitlines(keepends=True)
SCRAPS = [
    "",
    "  x: 1\n",
    "saes: []\n",
    "{",
    "  for_each: 1\n",
    "    layer: [a, {b: 1}]\n",
    "  id: {layer}\n",
    "model: [1]\n",
    "publish: x\n",
    "    except: {}\n",
    "  - 1\n",
    "validate: null\n",
    "neuronpedia: {set: '{layer}'}\n",
    "  source: []\n",
    "\t\n",
    "    revision: 1\n",
]


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 4))
def test_broken_manifests_only_ever_give_diagnostics(tmp_path_factory: pytest.TempPathFactory, seed: int, times: int) -> None:
    chance, lines = random.Random(seed), list(LINES)
    for _ in range(times):
        at = chance.randrange(len(lines))
        action: Any = chance.randrange(4)
        if action == 0:
            del lines[at]
        elif action == 1:
            lines[at] = chance.choice(SCRAPS)
        elif action == 2:
            lines.insert(at, chance.choice(SCRAPS))
        else:
            lines[at] = lines[at].replace(chance.choice("abcdefghijklmnop{}:"), chance.choice("{}:'-x "), 1)
    path = tmp_path_factory.mktemp("broken") / "m.yaml"
    path.write_text("".join(lines), encoding="utf-8")
    details = []
    try:
        load([path])
    except ManifestError as error:
        details = [each.detail for each in error.diagnostics]
    assert all(detail.endswith((".", "?")) for detail in details), details


@pytest.mark.parametrize("written", ["saes: 'never closed\nx: 1\n", "saes: [1,\n  2\n"])
def test_what_is_never_closed_is_told_where_it_begins(here: Path, written: str) -> None:
    (found,) = complaints(here, "release: x\n" + written)
    assert found.summary == "Not YAML"
    assert "never closed" in found.detail
    assert str(found.origin).startswith("a.yaml:2:7")

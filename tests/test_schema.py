"""The schema: not stale, complete, itself valid, and the fast checks say what jsonschema says."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from saesync import schema
from saesync.formats import formats
from saesync.measure.metrics import METRICS
from saesync.schema.fast import compile_schema
from saesync.schema.options import options_schema
from saesync.targets import targets

ROOT = Path(__file__).parent.parent
COMMIT = "c5ebcd40d208330abc697524c919956e692655cf"


def document() -> dict[str, Any]:
    """An expanded manifest that fits."""
    return {
        "apiVersion": "saesync/v1",
        "release": "gemma-res-acme",
        "model": {"name": "google/gemma-2-2b", "revision": COMMIT, "kwargs": {"fold_ln": False}},
        "saes": {
            "id": "layer_0/width_16k",
            "hook": "blocks.0.hook_resid_post",
            "source": {"repo": "acme/x", "revision": COMMIT, "path": "a/ae.pt", "format": "goodfire"},
            "dtype": "bfloat16",
        },
        "validate": {
            "dataset": {"repo": "m/p", "revision": COMMIT},
            "tokens": 1000,
            "context": 128,
            "require": {"l0": {"min": 1, "max": 9.5}},
        },
        "publish": {"huggingface": "acme/y", "license": "mit"},
        "register": {"saelens": "decoderesearch/SAELens"},
        "neuronpedia": {"model": "gemma-2-2b", "set": "res-acme", "postgres": {"dsn_from": "NEURONPEDIA_DSN"}},
    }


STRICT = schema.expanded(schema.build())
FAST = compile_schema(STRICT)
SLOW = Draft202012Validator(STRICT)


def test_committed_schema_is_not_stale() -> None:
    committed = (ROOT / "saesync" / "schema" / "manifest.json").read_text(encoding="utf-8")
    assert committed == json.dumps(schema.build(), indent=2, ensure_ascii=False) + "\n", "run `make docs`"


def test_manifest_reference_is_not_stale() -> None:
    program = "from manifest_reference import manifest_reference; import sys; sys.stdout.write(manifest_reference())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, cwd=ROOT / "tools")
    assert done.stdout.decode("utf-8") == (ROOT / "docs" / "manifest.md").read_text(encoding="utf-8"), "run `make docs`"


def test_module_prints_the_schema() -> None:
    done = subprocess.run([sys.executable, "-m", "saesync.schema"], capture_output=True, check=True)
    assert json.loads(done.stdout) == schema.build()


def test_schema_is_a_schema() -> None:
    Draft202012Validator.check_schema(schema.build())
    Draft202012Validator.check_schema(STRICT)
    assert SLOW.is_valid(document())


def keys(part: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(part, dict):
        for name, below in part.get("properties", {}).items():
            yield f"{path}.{name}", below
            yield from keys(below, f"{path}.{name}")


def test_other_tools_read_the_schema() -> None:
    """Its patterns are those of ECMAScript, with which editors and validators in other languages read them."""
    tool = Path(sys.executable).with_name("check-jsonschema")
    for words in (
        ["--check-metaschema", "saesync/schema/manifest.json", "saesync/schema/policy.json"],
        ["--schemafile", "saesync/schema/manifest.json", "examples/lab-repository/manifests/gemma-2-2b-res-acme.yaml"],
        ["--schemafile", "saesync/schema/policy.json", "examples/lab-repository/saesync-policy.yaml"],
    ):
        done = subprocess.run([tool, *words], cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_every_key_has_a_description() -> None:
    whole = schema.build()
    roots = {"": whole, **{f"$defs.{name}": part for name, part in whole["$defs"].items()}}
    found = [(path, part) for name, root in roots.items() for path, part in keys(root, name)]
    assert len(found) > 60
    missing = [path for path, part in found if part is not True and not part.get("description")]
    assert missing == []


def test_registries_fill_the_schema() -> None:
    saes = STRICT["properties"]["saes"]["properties"]
    assert saes["source"]["properties"]["format"]["enum"] == sorted(formats())
    assert set(targets()) <= set(STRICT["properties"]["publish"]["properties"])
    assert set(STRICT["properties"]["validate"]["properties"]["require"]["properties"]) == set(METRICS)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("saes", "id"), "layer_{layer}"),
        (("saes", "source", "revision"), "{commit}"),
        (("saes", "dtype"), "{dtype}"),
        (("neuronpedia", "set"), "res-{width}"),
    ],
)
def test_editors_accept_placeholders_and_expanded_manifests_do_not(path: tuple[str, ...], value: str) -> None:
    changed = document()
    place = changed
    for part in path[:-1]:
        place = place[part]
    place[path[-1]] = value
    assert Draft202012Validator(schema.build()).is_valid(changed)
    assert not SLOW.is_valid(changed)
    assert not FAST(changed)


def test_unpinned_only_when_only_registered() -> None:
    loose = document()
    del loose["saes"]["source"]["revision"]
    assert not FAST(loose)
    for section in ("publish", "validate", "neuronpedia"):
        del loose[section]
    assert FAST(loose)
    assert SLOW.is_valid(loose)


@pytest.mark.parametrize("text", ["acme/x\n", "acme/x/y", "/x", "", "a b", "acme/../x"])
def test_hub_ids(text: str) -> None:
    changed = document()
    changed["publish"]["huggingface"] = text
    assert not FAST(changed)
    assert not SLOW.is_valid(changed)


scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-5, 300_000),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=12),
    st.sampled_from([COMMIT, "acme/x", "goodfire", "saelens", "float32", "a\n", "../x", "{layer}", "con", 1e3]),
)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from(["repo", "path", "revision", "min", "name", "oops"]), inner, max_size=3),
    ),
    max_leaves=5,
)


def changed_somewhere(seed: int, value: Any) -> Any:
    """The document with one place replaced, removed, or with one key more."""
    chance, whole = random.Random(seed), document()
    place: Any = whole
    while True:
        key = chance.choice(sorted(place))
        if not isinstance(place[key], dict) or not place[key] or chance.random() < 0.2:
            break
        place = place[key]
    action = chance.randrange(3)
    if action == 0:
        place[key] = value
    elif action == 1:
        del place[key]
    else:
        place[chance.choice(["path", "revision", "train", "local", "oops", "for_each", "norm_scaling_factor"])] = value
    return whole


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**32), values)
def test_fast_checks_agree_with_jsonschema(seed: int, value: Any) -> None:
    changed = changed_somewhere(seed, value)
    assert FAST(changed) == SLOW.is_valid(changed)


@settings(max_examples=100, deadline=None)
@given(values)
def test_fast_checks_agree_on_for_each(value: Any) -> None:
    part = {**STRICT["properties"]["saes"]["properties"]["for_each"], "$defs": STRICT["$defs"]}
    for candidate in (value, {"layer": value}, [{"layer": value}], {"layer": [1], "except": value}, {"layer": [value, value]}):
        assert compile_schema(part)(candidate) == Draft202012Validator(part).is_valid(candidate)


def test_unknown_keywords_are_not_taken_for_fine() -> None:
    for bad in ({"not": {}}, {"type": "object", "propertyNames": {}}, {"enum": [1]}, {"uniqueItems": False}):
        with pytest.raises(ValueError, match="compiled"):
            compile_schema(bad)


@dataclass(frozen=True)
class Options:
    """One option of every kind."""

    k: int = field(metadata={"help": "K."})
    scale: float | None = field(default=None, metadata={"help": "S."})
    mode: Literal["a", "b"] = field(default="a", metadata={"help": "M."})
    flags: tuple[bool, ...] = field(default=(), metadata={"help": "F."})
    name: str = field(default="x", metadata={"help": "N."})


def test_options_become_keys() -> None:
    found = options_schema(Options)
    assert found["required"] == ["k"]
    assert found["properties"]["k"] == {"description": "K.", "type": "integer"}
    assert found["properties"]["scale"] == {"description": "S.", "type": "number"}
    assert found["properties"]["mode"] == {"description": "M.", "enum": ["a", "b"], "default": "a"}
    assert found["properties"]["flags"]["items"] == {"type": "boolean"}


def test_options_without_help_or_form_are_refused() -> None:
    @dataclass(frozen=True)
    class Silent:
        k: int = 1

    @dataclass(frozen=True)
    class Odd:
        k: object = field(default=None, metadata={"help": "K."})

    Silent.__annotations__["k"] = int
    Odd.__annotations__["k"] = object
    for bad in (Silent, Odd):
        with pytest.raises(TypeError):
            options_schema(bad)


def test_what_fitted_before_is_not_taken_for_what_does_not() -> None:
    """A mapping that fitted is not looked through again: only the very one, and no other that is alike or has another place."""
    part = {"type": "object", "properties": {"n": {"type": "integer"}}, "additionalProperties": False}
    check = compile_schema(
        {
            "type": "object",
            "properties": {"a": part, "b": {**part, "required": ["n"]}, "c": {"$ref": "#/$defs/c"}},
            "$defs": {"c": part},
        }
    )
    shared: dict[str, object] = {}
    assert check({"a": shared, "c": shared})
    assert check({"a": shared, "c": shared})
    assert not check({"a": shared, "b": shared})
    assert not check({"a": {"n": "x"}})
    assert check({"a": shared})
    assert not check({"a": None})
    assert not check({"a": 1, "c": shared})

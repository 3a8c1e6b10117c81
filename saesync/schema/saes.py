"""The section ``saes`` of a manifest as JSON Schema: the template of a release's SAEs, and what gives its placeholders values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from saesync.schema.parts import DTYPES, LATER, Schema, choice, count, one_of, ref, rule, section, templated, templated_all, text

Options = Mapping[str, tuple[str, Mapping[str, Any]]]  # format name -> (summary, schema of its options)

ARCHITECTURES = ["standard", "gated", "topk", "jumprelu", "batchtopk", "matryoshka_batchtopk"]


def saes(options: Options) -> Schema:
    """The template of the release's SAEs."""
    return section(
        "The SAEs: one, or with `for_each` one per combination of values. Texts here may hold placeholders (`{layer}`).",
        {
            "for_each": _for_each(),
            "id": templated(ref("saeId", "Name of the SAE in the release, and its folder where it is published.")),
            "hook": _hook(
                "Hook the SAE reads, in the loader's naming, such as `blocks.{layer}.hook_resid_post`. "
                "Only a release that does nothing but `register` may do without."
            ),
            "hook_out": _hook(
                "Hook whose activation a transcoder predicts, such as `blocks.{layer}.hook_mlp_out`; not for SAEs."
            ),
            "source": _source(options),
            "train": _train(),
            "dtype": templated(choice("Number type of the published weights.", DTYPES, "float32")),
            "cfg": section("Fields of SAELens's cfg.json that the source does not say, or says wrongly.", templated_all(_cfg())),
            "entry": section(
                "What the SAE's entry in the registry says beyond id and path; a placeholder that is null leaves its key out.",
                templated_all(_entry()),
            ),
        },
        required=["id"],
        oneOf=one_of("source", "train"),
    )


HOOK_NAME = {
    "maxLength": 200,
    **rule(r"^[A-Za-z][^\s{}]*$", "a hook's name begins with a letter, and has no spaces and no braces"),
}


def _hook(description: str) -> Schema:
    return templated({**text(description), **HOOK_NAME})


def _for_each() -> Schema:
    name = "^(?!except$)[A-Za-z_][A-Za-z0-9_]{0,31}$"
    value = {"$ref": "#/$defs/axisValue"}
    row = {
        "description": "One SAE: a value for every placeholder.",
        "type": "object",
        "patternProperties": {"^[A-Za-z_][A-Za-z0-9_]{0,31}$": value},
        "minProperties": 1,
        "additionalProperties": False,
    }
    return {
        "description": "Values of the placeholders. Axes multiply; a list of rows gives one SAE each.",
        "anyOf": [
            {"type": "array", "items": row, "minItems": 1},
            {
                "type": "object",
                "properties": {
                    "except": {
                        "description": "Combinations to leave out.",
                        "type": "array",
                        "items": row,
                        "minItems": 1,
                        "maxItems": 1000,
                    }
                },
                "patternProperties": {name: {"$ref": "#/$defs/axis"}},
                "minProperties": 1,
                "maxProperties": 17,
                "additionalProperties": False,
            },
        ],
    }


def _source(options: Options) -> Schema:
    base: Schema = {
        "repo": templated(ref("hubId", "Hub id of the repo that holds the weights; without it `path` is local.")),
        "revision": templated(ref("commit", "Commit hash of that repo; `saesync pin` fills it in.")),
        "path": templated(
            ref("localPath", "File or folder in the repo (left out, or `.`: its root), or local from the manifest's folder on.")
        ),
        "format": templated(
            choice(
                "Weight format; `saesync inspect` finds it. Its options stand beside it. A release that does nothing but "
                "`register` may name `register.conversion_func` instead.",
                sorted(options),
            )
        ),
    }
    any_option = {name: True for _, schema in options.values() for name in schema["properties"]}
    in_repo = {
        "if": {"required": ["repo"]},
        "then": {"properties": {"path": templated({"$ref": "#/$defs/hubPath"})}},
        "else": {"required": ["path"]},
    }
    return section(
        "Where the original weights are.",
        {**base, **any_option},
        dependentRequired={"revision": ["repo"]},
        allOf=[in_repo, *(_format_options(name, list(base), *each) for name, each in options.items())],
    )


def _format_options(name: str, base: list[str], summary: str, schema: Mapping[str, Any]) -> Schema:
    """Keys beside ``format: name``: its own options and no others."""
    properties = {**dict.fromkeys(base, True), **templated_all(schema["properties"])}
    then: Schema = {"description": summary, "properties": properties, "additionalProperties": False}
    if schema["required"]:
        then["required"] = list(schema["required"])
    return {"if": {"properties": {"format": {"const": name}}, "required": ["format"]}, "then": then}


def _train() -> Schema:
    keys = {
        "architecture": choice("Architecture to train.", ARCHITECTURES),
        "d_sae": count("Number of features.", most=10**9),
        "k": count("Active features per token, for the topk family.", most=10**9),
        "l1_coefficient": {"description": "Sparsity penalty of `standard` and `gated`.", "type": "number", "minimum": 0},
        "l0_coefficient": {"description": "Sparsity penalty of `jumprelu`.", "type": "number", "minimum": 0},
        "tokens": count("Tokens to train on."),
        "context": count("Tokens per sequence.", 2, 10**7),
        "batch_tokens": count("Tokens per optimiser step.", most=10**9),
        "lr": {"description": "Learning rate.", "type": "number", "exclusiveMinimum": 0},
        "seed": count("Random seed.", 0, 2**63 - 1),
    }
    return section(
        "Train the SAE with SAELens instead of taking it from a source." + LATER,
        {**templated_all(keys), "dataset": ref("dataset", "Text to train on.")},
        required=["architecture", "d_sae", "dataset", "tokens"],
    )


def _cfg() -> Schema:
    return {
        "apply_b_dec_to_input": {"description": "Subtract b_dec from the input before encoding.", "type": "boolean"},
        "normalize_activations": choice(
            "How activations are normalised before encoding.",
            ["none", "expected_average_only_in", "constant_norm_rescale", "layer_norm"],
        ),
        "reshape_activations": choice("How hook_z activations are reshaped.", ["none", "hook_z"]),
        "rescale_acts_by_decoder_norm": {"description": "Scale features by their decoder norms (topk).", "type": "boolean"},
    }


def _entry() -> Schema:
    return {
        "l0": {
            "description": "Mean number of features that are active per token, as its authors say.",
            "type": "number",
            "minimum": 0,
        },
        "variance_explained": {"description": "Explained variance, as its authors say.", "type": "number", "maximum": 1},
        "neuronpedia": {
            **text("Neuronpedia's id, `model/source`; in a release that only registers, where `neuronpedia:` does not make it."),
            **rule(r"^[^/\s{}]+/[^/\s{}]+$", "a Neuronpedia id is `model/source`: one slash, no spaces"),
        },
        "norm_scaling_factor": {
            "description": "Factor inputs are multiplied by, where the weights ask for one.",
            "type": "number",
            "exclusiveMinimum": 0,
        },
    }

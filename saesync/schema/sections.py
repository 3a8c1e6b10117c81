"""The sections of a manifest as JSON Schema. Every key has a description: it is the editor's hover and the docs' text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from saesync.measure.metrics import MetricDefinition
from saesync.schema.parts import (
    WINDOWS,
    Schema,
    choice,
    count,
    flag,
    hub_place,
    one_of,
    ref,
    rule,
    section,
    templated,
    templated_all,
    text,
)

Places = Mapping[str, tuple[str, bool]]  # target name -> (summary, whether it is the Hub)
Options = Mapping[str, tuple[str, Mapping[str, Any]]]  # format name -> (summary, schema of its options)

DTYPES = ["float32", "float16", "bfloat16"]
LOADERS = ["TransformerBridge", "HookedTransformer", "AutoModelForCausalLM"]
ARCHITECTURES = ["standard", "gated", "topk", "jumprelu", "batchtopk", "matryoshka_batchtopk"]
LOADERS_OF_SAELENS = [
    "connor_rob_hook_z", "deepseek_r1", "dictionary_learning_1", "gemma_2", "gemma_2_transcoder", "gemma_3", "goodfire",
    "llama_scope", "llama_scope_r1_distill", "mntss_clt_layer_transcoder", "mwhanna_transcoder", "qwen_scope", "sparsify",
    "temporal",
]  # fmt: skip
# What a manifest may be there for: it has at least one of these.
PURPOSES = (["publish"], ["register"], ["records", "validate"], ["dashboards"], ["neuronpedia"])
LATER = " Accepted and checked, but held in the plan: this version cannot do it yet."


def release() -> Schema:
    """The release's name."""
    return {
        "description": "Name of the release: what users pass to `SAE.from_pretrained`, and the name of its record.",
        "type": "string",
        "maxLength": 96,
        "allOf": [
            rule(
                "^[A-Za-z0-9][A-Za-z0-9._-]*$",
                "a release name has only letters, digits, `.`, `_` and `-`, and begins with a letter or a digit",
            ),
            rule(rf"^(?!{WINDOWS}(\.|$))", "Windows reserves this name (con, nul, com1 …)"),
        ],
    }


def model() -> Schema:
    """The language model."""
    processing = {
        "fold_ln": "Fold LayerNorm weights into the next layer.",
        "center_writing_weights": "Centre the weights that write to the residual stream.",
        "center_unembed": "Centre the unembedding.",
        "fold_value_biases": "Fold value biases into the output bias.",
        "refactor_factored_attn_matrices": "Refactor the attention matrices.",
    }
    kwargs = {name: {"description": text, "type": "boolean"} for name, text in processing.items()}
    return {
        **section(
            "The language model whose activations the SAEs read. It and its tokenizer are loaded at this very commit.",
            {
                "name": ref("hubId", "Hub id of the model."),
                "revision": ref("commit", "Commit hash of the model; `saesync pin` fills it in."),
                "path": ref("localPath", "A local Hugging Face model folder, from the manifest's folder on; instead of `name`."),
                "loader": choice("Class that loads it: hooks and weight processing differ.", LOADERS, LOADERS[0]),
                "dtype": choice("Number type the model runs in.", DTYPES, "float32"),
                "kwargs": section(
                    "Weight processing of TransformerLens that changes activations. "
                    "A flag that the source sets is refused until it is said here, true or false.",
                    kwargs,
                ),
            },
            oneOf=one_of("name", "path"),
            dependentRequired={"revision": ["name"]},
        ),
        "x-pin": "name",
    }


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


def _bounds(metric: MetricDefinition) -> Schema:
    """What may be asked of a metric: a bound that nothing can keep, such as 70 where a fraction is meant, is a mistake."""
    least, most = {"minimum": metric.least}, {"maximum": metric.most}
    bound = {
        "min": {"description": "At least this.", "type": "number", **(most if metric.most is not None else {})},
        "max": {"description": "At most this.", "type": "number", **(least if metric.least is not None else {})},
    }
    return section(metric.summary, bound, minProperties=1)


def validate(metrics: Mapping[str, MetricDefinition]) -> Schema:
    """How SAEs are measured, and what they must reach."""
    require = {name: _bounds(metric) for name, metric in metrics.items()}
    return section(
        "Measurement on the real model before anything is published. Without it nothing is measured, and plan and card say so.",
        {
            "dataset": ref("dataset", "Text to measure on."),
            "tokens": count("Tokens to measure on, in all."),
            "context": count(
                "Tokens per sequence, BOS included; cfg.json keeps those of training where the source says them.", 2, 10**7
            ),
            "prepend_bos": flag("Whether every sequence begins with the BOS token.", True),
            "require": section("Bounds an SAE must keep to be published.", require),
        },
        required=["dataset", "tokens", "context"],
    )


def _locations(places: Places) -> Schema:
    def place(summary: str, hub: bool) -> Schema:
        return hub_place(summary) if hub else ref("localPath", summary)

    return {name: place(f"{summary.rstrip('.')}.", hub) for name, (summary, hub) in places.items()}


def publish(places: Places) -> Schema:
    """Where the release goes."""
    return section(
        "Where the SAEs are published: exactly one target.",
        {
            **_locations(places),
            "license": {
                **text(
                    "License id as the Hub writes it, such as `mit`, `apache-2.0` or `gemma`. Replaces one written in the README "
                    "by hand; without it that one stays."
                ),
                **rule("^[a-z0-9][a-z0-9.+_-]*$", "a license id is in lower case, without spaces"),
            },
            "private": flag("Whether a Hub repo must be private. A public repo is never used for a private release.", False),
            "pull_request": flag(
                "Commit to one pull request of ours on the Hub, found again and updated, instead of the main branch. "
                "Needs no write access, and no tag is made.",
                False,
            ),
            "native": flag(
                "Where SAELens cannot express an SAE, publish its authors' own files under `native/`, untouched, with the reason "
                "in `refusal.json`. Only for safetensors, `.npz` and harmless torch files; what can be converted is converted.",
                False,
            ),
        },
        oneOf=one_of(*places),
    )


def records(places: Places) -> Schema:
    """Where evidence goes that cannot live beside the weights."""
    return section(
        "Where evidence lives that cannot live beside the weights: of somebody else's SAEs, and of SAEs that failed.",
        _locations(places),
        oneOf=one_of(*places),
    )


def register() -> Schema:
    """SAELens's registry."""
    return section(
        "Registration in SAELens's list of pretrained SAEs, by pull request.",
        {
            "saelens": {
                **text(
                    "The registry's GitHub repository (`owner/name`), any git repository by URL or path, or the path of a "
                    "registry file.",
                    500,
                ),
                **rule(
                    r"^([A-Za-z0-9_.-]+/[A-Za-z0-9_.-]+|https://[^\s@]+|ssh://[^\s:@]+@[^\s@]+|git@[^\s@]+|\.{0,2}/[^\s]*)$",
                    "a registry is `owner/name`, a git URL without credentials, or a path beginning with `./`, `../` or `/`",
                ),
            },
            "partial": flag("Register the SAEs that pass while others fail.", False),
            "conversion_func": {
                "description": "SAELens's loader of somebody else's files; null, or left out, where `format` says it.",
                "anyOf": [{"enum": LOADERS_OF_SAELENS}, {"type": "null"}],
            },
            "model": text("The registry's word for the model, where it is not `model.name`."),
            "links": {
                "description": "Links of the entry by name, such as `model`, `dashboards` or `publication`.",
                "type": "object",
                "patternProperties": {"": text("An address.", 2000)},
                "maxProperties": 100,
            },
            "config_overrides": {
                "description": "Fields of cfg.json that SAELens sets when it loads these SAEs.",
                "type": "object",
                "maxProperties": 100,
            },
        },
        required=["saelens"],
    )


def dashboards() -> Schema:
    """Feature dashboards."""
    return section(
        "Feature dashboards." + LATER,
        {
            "dataset": ref("dataset", "Text to find activating examples in."),
            "prompts": {**count("Number of sequences.", most=10**9), "default": 24576},
            "context": {**count("Tokens per sequence.", 2, 10**7), "default": 128},
        },
        required=["dataset"],
    )


def neuronpedia() -> Schema:
    """Names on Neuronpedia, and what is done there."""
    word = rule("^[A-Za-z0-9][A-Za-z0-9._-]*$", "has only letters, digits, `.`, `_` and `-`")
    export = rule(
        "^(s3://[a-z0-9][a-z0-9.-]+(/[^\\s]*)?|(?![a-z0-9]+://)[^\\u0000-\\u001f]+)$", "is a folder or an `s3://` address"
    )
    return section(
        "Names on Neuronpedia. The id of a source is `{model}/{layer}-{set}`, with the layer that the hook speaks of.",
        {
            "model": {**text("Neuronpedia's id of the model."), **word},
            "set": templated({**text("Name of the source set, such as `res-acme`; it may hold placeholders."), **word}),
            "postgres": section(
                "Import into a Neuronpedia database." + LATER,
                {"dsn_from": ref("variable", "Environment variable that holds the connection string.")},
                required=["dsn_from"],
            ),
            "export": {**text("Folder or `s3://` address for Neuronpedia's import files." + LATER, 1000), **export},
            "inference": flag("Serve the SAEs from the inference server." + LATER, False),
        },
        required=["model", "set"],
    )


def retire() -> Schema:
    """Deletion on request."""
    return flag("Delete what this release published: only files that are as its record says.", False)


def whole_manifest() -> list[Schema]:
    """What is needed depends on what is done: a release that does nothing but register asks for less.

    Its weights are never read, so that source and model may be unpinned, and hook and format unsaid.
    """
    uses_weights = {"anyOf": [{"required": [name]} for name in ("publish", "validate", "dashboards", "neuronpedia")]}
    pinned = {
        "properties": {
            "model": {"dependentRequired": {"name": ["revision"]}},
            "saes": {
                "required": ["hook"],
                "properties": {"source": {"dependentRequired": {"repo": ["revision"]}, "required": ["format"]}},
            },
        }
    }
    loader = {"properties": {"conversion_func": {"type": "string"}}, "required": ["conversion_func"]}
    loaded = {"properties": {"register": loader}, "required": ["register"]}
    formatted = {"properties": {"saes": {"properties": {"source": {"required": ["format"]}}}}}
    own = {"properties": dict.fromkeys(("repo", "revision", "path", "format"), True), "additionalProperties": False}
    without_options = {"properties": {"saes": {"properties": {"source": {"if": {"required": ["format"]}, "else": own}}}}}
    kept = {"anyOf": [{"required": [name]} for name in ("publish", "records")], "$comment": "for what `validate` finds"}
    return [
        {"if": uses_weights, "then": pinned},
        {"if": loaded, "then": without_options, "else": formatted},
        {"if": {"required": ["validate"]}, "then": kept},
    ]

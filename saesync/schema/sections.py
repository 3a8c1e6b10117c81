"""The sections of a manifest as JSON Schema. Every key has a description: it is the editor's hover and the docs' text."""

from __future__ import annotations

from collections.abc import Mapping

from saesync.measure.metrics import MetricDefinition
from saesync.schema.parts import (
    DTYPES,
    LATER,
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
    text,
)

Places = Mapping[str, tuple[str, bool]]  # target name -> (summary, whether it is the Hub)

LOADERS = ["TransformerBridge", "HookedTransformer", "AutoModelForCausalLM"]
LOADERS_OF_SAELENS = [
    "connor_rob_hook_z", "deepseek_r1", "dictionary_learning_1", "gemma_2", "gemma_2_transcoder", "gemma_3", "goodfire",
    "llama_scope", "llama_scope_r1_distill", "mntss_clt_layer_transcoder", "mwhanna_transcoder", "qwen_scope", "sparsify",
    "temporal",
]  # fmt: skip
# What a manifest may be there for: it has at least one of these.
PURPOSES = (["publish"], ["register"], ["records", "validate"], ["dashboards"], ["neuronpedia"])


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

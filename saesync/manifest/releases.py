"""From an expanded manifest to the frozen nouns of ``model``: what a release asks for, with the place of every value."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from saesync.errors import Diagnostic, ManifestError, Missing, Origin
from saesync.formats import saelens_loader
from saesync.hooks import layer_of
from saesync.manifest.check import Expanded, checks
from saesync.manifest.collisions import ONE_PER_PLACE
from saesync.manifest.paths import Bounds
from saesync.manifest.yaml12 import Node
from saesync.model import (
    DatasetSpec,
    ModelSpec,
    PublishSpec,
    RegisterSpec,
    Release,
    Requirement,
    Sae,
    SourceSpec,
    ValidateSpec,
)
from saesync.record import safe_folder

_LATER = (
    ("dashboards",),
    ("neuronpedia", "postgres"),
    ("neuronpedia", "export"),
    ("neuronpedia", "inference"),
)
_SOURCE_KEYS = frozenset({"repo", "revision", "path", "format"})
_NOT_A_TARGET = frozenset({"license", "private", "pull_request", "native"})


def release_of(manifest: Expanded, bounds: Bounds) -> tuple[Release, list[Diagnostic]]:
    """The release a manifest asks for, and everything that is wrong with it besides the schema: paths out of bounds,
    bounds that exclude each other, a hook without a layer where Neuronpedia needs one.

    Of a manifest that does not fit the schema it is what is left of one, to be compared with others and for nothing else.
    """
    maker = _Maker(manifest, bounds)
    release, said = maker.release(), {each.origin for each in manifest.wrong}
    return release, [each for each in maker.wrong.values() if each.origin not in said]


class _Maker:
    """Makes one release; what is wrong with it is collected in ``wrong``, each place once. Keys that the schema requires are
    missing only where a manifest does not fit it.
    """

    def __init__(self, manifest: Expanded, bounds: Bounds) -> None:
        self.manifest, self.bounds = manifest, bounds
        self.file, self.root, self.fixed = manifest.file, manifest.root, manifest.fixed
        self.wrong: dict[tuple[str, Origin | None], Diagnostic] = {}
        self.origins = MappingProxyType(_origins(self.root, self.file))

    def release(self) -> Release:
        model, validate = self._model(), self._validate()
        name, publish, records = self.fixed.get("release", self.file), self._place("publish"), self._place("records")
        saes = [self._sae(name, model, validate, section, set_) for _, section, set_ in self.manifest.saes]
        self._other_paths()
        register = self._register()
        retire = self.fixed.get("retire", False)
        named = tuple(sae for sae in saes if sae.id)
        return Release(name, self.file, publish, named, retire, records, self._later(), self.origins.get("release"), register)

    def _sae(self, release: str, model: ModelSpec, validate: ValidateSpec | None, section: Mapping[str, Any], set_: Any) -> Sae:
        train = section.get("train")
        id_ = section.get("id", "")
        if id_ and not safe_folder(id_):
            detail = "An id has no characters that cannot be seen, and no part of it begins or ends with a space."
            self._say("Invalid value", detail, self.origins["id"])
        return Sae(
            release,
            id_,
            section.get("hook", ""),
            model,
            self._source(section["source"]) if "source" in section else None,
            section.get("dtype", "float32"),
            validate,
            self.origins.get("id"),
            self._neuronpedia(section, set_),
            None if train is None else MappingProxyType(train),
            MappingProxyType(section.get("cfg", {})),
            MappingProxyType(section.get("entry", {})),
            origins=self.origins,
            hook_out=section.get("hook_out"),
        )

    def _source(self, section: Mapping[str, Any]) -> SourceSpec:
        repo, path = section.get("repo"), section.get("path", "")
        format_ = section.get("format", "")
        whole = _whole_options(format_)
        options = {name: int(value) if name in whole else value for name, value in section.items() if name not in _SOURCE_KEYS}
        path = _inside(path) if self._says("saes", "source", "repo") else self._local(path, "source.path")
        return SourceSpec(repo, section.get("revision"), path, format_, MappingProxyType(options))

    def _model(self) -> ModelSpec:
        section = self.fixed.get("model", {})
        path = section.get("path")
        if self._says("model", "path") and section.get("loader") == "HookedTransformer" and self._says("validate"):
            detail = (
                "HookedTransformer loads models by official names only, and `path` is a folder. "
                "Use `loader: TransformerBridge`, which loads any folder."
            )
            self._say("Loader does not fit", detail, self.origins["model.loader"])
        return ModelSpec(
            section.get("name"),
            None if path is None else self._local(path, "model.path"),
            section.get("revision"),
            section.get("loader", "TransformerBridge"),
            section.get("dtype", "float32"),
            MappingProxyType(section.get("kwargs", {})),
        )

    def _validate(self) -> ValidateSpec | None:
        section = self.fixed.get("validate")
        if section is None:
            return None
        dataset = section.get("dataset", {})
        path = dataset.get("path")
        return ValidateSpec(
            DatasetSpec(
                dataset.get("repo"),
                None if path is None else self._local(path, "validate.dataset.path"),
                dataset.get("revision"),
                dataset.get("config"),
                dataset.get("split", "train"),
                dataset.get("column", "text"),
            ),
            int(section.get("tokens", 1)),
            int(section.get("context", 1)),
            section.get("prepend_bos", True),
            self._requirements(section.get("require", {})),
        )

    def _requirements(self, section: Mapping[str, Mapping[str, float]]) -> tuple[Requirement, ...]:
        found = []
        for metric, bounds in section.items():
            places = {kind: self.origins[f"validate.require.{metric}.{kind}"] for kind in bounds}
            if "min" in bounds and "max" in bounds and bounds["min"] > bounds["max"]:
                detail = f"No {metric} is at least {bounds['min']} and at most {bounds['max']}. Swap or change them."
                self._say("Bounds exclude each other", detail, places["max"])
            found += [Requirement(metric, kind, float(bound), places[kind]) for kind, bound in bounds.items()]
        return tuple(found)

    def _place(self, name: str) -> PublishSpec | None:
        section = self.fixed.get(name)
        if section is None:
            return None
        target = next((key for key in section if key not in _NOT_A_TARGET), None)
        if target is None:
            return None
        location = section[target] if target == "huggingface" else self._local(section[target], f"{name}.{target}")
        proposed = section.get("pull_request", False)
        if proposed and target != "huggingface":
            detail = f"Only the Hub has pull requests; {name} goes to {target}. Remove pull_request."
            self._say("Target has no pull requests", detail, self.origins[f"{name}.pull_request"])
        if any((name, key) in self.manifest.cut for key in ONE_PER_PLACE):
            return None  # what it does not say well cannot be compared
        origin = self.origins[f"{name}.{target}"]
        private, native = section.get("private", False), section.get("native", False)
        return PublishSpec(target, location, section.get("license"), private, proposed, native, origin)

    def _register(self) -> RegisterSpec | None:
        section = self.fixed.get("register")
        if section is None:
            return None
        registry = section.get("saelens", "")
        if registry.startswith((".", "/")):
            registry = self._local(registry, "register.saelens")
        conversion_func = section.get("conversion_func")
        if not self._says("register", "conversion_func") and not self._says("publish"):
            conversion_func = self._loader()
        if conversion_func is not None and self._says("publish"):
            detail = (
                "What this release publishes is in SAELens's own layout, which it loads without a conversion_func. Remove "
                "the key; to register somebody else's repository as it is, remove `publish`."
            )
            self._say("Loader does not fit", detail, self.origins["register.conversion_func"])
        return RegisterSpec(
            registry,
            section.get("partial", False),
            conversion_func,
            section.get("model"),
            MappingProxyType(section.get("links", {})),
            MappingProxyType(section.get("config_overrides", {})),
            self.origins["register"],
        )

    def _loader(self) -> str | None:
        """SAELens's loader of somebody else's files, as their format says it."""
        named = {
            source.get("format", "") for _, section, _ in self.manifest.saes if (source := section.get("source")) is not None
        }
        try:
            return saelens_loader(named)
        except Missing as error:
            found = error.diagnostics[0]
            self._say(found.summary, found.detail, self.origins["register"])
            return None

    def _neuronpedia(self, sae: Mapping[str, Any], set_: Any) -> str | None:
        if set_ is None or "hook" not in sae:
            return None
        hook = sae["hook"]
        if "neuronpedia" in sae.get("entry", {}):
            detail = "The section `neuronpedia` says which id each SAE has there. Remove this key, or that section."
            self._say("Two Neuronpedia ids", detail, self.origins["entry.neuronpedia"])
        layer = layer_of(hook)
        if layer is None:
            detail = (
                f'Neuronpedia names SAEs by layer, and the hook "{hook}" speaks of none. Remove `neuronpedia`, or fix the hook.'
            )
            self._say("Hook has no layer", detail, self.origins["hook"])
            return None
        model = self.fixed["neuronpedia"].get("model")
        return None if model is None else f"{model}/{layer}-{set_}"

    def _other_paths(self) -> None:
        """Local paths of sections that are only carried along keep the same bounds."""
        for dotted in ("train.dataset.path", "dashboards.dataset.path", "neuronpedia.export"):
            path = ("saes", *dotted.split(".")) if dotted.startswith("train.") else tuple(dotted.split("."))
            node = self.root.get(*path)
            text = node.value if node is not None else None
            if not isinstance(text, str) or (dotted == "neuronpedia.export" and text.startswith("s3://")):
                continue
            self._local(text, dotted)

    def _later(self) -> tuple[tuple[str, Origin], ...]:
        """Sections that this version accepts and cannot carry out."""
        found = [("train", self.origins["train"])] if "train" in self.origins else []
        for path in _LATER:
            node = self.root.get(*path)
            if node is not None and node.value is not False:
                found.append((".".join(path), self.origins[".".join(path)]))
        return tuple(found)

    def _says(self, *path: str) -> bool:
        """Whether the manifest has a key, also one whose value does not fit."""
        return self.root.get(*path) is not None

    def _local(self, text: str, dotted: str) -> str:
        if dotted not in self.origins:
            return text  # the schema asks for it
        try:
            return self.bounds.resolve(text, self.origins[dotted])
        except ManifestError as error:
            for each in error.diagnostics:
                self._say(each.summary, each.detail, each.origin)
            return text

    def _say(self, summary: str, detail: str, origin: Origin | None) -> None:
        self.wrong.setdefault((summary, origin), Diagnostic(summary, detail, origin))


def _inside(path: str) -> str:
    """A path in a repo, "" for its root; `.` is the root, too, which needs a name where rows differ in their path."""
    return "" if path == "." else path.strip("/")


def _origins(root: Node, file: str) -> dict[str, Origin]:
    """Dotted keys to places: the value's own, or the key of a block mapping or list. ``saes.`` is left out."""
    found: dict[str, Origin] = {}

    def walk(node: Node, prefix: str) -> None:
        for key, below in node.value.items():
            shown = node.keys[key] if below.block else below
            found[f"{prefix}{key}"] = shown.origin(file)
            if isinstance(below.value, dict):
                walk(below, "" if not prefix and key == "saes" else f"{prefix}{key}.")

    walk(root, "")
    return found


@functools.cache
def _whole_options(format_: str) -> frozenset[str]:
    """Options of a format that are whole numbers: ``1e3`` is one, and means 1000 in keys."""
    source = checks().schema["properties"]["saes"]["properties"]["source"]
    for rule in source["allOf"]:
        if rule["if"].get("properties", {}).get("format") == {"const": format_}:
            properties = rule["then"]["properties"]
            return frozenset(name for name, part in properties.items() if part is not True and part.get("type") == "integer")
    return frozenset()

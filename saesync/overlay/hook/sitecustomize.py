"""Python runs this at its start when the folder is on PYTHONPATH: it waits for sae_lens and adds an overlay's releases.

It serves any Python that has sae_lens, whether or not it has saesync: standard library only, and PyYAML comes with sae_lens. A
program that never imports sae_lens pays for one entry in ``sys.meta_path``.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False  # importing typing would take longer than everything else here
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

VARIABLE, REPLACE = "SAESYNC_OVERLAY", "SAESYNC_OVERLAY_REPLACE"


def add(directory: dict[str, Any], lookup_class: Any, overlay: Mapping[str, Any], replace: bool = False) -> dict[str, Any]:
    """Put the releases of ``overlay`` (the file's mapping) into SAELens's directory; returns what stood there before, by name.

    ``lookup_class`` is SAELens's own class. A release that is there already, and the same, is left alone.

    Raises:
        ValueError: before anything is changed, for a release that is official, unless ``replace``; and for one that this
            version of SAELens could not load as asked.
    """
    lookups = {name: _lookup(lookup_class, name, entry) for name, entry in overlay.items()}
    new = {name: lookup for name, lookup in lookups.items() if directory.get(name) != lookup}
    if not replace:
        for name in sorted(set(new) & set(directory)):
            raise ValueError(f"{name} is a release of SAELens already, and would be another one")
    before = {name: directory.get(name) for name in new}
    directory.update(new)
    return before


def _lookup(lookup_class: Any, name: str, entry: Mapping[str, Any]) -> Any:
    saes = entry["saes"]
    factors = {sae["id"]: sae["norm_scaling_factor"] for sae in saes if "norm_scaling_factor" in sae}
    fields = {
        "release": name,
        "repo_id": entry["repo_id"],
        "model": entry["model"],
        "conversion_func": entry.get("conversion_func"),
        "saes_map": {sae["id"]: str(sae["path"]) for sae in saes},
        "expected_var_explained": {sae["id"]: sae.get("variance_explained", 1.0) for sae in saes},
        "expected_l0": {sae["id"]: sae.get("l0", 0.0) for sae in saes},
        "neuronpedia_id": {sae["id"]: sae.get("neuronpedia") for sae in saes},
        "norm_scaling_factor": factors,
        "config_overrides": entry.get("config_overrides"),
    }
    known = lookup_class.__dataclass_fields__
    if factors and "norm_scaling_factor" not in known:
        raise ValueError(f"{name} needs norm_scaling_factor, which this sae_lens takes from its own file only; upgrade it")
    return lookup_class(**{field: value for field, value in fields.items() if field in known})


def _extend(module: Any, path: str) -> None:
    """Add the overlay to the directory of SAELens's module; end the program with one message when that cannot be."""
    import yaml

    try:
        with open(path, encoding="utf-8") as stream:  # noqa: PTH123  pathlib is not worth its import here
            overlay = yaml.load(stream, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506 (a safe one)
        add(module.get_pretrained_saes_directory(), module.PretrainedSAELookup, overlay, bool(os.environ.get(REPLACE)))
    except OSError as error:
        raise SystemExit(f"error: the overlay {path} cannot be read: {error.strerror}.") from None
    except (KeyError, TypeError, AttributeError, yaml.YAMLError):
        raise SystemExit(f"error: {path} is no overlay. `saesync registry lint {path}` says where it is wrong.") from None
    except ValueError as error:
        raise SystemExit(f"error: the overlay {path} is refused: {error}.") from None


class _Finder:
    """Lets others find SAELens's directory module, and has the overlay added once that was executed."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        """A spec with a loader that adds the overlay afterwards; None for all other modules."""
        if not (name.startswith("sae_lens.") and name.endswith(".pretrained_saes_directory")):
            return None
        others = (finder for finder in sys.meta_path if finder is not self and hasattr(finder, "find_spec"))
        spec = next((spec for finder in others if (spec := finder.find_spec(name, path, target)) is not None), None)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module: Any) -> None:
                execute(module)
                _extend(module, os.environ[VARIABLE])

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]  # that is how it is hooked
        return spec


def _chain() -> None:
    """Run the sitecustomize that this one stands before."""
    from importlib.machinery import PathFinder
    from importlib.util import module_from_spec

    here = os.path.dirname(os.path.abspath(__file__))  # noqa: PTH100, PTH120  as above
    others = [entry for entry in sys.path if os.path.abspath(entry or os.curdir) != here]  # noqa: PTH100  as above
    spec = PathFinder.find_spec("sitecustomize", others)
    if spec is not None and spec.loader is not None:
        module = module_from_spec(spec)
        sys.modules["sitecustomize"] = module
        spec.loader.exec_module(module)


if __name__ == "sitecustomize":
    if os.environ.get(VARIABLE):
        sys.meta_path.insert(0, _Finder())
    _chain()

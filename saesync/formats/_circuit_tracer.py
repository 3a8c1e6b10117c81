"""What circuit-tracer's formats share: the config.yaml of a set, which names hooks and model for all of its layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

CONFIG = "config.yaml"


def hooks_and_model(config: Mapping[str, Any] | None, layer: int) -> dict[str, str]:
    """Hooks of one layer, and the model, as config.yaml names them."""
    if config is None:
        return {}
    found = {}
    for fact, key in (("hook", "feature_input_hook"), ("hook_out", "feature_output_hook")):
        if isinstance(config.get(key), str):
            found[fact] = f"blocks.{layer}.{config[key]}"
    if isinstance(config.get("model_name"), str):
        found["model"] = config["model_name"]
    return found

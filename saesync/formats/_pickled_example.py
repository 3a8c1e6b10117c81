"""Examples of unsafe pickles: a config object of a module that exists only while it is written."""

from __future__ import annotations

import gzip
import pickle
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def write(folder: Path, name: str, module: str, state: Mapping[str, torch.Tensor], cfg: Mapping[str, Any], variant: str) -> None:
    """``{"cfg": object, "state_dict": state}`` as torch.save's zip, or pickled and compressed (variant "gzip")."""
    import torch

    parent, made = ModuleType(module.partition(".")[0]), ModuleType(module)
    config = type("LanguageModelSAERunnerConfig", (), {"__module__": module})
    vars(made)["LanguageModelSAERunnerConfig"] = config
    value = config()
    vars(value).update(cfg, dtype=torch.float32, device=torch.device("cpu"))
    folder.mkdir(parents=True, exist_ok=True)
    temporary = {parent.__name__: parent, module: made}
    sys.modules.update(temporary)
    try:
        if variant == "gzip":
            with (folder / f"{name}.pkl.gz").open("wb") as stream, gzip.GzipFile("", "wb", fileobj=stream, mtime=0) as packed:
                packed.write(pickle.dumps({"cfg": value, "state_dict": dict(state)}))
        else:
            torch.save({"cfg": value, "state_dict": dict(state)}, folder / f"{name}.pt")
    finally:
        for name_ in temporary:
            del sys.modules[name_]

"""Which operations torch has kernels for on a device, as ATen's own list says: ``tests/pretend_device.py`` asks here."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any


@functools.cache
def _kernels() -> Mapping[str, tuple[frozenset[str], str | None]]:
    """Of every operation in ATen's list: the dispatch keys it has kernels for, and the operation it leaves the work to."""
    import yaml

    found = importlib.util.find_spec("torchgen")
    assert found is not None
    assert found.submodule_search_locations
    listed = Path(found.submodule_search_locations[0], "packaged", "ATen", "native", "native_functions.yaml").read_text()
    kernels = {}
    for entry in yaml.load(listed, getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
        delegate = entry.get("structured_delegate")
        plain = {} if delegate is not None else {"CompositeImplicitAutograd": ""}
        keys = {key.strip() for keys in entry.get("dispatch", plain) for key in keys.split(",")}
        made = {"CPU", "CUDA"} if "ufunc_inner_loop" in entry else set()
        kernels[entry["func"].partition("(")[0]] = frozenset(keys | made), delegate
    return kernels


def check_kernel(func: Any, kind: str) -> None:
    """As torch does where an operation was never written for a device."""
    name = func._schema.name.partition("::")[2]
    overload = func._schema.overload_name
    keys, delegate = _kernels().get(f"{name}.{overload}" if overload else name, (frozenset(), None))
    if delegate is not None:
        keys = keys | _kernels()[delegate][0]
    if not keys or kind.upper() in keys or any(key.startswith("Composite") for key in keys):
        return
    raise NotImplementedError(f"The operator 'aten::{name}' is not currently implemented for the {kind.upper()} device")

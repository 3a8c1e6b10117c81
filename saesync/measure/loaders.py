"""Which classes can hold a language model, and which of their options a manifest may set. No torch here.

The classes do not have the same hooks, and processing changes activations; so both stand in the measure_key. Flags that
are not given are off, as in SAELens, which loads models unprocessed.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from saesync.errors import Diagnostic

# Weight processing of TransformerLens: same logits, other activations.
PROCESSING = ("fold_ln", "center_writing_weights", "center_unembed", "fold_value_biases", "refactor_factored_attn_matrices")
_PROCESSING: Mapping[str, tuple[object, ...]] = MappingProxyType(dict.fromkeys(PROCESSING, (True, False)))
_ATTENTION: Mapping[str, tuple[object, ...]] = MappingProxyType({"attn_implementation": ("eager", "sdpa")})

LOADERS: Mapping[str, Mapping[str, tuple[object, ...]]] = MappingProxyType(
    {"TransformerBridge": _PROCESSING, "HookedTransformer": _PROCESSING, "AutoModelForCausalLM": _ATTENTION}
)
"""By loader: the kwargs it takes and the values each may have."""

DTYPES = ("float32", "float64", "bfloat16", "float16")


def check_loader(loader: str, dtype: str, kwargs: Mapping[str, object]) -> tuple[Diagnostic, ...]:
    """All that is wrong with a loader, its dtype and its kwargs; empty when nothing is."""
    if loader not in LOADERS:
        return (Diagnostic("Unknown model loader", f"{loader!r} is not one of {', '.join(LOADERS)}. Use one of these."),)
    found = []
    if dtype not in DTYPES:
        found.append(Diagnostic("Unknown dtype", f"{dtype!r} is not one of {', '.join(DTYPES)}. Use one of these."))
    allowed = LOADERS[loader]
    for name, value in kwargs.items():
        if name not in allowed:
            found.append(
                Diagnostic(
                    "Model option is not allowed",
                    f"{loader} does not take {name!r} from a manifest; it takes {', '.join(allowed)}. Remove it.",
                )
            )
        elif not any(value is option or (isinstance(option, str) and value == option) for option in allowed[name]):
            shown = ", ".join(str(option).lower() for option in allowed[name])
            found.append(Diagnostic("Model option has a wrong value", f"{name} is {value!r}; it may be {shown}."))
    return tuple(found)

"""Does an SAE fit the model at its hook? Asked on a few tokens before anything is measured, and answered in full sentences."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

import torch

from saesync.errors import Diagnostic
from saesync.measure.devices import out_of_memory
from saesync.measure.passes import LanguageModel, Seen, layer_of
from saesync.measure.reasons import reason
from saesync.measure.saes import LoadedSae
from saesync.measure.statistics import Firing

_APPLY_ERRORS = (RuntimeError, ValueError, IndexError, TypeError, AttributeError)


def unknown_hook(model: LanguageModel, hook: str, key: str = "hook") -> Diagnostic:
    """The model has no hook of that name, which stands under ``key`` in the manifest."""
    near = difflib.get_close_matches(hook, model.points, n=3, cutoff=0.6)
    loader = type(model.module).__name__
    hint = (
        f"Did you mean {' or '.join(repr(name) for name in near)}?" if near else f"Hooks of {loader} look like {_sample(model)}."
    )
    layer, layers = layer_of(hook), len(model.blocks)
    if layer is not None and layer >= layers > 0:
        hint = f"The model has layers 0 to {layers - 1}. Correct `hook`."
    return Diagnostic("Hook does not exist", f"The model ({loader}) has no hook {hook!r}. {hint}", key=key)


def misfit(model: LanguageModel, sae: LoadedSae, tokens: torch.Tensor, seen: Seen, dense: int) -> Diagnostic | None:
    """Why the SAE cannot be measured at its site, tried on ``tokens [1, ctx]`` and what a clean pass of them left."""
    raw = seen.hooks.get(sae.site.hook)
    if raw is None:
        return Diagnostic(
            "Hook never fires",
            f"The hook {sae.site.hook!r} exists, but the model as it is loaded gives no tensor there "
            "(TransformerLens keeps some inputs switched off). Use the hook of the module before it.",
            key="hook",
        )
    try:
        x = sae.site.read(raw)
    except IndexError:
        return Diagnostic(
            "Attention head does not exist",
            f"metadata.hook_head_index is {sae.site.head}, but {sae.site.hook!r} gives a tensor of shape "
            f"{list(raw.shape)}. Correct the metadata.",
        )
    if x.ndim != 3 or x.shape[-1] != sae.d_in:
        return _wrong_width(model, sae, tokens, x)
    try:
        together = torch.zeros_like(tokens, dtype=torch.int32)
        output = sae.coded(x, together, dense, Firing.never(sae.d_sae, x.device)).output
    except _APPLY_ERRORS as error:
        if out_of_memory(error):
            raise
        return Diagnostic("SAE cannot be applied", f"SAELens cannot run it on {sae.site.hook!r}: {reason(error)}.")
    return _wrong_output(sae, seen, output)


def _wrong_output(sae: LoadedSae, seen: Seen, output: torch.Tensor) -> Diagnostic | None:
    """Why the output cannot be compared with, and put in place of, what the model has at the target."""
    hook, read = sae.target.hook, sae.site.hook
    before = layer_of(hook), layer_of(read)
    if None not in before and before[0] < before[1]:  # type: ignore[operator]  # both are numbers
        detail = f"hook_out {hook!r} comes before the hook {read!r} that it would be predicted from."
        return Diagnostic("Hooks are in the wrong order", f"{detail} Correct `hook_out`.", key="hook_out")
    try:
        y = sae.target.read(seen.hooks[hook])
    except KeyError:
        detail = f"The hook_out {hook!r} exists, but the model as it is loaded gives no tensor there."
        return Diagnostic(
            "Hook never fires", f"{detail} Use the hook of the module whose output the transcoder predicts.", key="hook_out"
        )
    except IndexError:
        detail = f"metadata.hook_head_index_out is {sae.target.head}, but {hook!r} has no such head."
        return Diagnostic("Attention head does not exist", f"{detail} Correct the metadata.")
    if output.shape != y.shape:
        shapes = f"{output.shape[-1]} numbers for an activation of {y.shape[-1]} at {hook!r}"
        return Diagnostic("SAE cannot be applied", f"It reconstructs {shapes}; these must be equal.")
    return None


def _wrong_width(model: LanguageModel, sae: LoadedSae, tokens: torch.Tensor, x: torch.Tensor) -> Diagnostic:
    fitting = [name for name in _widths(model, tokens, sae.d_in) if name != sae.site.hook]
    layer = layer_of(sae.site.hook)
    fitting.sort(key=lambda name: (layer_of(name) != layer, -_likeness(name, sae.site.hook)))
    hint = (
        f"Hooks with {sae.d_in}: {', '.join(fitting[:3])}."
        if fitting
        else "No hook of this model has that width: is it the right model?"
    )
    given = str(x.shape[-1]) if x.ndim == 3 else f"a tensor of shape {list(x.shape)} for tokens {list(tokens.shape)}"
    return Diagnostic(
        "Width does not fit the hook",
        f"The SAE reads d_in {sae.d_in} numbers per token, but {sae.site.hook!r} gives {given}. {hint}",
        key="hook",
    )


def _widths(model: LanguageModel, tokens: torch.Tensor, width: int) -> Sequence[str]:
    """Hooks whose activations an SAE with that ``d_in`` could read."""
    _, seen = model.clean(tokens, frozenset(model.points))
    joined = {name: raw.shape[2:].numel() for name, raw in seen.hooks.items() if isinstance(raw, torch.Tensor) and raw.ndim >= 3}
    return [name for name, found in joined.items() if found == width]


def _likeness(a: str, b: str) -> float:
    return difflib.SequenceMatcher(None, a, b).ratio()


def _sample(model: LanguageModel) -> str:
    middle = [name for name in model.points if layer_of(name) == len(model.blocks) // 2]
    best = [name for name in middle if name.endswith("resid_post")] or middle or list(model.points)
    return repr(best[0]) if best else "none at all"

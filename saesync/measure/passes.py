"""Forward passes: clean ones that keep what is needed, and changed ones that skip every block before the change.

A changed pass differs from the clean one only from the hook on. So the blocks before it are not run again: while it lasts,
they hand on the activation that the clean pass had there. This works alike for the three loaders (TransformerLens's own
``start_at_layer`` exists in HookedTransformer only). It is not taken on trust: before the first use at a hook, a made-up change
there must give the logits that it gives when the whole model is run; where it does not (models whose blocks share more than the
residual stream; hooks that hold the residual stream but are read by one part of a block only), the whole model is run.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Self

import torch

from saesync.errors import Refused
from saesync.measure.devices import device_fails, out_of_memory
from saesync.measure.reasons import reason

_LEVEL = 1_000_000  # context level of our hooks, so that removing them leaves all others
_LAYER = re.compile(r"\.(\d+)(?:\.|$)")
_MODEL_ERRORS = (RuntimeError, TypeError, ValueError, AttributeError, IndexError, KeyError, AssertionError)
Change = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True, slots=True)
class Route:
    """How to change one hook: blocks before ``start`` are skipped; ``direct`` says that the hook is the output of block
    ``start - 1``, which is then given as changed, without a hook. ``arity`` is the length of the tuple that blocks return
    (0: a bare tensor)."""

    start: int = 0
    direct: bool = False
    arity: int = 0


@dataclass(frozen=True, slots=True)
class Seen:
    """What a clean pass left: activations by hook as the hook sees them, and what blocks returned (a tensor, or a tuple that
    begins with it)."""

    hooks: Mapping[str, torch.Tensor]
    blocks: Mapping[int, Any]


@dataclass(frozen=True)
class LanguageModel:
    """A loaded model. ``module`` is what SAELens would use; ``points`` are its hooks by name.

    ``vocab`` is the number of token ids it embeds, ``longest`` the tokens it can read at once (None: unlimited). ``overwritten``
    are the hooks and blocks found so far whose tensors do not stay what they were.
    """

    module: Any
    device: torch.device
    points: Mapping[str, Any]
    blocks: tuple[torch.nn.Module, ...]
    vocab: int
    longest: int | None
    overwritten: set[str | int] = field(default_factory=set)

    @classmethod
    def of(cls, module: Any, config: Any, device: torch.device) -> Self:
        """Wrap a TransformerBridge, HookedTransformer or HookedProxyLM; ``config`` is the Hugging Face text config."""
        inner: Any = getattr(module, "original_model", None) or getattr(module, "model", None)
        if hasattr(getattr(inner, "config", None), "use_cache"):
            inner.config.use_cache = False  # keys and values of past tokens are of no use here
        blocks = getattr(module, "blocks", None)
        if blocks is None:
            blocks = _layers(inner, getattr(config, "num_hidden_layers", 0))
        lengths = [
            length
            for length in (getattr(config, "max_position_embeddings", None), getattr(getattr(module, "cfg", None), "n_ctx", None))
            if isinstance(length, int) and length > 0
        ]
        return cls(module, device, dict(module.hook_dict), tuple(blocks), int(config.vocab_size), min(lengths, default=None))

    @property
    def tokenizer(self) -> Any:
        """The tokenizer as the loader set it up."""
        return self.module.tokenizer

    def token_ids(self, text: str) -> list[int]:
        """Token ids of a text without what a tokenizer adds at its ends: what TransformerLens gives SAELens's ActivationsStore.

        (HookedProxyLM leaves BOS there where a post-processor adds it, as Llama 3's does, and EOS.)
        """
        found = self.tokenizer(text, add_special_tokens=False, truncation=False)["input_ids"]
        return [int(token) for token in found]

    def clean(
        self, tokens: torch.Tensor, hooks: frozenset[str], blocks: frozenset[int] = frozenset()
    ) -> tuple[torch.Tensor, Seen]:
        """Run ``tokens [batch, ctx]``: logits ``[batch, ctx, vocab]``, activations at ``hooks`` and outputs of ``blocks``.

        A hook that does not fire is absent from the result. Some models write over an activation after its hook saw it (Falcon
        adds the attention's output to the MLP's in place): a pass that finds this out is run again with copies.

        Raises:
            Refused: the model itself fails (OLMo 2 in bfloat16 mixes dtypes in TransformerBridge 3.9).
        """
        logits, seen, spoilt = self._kept(tokens, hooks, blocks)
        if spoilt:
            self.overwritten.update(spoilt)
            del logits, seen  # their memory is needed now
            logits, seen, _ = self._kept(tokens, hooks, blocks)
        return logits, seen

    def _kept(
        self, tokens: torch.Tensor, hooks: frozenset[str], blocks: frozenset[int]
    ) -> tuple[torch.Tensor, Seen, frozenset[str | int]]:
        """A clean pass, and the hooks and blocks whose tensors were written over before it ended."""
        kept: dict[str, torch.Tensor] = {}
        outputs: dict[int, Any] = {}
        versions: dict[str | int, tuple[torch.Tensor, int]] = {}

        def held(key: str | int, value: Any) -> Any:
            first: Any = _first(value)
            if not isinstance(first, torch.Tensor):
                return value
            if key in self.overwritten:
                return (first.clone(), *value[1:]) if isinstance(value, tuple) else first.clone()
            versions[key] = first, first._version
            return value

        def keep(name: str) -> Callable[..., None]:
            def hook_fn(value: torch.Tensor, hook: Any = None) -> None:
                kept[name] = held(name, value)

            return hook_fn

        handles = [
            self.blocks[index].register_forward_hook(lambda _m, _i, out, index=index: outputs.update({index: held(index, out)}))
            for index in blocks
        ]
        try:
            with self._hooked({name: keep(name) for name in hooks}):
                logits = self._logits(tokens)
        except _MODEL_ERRORS as error:
            if out_of_memory(error) or device_fails(error):
                raise
            detail = f"As it was loaded, the model fails on tokens: {reason(error)}. Use another `loader`, or `dtype: float32`."
            raise Refused("Model cannot be run", detail) from error
        finally:
            for handle in handles:
                handle.remove()
        return logits, Seen(kept, outputs), frozenset(key for key, (tensor, at) in versions.items() if tensor._version != at)

    def changed(self, tokens: torch.Tensor, hook: str, route: Route, change: Change, seen: Seen) -> torch.Tensor:
        """Logits ``[batch, ctx, vocab]`` with the activation at ``hook`` replaced by ``change`` of it.

        ``seen`` is of a clean pass of the same tokens that kept ``hook`` and, for a route with ``start``, block ``start - 1``.
        """
        if route.direct:
            entry = change(seen.hooks[hook])
            with self._skipping(route, entry):
                return self._logits(tokens)

        def hook_fn(value: torch.Tensor, hook: Any = None) -> torch.Tensor:
            return change(value)

        with self._hooked({hook: hook_fn}):
            if route.start == 0:
                return self._logits(tokens)
            before: torch.Tensor = _first(seen.blocks[route.start - 1])
            with self._skipping(route, before.clone() if route.start - 1 in self.overwritten else before):
                return self._logits(tokens)

    def routes(self, tokens: torch.Tensor, hooks: frozenset[str]) -> dict[str, Route]:
        """The shortest proven route to each of ``hooks`` that fires, tried out on ``tokens [batch, ctx]``."""
        near = frozenset(
            index
            for hook in hooks
            for layer in [layer_of(hook)]
            if layer is not None
            for index in (layer - 1, layer)
            if 0 <= index < len(self.blocks)
        )
        _, seen = self.clean(tokens, hooks, near)
        return {hook: self._route(tokens, hook, seen) for hook in hooks if hook in seen.hooks}

    def _route(self, tokens: torch.Tensor, hook: str, seen: Seen) -> Route:
        layer, value = layer_of(hook), seen.hooks[hook]
        candidates = []
        if layer is not None:
            plain = getattr(self.points[hook], "hook_conversion", None) is None
            same = [index for index, out in seen.blocks.items() if plain and _same_tensor(_first(out), value)]
            candidates = [Route(index + 1, direct=True, arity=_arity(seen.blocks[index])) for index in same]
            if layer - 1 in seen.blocks:
                candidates.append(Route(layer, arity=_arity(seen.blocks[layer - 1])))
        if not candidates or not value.is_floating_point():
            return Route()
        whole = self.changed(tokens, hook, Route(), _made_up, seen)
        for route in candidates:
            try:
                short = self.changed(tokens, hook, route, _made_up, seen)
            except _MODEL_ERRORS as error:
                if out_of_memory(error):
                    raise
                continue
            if short.shape == whole.shape and torch.allclose(short, whole, rtol=1e-4, atol=1e-5 * float(whole.abs().max())):
                return route
        return Route()

    def _logits(self, tokens: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.module(tokens, return_type="logits")
        return logits

    @contextmanager
    def _hooked(self, functions: Mapping[str, Callable[..., Any]]) -> Iterator[None]:
        try:
            for name, function in functions.items():
                self.points[name].add_hook(function, level=_LEVEL)
            yield
        finally:
            for name in functions:
                self.points[name].remove_hooks(level=_LEVEL)

    @contextmanager
    def _skipping(self, route: Route, entry: torch.Tensor) -> Iterator[None]:
        """While it lasts, the route's skipped blocks are not run; each returns ``entry`` in the form blocks return."""
        skipped = self.blocks[: route.start]
        output = (entry, *[None] * (route.arity - 1)) if route.arity else entry
        own = [block.__dict__.get("forward") for block in skipped]  # accelerate, for one, replaces forward per instance
        for block in skipped:
            block.__dict__["forward"] = _constant(output)
        try:
            yield
        finally:
            for block, forward in zip(skipped, own, strict=True):
                if forward is None:
                    del block.__dict__["forward"]
                else:
                    block.__dict__["forward"] = forward


def layer_of(hook: str) -> int | None:
    """The layer number in a hook's name, as SAELens reads it: the first ``.<int>`` segment."""
    found = _LAYER.search(hook)
    return None if found is None else int(found.group(1))


def _made_up(x: torch.Tensor) -> torch.Tensor:
    """A change that matters and keeps the activation's scale: every position gets half of the position before it."""
    return x.roll(1, dims=1) * 0.5


def _constant(output: Any) -> Callable[..., Any]:
    def forward(*_args: Any, **_kwargs: Any) -> Any:
        return output

    return forward


def _first(output: Any) -> torch.Tensor:
    found: torch.Tensor = output[0] if isinstance(output, tuple) else output
    return found


def _arity(output: Any) -> int:
    return len(output) if isinstance(output, tuple) else 0


def _same_tensor(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.shape == b.shape and a.data_ptr() == b.data_ptr() and a.stride() == b.stride()


def _layers(module: Any, count: int) -> tuple[torch.nn.Module, ...]:
    """The decoder blocks of a Hugging Face model: its first list of that many modules."""
    for child in module.modules():
        if isinstance(child, torch.nn.ModuleList) and len(child) == count:
            return tuple(child)
    return ()

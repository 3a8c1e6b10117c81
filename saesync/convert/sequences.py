"""What a proof needs for SAEs whose features depend on the tokens before: sequences of rows, two checks of that dependence,
and the reach of rounding through attention.

Rows are cut into sequences; both sides get the same ones. Where a sequence has rows of ordinary size and others, the ordinary
ones come first, so that they are a sequence of their own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from saesync.convert.rows import SEED, WHO_LOOKS
from saesync.convert.stock import Stock
from saesync.errors import ProofFailed

if TYPE_CHECKING:
    import torch

LENGTH = 64  # tokens of a sequence: attention has something to choose from, and there is more than one beginning
_DRAWS = 3


def coupling(stock: Stock, x: torch.Tensor) -> float:
    """How far features of a sequence change with another one beside it, or with the tokens after them: not at all, if users may
    batch and cut their text as they like. Relative to the row's largest feature."""
    import torch

    length = min(LENGTH, len(x) // 2)
    one, two, half = x[:length], x[length : 2 * length], length // 2
    alone = stock.encode(one)
    beside = stock.encode(torch.stack([one, two]))[0]
    followed = stock.encode(torch.cat([one[:half], two[half:]]))[:half]
    largest = alone.abs().amax(dim=1, keepdim=True)
    scale = largest.clamp(min=max(1e-6 * largest.max().item(), 1e-300))  # a row without features has rounding errors, too
    differences = torch.cat([(beside - alone).abs() / scale, (followed - alone[:half]).abs() / scale[:half]])
    worst: float = differences.max().item()
    return worst


def require_context(stock: Stock, x: torch.Tensor) -> None:
    """What a sequential SAE predicts from the tokens before must have been part of what was compared.

    Raises:
        ProofFailed: without them, all features are the same.
    """
    rows = x[:LENGTH]
    if stock.sequential and bool((stock.encode(rows[:, None])[:, 0] == stock.encode(rows)).all()):
        raise ProofFailed(
            "Needs real activations",
            "On random rows this SAE's features do not depend on the tokens before, so that its attention is not proved: that "
            f"needs activations of the model. {WHO_LOOKS}",
        )


def reach(stock: Stock, x: torch.Tensor, epsilon: float) -> torch.Tensor:
    """How far rounding of size ``epsilon`` in what comes before the encoder moves its input, ``[n]``, per row of a sequence.

    Tried, not bounded: attention may magnify or hide it. Inputs and the result of each product in attention are disturbed at
    random by as much as rounding their factors would; of the move, each feature shows its part along its own direction.
    """
    import torch

    generator = torch.Generator().manual_seed(SEED)
    widths = stock.column_norms().clamp(min=1e-300)
    still = stock.pre_activations(x)
    moves = []
    for _ in range(_DRAWS):
        noise = torch.randn(x.shape, generator=generator, dtype=torch.float64)
        with _disturbed(stock.sae.attn_layers, epsilon, generator):
            moved = stock.pre_activations(x * (1 + epsilon * noise))
        moves.append(((moved - still).abs() / widths).amax(dim=1))
    return torch.stack(moves).amax(dim=0)


@contextmanager
def _disturbed(layers: Any, epsilon: float, generator: torch.Generator) -> Iterator[None]:
    """While it lasts, every linear map in ``layers`` errs by about ``epsilon |x| |w|``."""
    import torch

    def disturb(module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        noise = torch.randn(output.shape, generator=generator, dtype=output.dtype)
        size: torch.Tensor = inputs[0].norm(dim=-1, keepdim=True) * module.weight.norm(dim=1)
        return output + epsilon * noise * size

    with ExitStack() as stack:
        for module in layers.modules():
            if isinstance(module, torch.nn.Linear):
                stack.callback(module.register_forward_hook(disturb).remove)
        yield

"""What turns the student's tokens into one target's vectors.

Every head ends in a linear layer with a bias, called ``last``, so that the inverse normalizer can
be folded into it.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from phistill import plugins
from phistill.errors import UsageError


class MlpHead(nn.Module):
    """RADIO's "MLP v2": Linear, a residual block (LN, GELU, Linear), LN, GELU, Linear.

    (..., d) -> (..., c) through a hidden width (1520 in the paper).
    """

    def __init__(self, d: int, width: int, c: int) -> None:
        super().__init__()
        self.first = nn.Linear(d, width)
        self.block = nn.Sequential(nn.LayerNorm(width), nn.GELU(), nn.Linear(width, width))
        self.before_last = nn.Sequential(nn.LayerNorm(width), nn.GELU())
        self.last = nn.Linear(width, c)

    def forward(self, x: Float[Tensor, "... d"]) -> Float[Tensor, "... c"]:
        x = self.first(x)
        x = x + self.block(x)
        return self.last(self.before_last(x))


class LinearHead(nn.Module):
    """One linear layer."""

    def __init__(self, d: int, width: int, c: int) -> None:
        super().__init__()
        self.last = nn.Linear(d, c)

    def forward(self, x: Float[Tensor, "... d"]) -> Float[Tensor, "... c"]:
        return self.last(x)


def make_head(name: str, d: int, width: int, c: int) -> nn.Module:
    """A head by its name in TrainConfig; a plug-in is called as ``function(d, width, c)``."""
    if name == "mlp":
        return MlpHead(d, width, c)
    if name == "linear":
        return LinearHead(d, width, c)
    head = plugins.load(name, "head")(d, width, c)
    last = getattr(head, "last", None)
    if not (isinstance(head, nn.Module) and isinstance(last, nn.Linear) and last.bias is not None):
        raise UsageError(
            f"head={name!r} must return a torch module whose attribute `last` is its final "
            "nn.Linear with a bias; the inverse normalizer is folded into it."
        )
    if last.out_features != c:
        raise UsageError(f"head={name!r} ends in {last.out_features} channels; asked for {c}.")
    return head

"""What a teacher must do: four methods, the same for ours and for a user's own.

A plug-in is a function ``build(model, options) -> Teacher`` named by an entry point in the group
``phistill.teachers`` (its name is the SOURCE of ``SOURCE:MODEL``), or written as
``module:package.module:function`` on the command line.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Protocol

from jaxtyping import Float

from phistill.errors import UsageError

if TYPE_CHECKING:
    import torch

INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos")


@dataclass(frozen=True, kw_only=True, slots=True)
class Preprocessing:
    """How a view becomes a teacher's input: resize to ``size``, scale to [0, 1], normalise."""

    size: tuple[int, int]
    """(height, width) in pixels."""
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str = "bicubic"

    def __post_init__(self) -> None:
        if self.interpolation not in INTERPOLATIONS:
            raise UsageError(
                f"interpolation={self.interpolation!r} is not known; "
                f"choose one of {', '.join(INTERPOLATIONS)}."
            )
        if min(self.size) < 1 or min(self.std) <= 0:
            raise UsageError(f"size={self.size} and std={self.std} must be positive.")

    def to_dict(self) -> dict[str, Any]:
        record = asdict(self)
        return {key: list(v) if isinstance(v, tuple) else v for key, v in record.items()}


@dataclass(frozen=True, slots=True)
class Features:
    """One forward pass of a teacher over b images."""

    patches: Float[torch.Tensor, "b h w c"]
    """Spatial tokens, class and register tokens left out."""
    summary: Float[torch.Tensor, "b d"] | None = None
    registers: Float[torch.Tensor, "b g c"] | None = None


class Teacher(Protocol):
    """A frozen vision model."""

    def identity(self) -> Mapping[str, Any]:
        """What makes its features comparable: source, model, revision, sha256 of the weights, layer
        and options. JSON values. A change in any of them is another teacher."""
        ...

    def preprocessing(self) -> Preprocessing:
        """Size, mean, std and interpolation of its input."""
        ...

    def to(self, device: torch.device) -> None:
        """Move the weights."""
        ...

    def features(self, images: Float[torch.Tensor, "b 3 h w"]) -> Features:
        """Features of normalised float32 images, on the device they are on. Called without
        gradients; the result may be in any floating dtype."""
        ...

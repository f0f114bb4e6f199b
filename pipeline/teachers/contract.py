"""What a teacher must do: four methods, the same for ours and for a user's own.

A plug-in is a function ``build(model, options) -> Teacher`` named by an entry point in the group
``phistill.teachers`` (its name is the SOURCE of ``SOURCE:MODEL``), or written as
``module:package.module:function`` on the command line.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from jaxtyping import Float

from phistill.errors import TeacherError, UsageError

if TYPE_CHECKING:
    import torch

METHODS = ("identity", "preprocessing", "to", "features")
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

    def by_kind(self) -> dict[str, torch.Tensor]:
        """patches (b, h * w, c), and summary and registers where there are any."""
        kinds = {"patches": self.patches.flatten(1, 2)}
        if self.summary is not None:
            kinds["summary"] = self.summary
        if self.registers is not None:
            kinds["registers"] = self.registers
        return kinds


class Teacher(ABC):
    """A frozen vision model: four methods, and what has a default."""

    licence: str | None = None
    """Of the weights, where it is known."""
    notes: tuple[str, ...] = ()
    """Worth knowing of how it was built; ``check-teacher`` shows them."""

    @abstractmethod
    def identity(self) -> Mapping[str, Any]:
        """What makes its features comparable: source, model, revision, sha256 of the weights, layer
        and options. JSON values. A change in any of them is another teacher."""

    @abstractmethod
    def preprocessing(self) -> Preprocessing:
        """Size, mean, std and interpolation of its input."""

    @abstractmethod
    def to(self, device: torch.device) -> None:
        """Move the weights."""

    @abstractmethod
    def features(self, images: Float[torch.Tensor, "b 3 h w"]) -> Features:
        """Features of normalised float32 images, on the device they are on. Called without
        gradients; the result may be in any floating dtype."""

    def text_features(self, texts: Sequence[str]) -> Float[torch.Tensor, "n d"]:
        """Texts in the space of the summaries, float32 on the CPU, L2-normalised; TeacherError
        where the model has no text tower."""
        raise TeacherError("the model has no text tower.")

    def let_text_go(self) -> None:  # noqa: B027
        """Free what only ``text_features`` needs: images alone are coming."""

    def shares_forward(self, other: Teacher) -> bool:
        """Whether ``features_together`` of both needs one forward pass: layers of one model."""
        return False

    def features_together(
        self, teachers: Sequence[Teacher], images: Float[torch.Tensor, "b 3 h w"]
    ) -> list[Features]:
        """Features of each of ``teachers``, of which this one is the first and shares its forward
        pass with all others."""
        return [teacher.features(images) for teacher in teachers]


class FourMethods(Teacher):
    """A teacher of a user's own that has the four methods and does not derive from Teacher."""

    def __init__(self, own: Any) -> None:
        missing = [name for name in METHODS if not callable(getattr(own, name, None))]
        if missing:
            raise TeacherError(
                f"{type(own).__name__} is no teacher: it has no {', '.join(missing)}. Derive it "
                "from phistill.pipeline.Teacher, and return it from build."
            )
        self._own = own
        self.licence = getattr(own, "licence", None)

    def identity(self) -> Mapping[str, Any]:
        return self._own.identity()

    def preprocessing(self) -> Preprocessing:
        return self._own.preprocessing()

    def to(self, device: torch.device) -> None:
        self._own.to(device)

    def features(self, images: Float[torch.Tensor, "b 3 h w"]) -> Features:
        return self._own.features(images)

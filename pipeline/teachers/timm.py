"""Teachers from timm: any backbone with a token grid or a feature map."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary, WeakValueDictionary

from jaxtyping import Float

from phistill.compute.seeds import seeded
from phistill.errors import TeacherError, UsageError

from .contract import Features, Preprocessing, Teacher
from .models.token_layout import depth_of, patch_of, tokens_of_layers
from .models.weights import WeightOptions, cast, parameter_dtype, weights_sha256
from .options import OF_SOURCE, boolean, integer, require_whole_patches, size_of, take_options

if TYPE_CHECKING:
    import torch
    from torch import nn

SUMMARIES = ("head", "mean", "none")
_BUILT: WeakValueDictionary[tuple[Any, ...], nn.Module] = WeakValueDictionary()
"""Models that a teacher still holds: several layers of one model are several teachers, and its
weights are in memory once."""
_NOTES: WeakKeyDictionary[nn.Module, tuple[str, ...]] = WeakKeyDictionary()
"""What is worth knowing of their weights."""


class TimmTeacher(Teacher):
    """A timm model as a teacher.

    ``layer`` counts blocks, or the stages of a map, from the end (-1 is the last; 0 and above count
    from the first). ``norm`` applies the final norm (SAM: the neck) to the patches. ``summary`` is
    ``head`` (what the model pools before its classifier, whatever the layer), ``mean`` (of the
    patches) or ``none``. ``registers`` keeps the register tokens too.
    """

    def __init__(
        self,
        model: nn.Module,
        preprocessing: Preprocessing,
        identity: Mapping[str, Any],
        *,
        layer: int = -1,
        norm: bool = True,
        summary: str = "head",
        registers: bool = False,
        licence: str | None = None,
    ) -> None:
        if summary not in SUMMARIES:
            raise UsageError(
                f"summary={summary!r} is not known; choose one of {', '.join(SUMMARIES)}."
            )
        depth = depth_of(model)
        if not -depth <= layer < depth:
            raise UsageError(
                f"layer={layer} does not exist; the model has {depth} layers, -1 is the last."
            )
        self.model = model.eval().requires_grad_(False)
        self._preprocessing = preprocessing
        self._identity = dict(identity)
        self._layer = layer - depth if layer >= 0 else layer
        self._norm, self._summary, self._registers = norm, summary, registers
        config = getattr(self.model, "pretrained_cfg", None) or {}
        self.licence = licence or config.get("license")

    def identity(self) -> Mapping[str, Any]:
        return {
            **self._identity,
            "weights_sha256": weights_sha256(self.model),
            "layer": self._layer,
            "norm": self._norm,
            "summary": self._summary,
            "dtype": str(parameter_dtype(self.model)).removeprefix("torch."),
        }

    def preprocessing(self) -> Preprocessing:
        return self._preprocessing

    def to(self, device: torch.device) -> None:
        self.model.to(device)

    def features(self, images: Float[torch.Tensor, "b 3 h w"]) -> Features:
        (features,) = self.features_together([self], images)
        return features

    def shares_forward(self, other: Teacher) -> bool:
        """Whether one forward pass serves both: the same model, at other layers perhaps."""
        return (
            isinstance(other, TimmTeacher)
            and other.model is self.model
            and other._norm == self._norm
            and other._preprocessing == self._preprocessing
        )

    def features_together(
        self, teachers: Sequence[Teacher], images: Float[torch.Tensor, "b 3 h w"]
    ) -> list[Features]:
        layers = [teacher for teacher in teachers if isinstance(teacher, TimmTeacher)]
        tokens, final = tokens_of_layers(
            self.model,
            images.to(parameter_dtype(self.model)),
            [teacher._layer for teacher in layers],
            norm=self._norm,
            final=any(teacher._summary == "head" for teacher in layers),
        )
        return [teacher._of(*tokens[teacher._layer], final) for teacher in layers]

    def _of(
        self, patches: torch.Tensor, registers: torch.Tensor | None, final: torch.Tensor | None
    ) -> Features:
        summary = None
        if self._summary == "mean":
            summary = patches.flatten(1, 2).mean(1)
        elif self._summary == "head":
            model: Any = self.model
            summary = model.forward_head(final, pre_logits=True)
            if summary.ndim != 2:
                raise TeacherError(
                    f"{type(model).__name__} pools to shape {tuple(summary.shape)}, which is no "
                    "vector per image; use summary=mean or summary=none."
                )
        return Features(patches, summary, registers if self._registers else None)


def build(model: str, options: dict[str, str]) -> TimmTeacher:
    """``timm:MODEL``: MODEL as timm names it (``hf-hub:`` and ``local-dir:`` forms too)."""
    take_options(options, OF_SOURCE["timm"], f"timm:{model}")
    weights, size = WeightOptions.of(options), size_of(options)
    if "revision" in options:
        model = f"{model}@{options['revision']}"
    key = (model, size, weights, weights.file_facts())
    net = _BUILT.get(key)
    if net is None:
        net = _create(model, size, weights)
        notes = weights.load(net, fitted_state)
        _BUILT[key] = net = cast(net, weights.dtype)
        _NOTES[net] = notes
    preprocessing = preprocessing_of(net, size)
    # A size of the model's own may leave pixels out too (SigLIP's 384 by patches of 14).
    if size is not None and (patch := patch_of(net)) is not None:
        require_whole_patches(preprocessing.size, patch, f"timm:{model}")
    dense = _is_dense(net)
    if ("neck" if not dense else "norm") in options:
        raise UsageError(
            f"timm:{model}: norm is for models with a final norm, neck for SAM's image encoder."
        )
    teacher = TimmTeacher(
        net,
        preprocessing,
        {"source": "timm", "model": model},
        layer=-1 if (layer := integer(options, "layer")) is None else layer,
        norm=boolean(options, "neck" if dense else "norm", default=not dense),
        registers=boolean(options, "registers", default=False),
        summary=options.get("summary", "none" if dense else "head"),
    )
    teacher.notes = _NOTES[net]
    return teacher


def _create(model: str, size: tuple[int, int] | None, weights: WeightOptions) -> Any:
    import timm

    kwargs: dict[str, Any] = {"num_classes": 0}
    # SAM's encoder resamples its positions as it runs, and only from their own size.
    if size is not None and not model.startswith("samvit"):
        kwargs["img_size"] = size
    try:
        with seeded(weights.seed or 0):
            try:
                return timm.create_model(model, pretrained=weights.from_hub, **kwargs)
            except TypeError as error:
                if "img_size" not in str(error):
                    raise
                del kwargs["img_size"]  # a convolutional model runs at any size
                return timm.create_model(model, pretrained=weights.from_hub, **kwargs)
    except RuntimeError as error:
        if "Unknown model" in str(error):
            raise _unknown(model) from error
        raise


def fitted_state(net: nn.Module, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A state dict as the model wants it: other layouts and sizes by timm's own rules, without
    its classifier."""
    import sys

    wanted = net.state_dict()
    fits = all(name in state and state[name].shape == value.shape for name, value in wanted.items())
    if not fits:
        convert = getattr(sys.modules[type(net).__module__], "checkpoint_filter_fn", None)
        with redirect_stdout(sys.stderr):  # some of timm's rules print
            state = state if convert is None else convert(state, net)
    config = getattr(net, "pretrained_cfg", None) or {}
    heads = config.get("classifier") or ()
    heads = (heads,) if isinstance(heads, str) else tuple(heads)
    return {
        name: value
        for name, value in state.items()
        if name in wanted or not name.startswith(tuple(f"{head}." for head in heads))
    }


def preprocessing_of(net: nn.Module, size: tuple[int, int] | None = None) -> Preprocessing:
    """What timm's pretrained config says, at ``size`` when given."""
    from timm.data.config import resolve_data_config

    config = resolve_data_config({}, model=net)
    _, height, width = config["input_size"]
    return Preprocessing(
        size=size or (height, width),
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        interpolation=config["interpolation"],
    )


def _is_dense(net: nn.Module) -> bool:
    """SAM's image encoder has no summary: its head pools what was never trained to be pooled."""
    return type(net).__name__ == "VisionTransformerSAM"


def _unknown(model: str) -> UsageError:
    import timm

    base = model.split(".")[0].split("@")[0]
    close = timm.list_models(f"*{base[:12]}*")[:8] or timm.list_models("vit_small*")[:8]
    return UsageError(f"timm has no model {model!r}; near it are: {', '.join(close)}.")

"""What a student's training does on Apple's GPU, which has no float64, on a stand-in for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from phistill.stats import Moments, Normalizer
from phistill.stats.normalizer.torch_module import NormalizerModule
from phistill.train import TrainConfig
from phistill.train.evaluation.fidelity import _Sums
from phistill.train.loss.balance import Balance
from phistill.train.targets import Target

MPS = torch.device("mps")


class OnApple(Tensor):
    """A tensor that says it lies on Apple's GPU, and holds nothing wider than float32."""

    @classmethod
    def __torch_function__(
        cls,
        function: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if function == Tensor.device.__get__:
            return MPS
        result = super().__torch_function__(function, types, args, dict(kwargs or {}))  # type: ignore[no-untyped-call]
        if function is Tensor.cpu:
            return result.as_subclass(Tensor)
        if isinstance(result, OnApple) and result.as_subclass(Tensor).dtype == torch.float64:
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype")
        return result


def on_apple(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(*shape, generator=generator).as_subclass(OnApple)


def target(teacher: str) -> Target:
    return Target(teacher=teacher, kind="patches", width=5, grid=(2, 2))


def test_the_stand_in_refuses_what_the_device_refuses() -> None:
    x = on_apple(2, 3)
    assert x.device == MPS
    assert x.cpu().double().sum().dtype == torch.float64
    wider: list[Callable[[], Tensor]] = [
        lambda: x.double(),
        lambda: x.to(torch.float64),
        lambda: x.mean(0, dtype=torch.float64),
        lambda: torch.add(x, torch.ones(3, dtype=torch.float64)),
    ]
    for wide in wider:
        with pytest.raises(TypeError, match="float64"):
            wide()


def test_evaluation_sums_without_float64_there() -> None:
    sums, plain = (_Sums(target("a"), torch.zeros(5), directions=False) for _ in range(2))
    prediction, value = on_apple(4, 2, 2, 5), on_apple(4, 2, 2, 5) * 2
    sums.add(prediction, value)
    plain.add(prediction.as_subclass(Tensor), value.as_subclass(Tensor))
    images = np.arange(4)
    one, two = sums.row("trained", images), plain.row("trained", images)
    assert one.mse == pytest.approx(two.mse, rel=1e-6)
    assert one.cosine == pytest.approx(two.cosine, rel=1e-6)


def test_the_balance_of_losses_is_kept_without_float64_there() -> None:
    config = TrainConfig(balance="adaloss")
    balance = Balance(config, [target("a"), target("b")], torch.device("cpu"))
    # What it makes there, where widest_float is float32.
    balance.mean, balance.weights = on_apple(2) * 0, on_apple(2)
    balance.observe(on_apple(2).abs())
    assert torch.isfinite(balance.factors()).all()


def test_a_normalizer_is_applied_in_float32_there() -> None:
    moments = Moments.of(torch.randn(50, 4, generator=torch.Generator().manual_seed(0)).numpy())
    module = NormalizerModule(Normalizer.fit(moments, "standardize"))
    x = on_apple(3, 4)
    assert module(x).dtype == torch.float32

"""timm's optimizers over a student: which there are, what they decay, and that they go on."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import timm.optim
import torch
from torch import Tensor

from phistill.cache import Cache
from phistill.cache.joined import open_caches
from phistill.compute.ranks import Ranks
from phistill.errors import UsageError
from phistill.train import TrainConfig
from phistill.train.data.loader import Loader
from phistill.train.data.source import open_source
from phistill.train.resolve import resolve_run
from phistill.train.step.optim import make_optimizer
from phistill.train.step.state import TrainState
from phistill.train.student.backbone import Student, build_student
from phistill.train.targets import Target

Config = Callable[..., TrainConfig]
timm_optim: Any = timm.optim

TARGETS = (Target(teacher="a", kind="patches", width=12, grid=(4, 4)),)


def one_of_each_class() -> list[str]:
    """A name for every optimizer that needs no package of its own."""
    names: dict[Any, str] = {}
    for name in timm_optim.list_optimizers():
        info = timm_optim.get_optimizer_info(name)
        others = isinstance(info.opt_class, str) or info.second_order or name.startswith("kron")
        if not others:
            names.setdefault(info.opt_class, name)
    return [*names.values(), "lookahead_adamw"]


def student_of(config: TrainConfig) -> Student:
    return build_student(config, TARGETS, 16)


def step(student: Student, optimizer: torch.optim.Optimizer, number: int) -> None:
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(number))
    student(images).predictions["a/patches"].square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


def torchs_own(config: TrainConfig, student: Student) -> torch.optim.Optimizer:
    """Matrices but for position and class tokens are decayed, the rest is not."""
    exempt = ("pos_embed", "cls_token")
    named = list(student.named_parameters())
    decayed = [p for n, p in named if p.ndim >= 2 and not n.endswith(exempt)]
    kept = [p for n, p in named if p.ndim < 2 or n.endswith(exempt)]
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": kept, "weight_decay": 0.0},
    ]
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr, betas=(0.9, 0.999), fused=True)
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=0.9, nesterov=True)
    return timm_optim.Lamb(groups, lr=config.lr, betas=(0.9, 0.999), max_grad_norm=None)


@pytest.mark.parametrize("name", ["adamw", "sgd", "lamb"])
def test_an_optimizer_does_what_torchs_own_does(name: str, make_config: Config) -> None:
    config = make_config(optimizer=name, lr=1e-2, weight_decay=0.1)
    ours, theirs = student_of(config), student_of(config)
    optimizers = make_optimizer(config, ours), torchs_own(config, theirs)
    for number in range(4):
        step(ours, optimizers[0], number)
        step(theirs, optimizers[1], number)
    for (key, one), two in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert torch.equal(one, two), key


@pytest.mark.parametrize("name", one_of_each_class())
def test_every_optimizer_goes_on_from_a_checkpoint_in_the_same_bits(
    name: str, fitted_cache: Cache, make_config: Config
) -> None:
    config = make_config(optimizer=name, num_steps=4, teachers=("a",), lr=1e-3)
    run = resolve_run(open_caches(fitted_cache), config, torch.device("cpu"))
    source = open_source(run.caches, run.targets, run.plan)

    def steps(state: TrainState, start: int, stop: int) -> TrainState:
        with Loader(source, run.plan, run.targets, start=start, stop=stop, workers=0) as batches:
            for batch in batches:
                state.train_step(batch)
        return state

    alone = Ranks(device=torch.device("cpu"))
    whole = steps(TrainState(run, alone), 0, 4)
    half = steps(TrainState(run, alone), 0, 2)
    tensors: dict[str, Tensor] = {key: value.clone() for key, value in half.tensors().items()}
    again = TrainState(run, alone)
    again.restore(tensors, json.loads(json.dumps(half.facts())))
    steps(again, 2, 4)
    expected = whole.tensors()
    assert expected.keys() == again.tensors().keys()
    for key, value in again.tensors().items():
        assert torch.equal(value, expected[key]), key
    assert again.facts() == whole.facts()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer": "adamww"}, "Did you mean adamw"),
        ({"optimizer": "adahessian"}, "second derivatives"),
        ({"optimizer": "kron"}, "no checkpoint can hold"),
        ({"optimizer": "sgd", "betas": (0.9, 0.99)}, "takes no betas"),
        ({"betas": (0.9, 0.99, 0.999)}, "takes 2 betas"),
        ({"optimizer_options": {"speed": 2}}, "'speed': 2"),
    ],
)
def test_what_an_optimizer_does_not_take_is_refused(
    changes: dict[str, Any], message: str, make_config: Config
) -> None:
    config = make_config(**changes)
    with pytest.raises(UsageError, match=message):
        make_optimizer(config, student_of(config))


def test_options_reach_the_optimizer(make_config: Config) -> None:
    config = make_config(optimizer="sgd", optimizer_options={"momentum": 0.8})
    optimizer = make_optimizer(config, student_of(config))
    assert {group["momentum"] for group in optimizer.param_groups} == {0.8}

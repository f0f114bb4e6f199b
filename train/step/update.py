"""The step of optimizer and average, which a flag on the device may leave out.

A host that waited for the flag would stand still at every step. Optimizers of torch that are fused
into one kernel take the flag themselves, as torch's GradScaler hands it to them. Of any other, what
the step changed is put back where the flag says so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from ..checkpoint import tensors_below
from ..config import TrainConfig
from ..student.backbone import Student
from .optim import make_optimizer

Entry = tuple[int, str]
"""Number of a parameter and name of what an optimizer keeps of it."""

HostState = tuple[list[dict[str, Any]], dict[Entry, Any]]
"""By group and by entry."""


class Update:
    """The optimizer of a student and the average of its weights."""

    def __init__(self, config: TrainConfig, student: Student) -> None:
        self.decay = config.ema_decay
        self.averageable: dict[str, Tensor] = {
            name: value
            for name, value in student.state_dict(keep_vars=True).items()
            if value.is_floating_point()
        }
        """Weights and, with batch norm, the running statistics that belong to them; by name."""
        self.parameters: list[Tensor] = list(student.parameters())
        self.optimizer: Any = make_optimizer(config, student)
        averaged = self.averageable.values() if self.decay else ()
        self.ema = [value.detach().clone() for value in averaged]

    @torch.no_grad()
    def apply(self, lr: float, num_done: int, wanted: Bool[Tensor, ""] | None = None) -> None:
        """One step with the gradients that are there, which then go.

        ``num_done`` counts it. Where ``wanted`` is false on the device nothing changes there.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        if wanted is None:
            self.optimizer.step()
        else:
            self._step_if(wanted)
        self.optimizer.zero_grad()
        if not self.ema:
            return
        values = list(self.averageable.values())
        # Early on the average follows the weights, or it would remember the random start.
        share = 1 - min(self.decay, num_done / (10 + num_done))
        if wanted is None:
            torch._foreach_lerp_(self.ema, values, share)
            return
        moved = torch._foreach_sub(values, self.ema)
        torch._foreach_mul_(moved, wanted * share)
        torch._foreach_add_(self.ema, moved)

    def _step_if(self, wanted: Tensor) -> None:
        optimizer = self.optimizer
        if getattr(optimizer, "_step_supports_amp_scaling", False):
            optimizer.found_inf, optimizer.grad_scale = (~wanted).float(), None
            optimizer.step()
            del optimizer.found_inf, optimizer.grad_scale
            return
        learnt = [p for p in self.parameters if p.grad is not None]
        weights, entries = [p.clone() for p in learnt], dict(self._entries())
        kept = {at: v.clone() for at, v in entries.items() if self._is_on_device(v)}
        optimizer.step()
        for p, before in zip(learnt, weights, strict=True):
            p.copy_(torch.where(wanted, p, before))
        for at, value in self._entries():
            if at in kept:
                value.copy_(torch.where(wanted, value, kept[at]))

    def _entries(self) -> Iterator[tuple[Entry, Any]]:
        state = self._state()
        for number, p in enumerate(self.parameters):
            for name, value in state.get(p, {}).items():
                yield (number, name), value

    def _state(self) -> dict[Tensor, dict[str, Any]]:
        """By parameter; timm's Lookahead keeps it in the optimizer that it wraps."""
        return dict(getattr(self.optimizer, "_base_optimizer", self.optimizer).state)

    # -- what the host counts, and what is kept --------------------------------------------------

    def host_state(self) -> HostState:
        """What an optimizer counts on the host, and the names of what it keeps on the device."""
        groups = [
            {name: _copied(value) for name, value in group.items() if name != "params"}
            for group in self.optimizer.param_groups
        ]
        entries = {
            at: None if self._is_on_device(value) else _copied(value)
            for at, value in self._entries()
        }
        return groups, entries

    def go_back(self, state: HostState) -> None:
        """To a ``host_state`` since when every step was left out."""
        groups, entries = state
        for group, before in zip(self.optimizer.param_groups, groups, strict=True):
            for name in group.keys() - before.keys() - {"params"}:
                del group[name]
            group.update(before)
        stored = self._state()
        for (number, name), value in list(self._entries()):
            kept = stored[self.parameters[number]]
            if (number, name) not in entries:
                del kept[name]
            elif not self._is_on_device(value):
                kept[name] = entries[number, name]

    def _is_on_device(self, value: Any) -> bool:
        return isinstance(value, Tensor) and value.device == self.parameters[0].device

    def tensors(self) -> dict[str, Tensor]:
        """The average and what the optimizer keeps as tensors, by name."""
        named = {f"optimizer/{k}": v for k, v in self._stored() if isinstance(v, Tensor)}
        if self.ema:
            named |= {f"ema/{n}": v for n, v in zip(self.averageable, self.ema, strict=True)}
        return named

    def facts(self) -> dict[str, Any]:
        """What the optimizer keeps beside tensors, as JSON values."""
        return {name: value for name, value in self._stored() if not isinstance(value, Tensor)}

    def restore(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Go on from ``tensors`` and ``facts``."""
        averages = tensors_below(tensors, "ema/")
        for name, average in zip(self.averageable, self.ema, strict=False):
            average.copy_(averages[name])
        groups = self.optimizer.state_dict()["param_groups"]
        entries: dict[int, dict[str, Any]] = {}
        for name, value in {**tensors_below(tensors, "optimizer/"), **facts}.items():
            kind, number, key = name.split("/", 2)
            owner = groups[int(number)] if kind == "group" else entries.setdefault(int(number), {})
            owner[key] = value
        self.optimizer.load_state_dict({"state": entries, "param_groups": groups})

    def _stored(self) -> Iterator[tuple[str, Any]]:
        """What the optimizer keeps, by ``parameter/NUMBER/NAME`` and ``group/NUMBER/NAME``."""
        stored = self.optimizer.state_dict()
        for number, entries in stored["state"].items():
            for name, value in entries.items():
                yield f"parameter/{number}/{name}", value
        for number, group in enumerate(stored["param_groups"]):
            for name, value in group.items():  # settings of other types come from the config
                if isinstance(value, Tensor) or type(value) in (int, float):
                    yield f"group/{number}/{name}", value


def _copied(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value

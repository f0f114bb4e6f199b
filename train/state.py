"""One student in training: weights, optimizer, loss balance and random state.

``learn`` takes a batch and does one optimizer step. Everything that a resumed run needs to go on
bit for bit is in ``tensors`` and ``state``. Several trainees can take turns on the same batches:
each keeps its own random state, so that none can tell whether it is alone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim import Optimizer

from phistill.compute.precision import products_in
from phistill.compute.ranks import Ranks
from phistill.compute.seeds import RandomState, state_name
from phistill.errors import Diverged
from phistill.stats import Normalizer

from .checkpoint import tensors_below
from .config import TrainConfig
from .data.loader import Batch
from .loss.augment import draw_crop, input_size, photometric
from .loss.losses import Balance, fixed_weights
from .loss.objective import Objective
from .loss.token_grids import Crop
from .optim import make_optimizer
from .schedule import learning_rate
from .student.backbone import Student, StudentOutput, build_student, to_images
from .targets import Target


@dataclass(frozen=True, kw_only=True, slots=True)
class StepValues:
    """What one optimizer step measured."""

    step: int
    """Steps done, this one included."""

    losses: dict[str, float]
    """Unweighted value of each term by target key: a mean over the global batch."""

    shares: dict[str, float]
    """Share of each term in the weighted sum."""

    total: float
    """The weighted sum that was minimised."""

    lr: float
    gradient_norm: float
    """Over all parameters, before clipping."""

    feature_gradients: dict[str, float]
    """Norm of each weighted term's gradient at the student's last shared features; often empty."""


class NotFinite(Diverged):
    """A step whose loss or gradient is not finite; ``facts`` names its rows."""

    def __init__(self, message: str, facts: dict[str, Any]) -> None:
        super().__init__(message)
        self.facts = facts


class Trainee:
    """The mutable state of one training run, and its step."""

    def __init__(
        self,
        config: TrainConfig,
        targets: Sequence[Target],
        normalizers: Mapping[str, Normalizer],
        *,
        dispersions: Mapping[str, float],
        image_size: int,
        num_steps: int,
        precision: str,
        ranks: Ranks,
    ) -> None:
        self.config, self.targets, self.ranks = config, tuple(targets), ranks
        self.normalizers, self.num_steps, self.done = dict(normalizers), num_steps, 0
        self.student: Student = build_student(config, targets, image_size).to(ranks.device)
        self.bf16 = precision == "bf16"
        if self.bf16 and ranks.device.type == "cpu":
            self.student.unfuse_attention()
        self.objective = Objective(config, targets, normalizers, dispersions).to(ranks.device)
        self.balance = Balance(
            config.balance, fixed_weights(targets, config.weights), config.adaloss_decay
        )
        self.optimizer: Optimizer = make_optimizer(config, self.student)
        self.ema = [p.detach().clone() for p in self.student.parameters()]
        if not config.ema_decay:
            self.ema = []
        forward: nn.Module = ranks.wrap(self.student)
        self.forward: Any = torch.compile(forward) if config.compile else forward
        self.random = RandomState(config.seed, ranks.rank, ranks.device)

    # -- one step --------------------------------------------------------------------------------

    def learn(self, batch: Batch) -> StepValues:
        """One optimizer step. Raises Diverged, before any weight changes, on a value not finite."""
        self.student.train()
        lr = learning_rate(self.config, self.done, self.num_steps)
        factors = self.balance.factors()
        measure = self._measures_gradients()
        values = torch.zeros(len(self.targets), device=self.ranks.device)
        squares = torch.zeros_like(values)
        seen: list[tuple[Batch, dict[str, Tensor]]] = []
        with self.random.in_place():
            for number in range(self.config.accumulate):
                part = batch.part(number, self.config.accumulate)
                last = number == self.config.accumulate - 1
                with contextlib.nullcontext() if last else self.ranks.no_sync(self.forward):
                    output, terms = self._forward(part)
                    means = [terms[t.key].sum() / max(1, batch.counts[t.key]) for t in self.targets]
                    weighted = [f * m for f, m in zip(factors.tolist(), means, strict=True)]
                    if measure:
                        squares += self._feature_gradients(weighted, output)
                    (torch.stack(weighted).sum() * self.ranks.world).backward()
                values += torch.stack(means).detach()
                seen.append((part, {key: value.detach() for key, value in terms.items()}))
        gradient_norm = self._clip()
        values = self.ranks.total(values)
        if measure:
            squares = self.ranks.total(squares)
        self._require_finite(values, gradient_norm, seen)
        self._update(lr, values)
        return self._report(factors, values, squares.sqrt() if measure else None, lr, gradient_norm)

    def _forward(self, part: Batch) -> tuple[StudentOutput, dict[str, Tensor]]:
        config, step = self.config, part.step
        size = input_size(config, self.student.image_size, step)
        images = to_images(part.pixels, size)
        images = photometric(images, config, step=step, first=part.first)
        crop = draw_crop(config, size // self.student.patch_pixels, step)
        if crop is not None:
            images = _cropped(images, crop, self.student.patch_pixels, resize=config.crop_resize)
        selection = None
        if part.teacher_of is not None:
            selection = {
                target.teacher: torch.from_numpy(part.positions(target.key)).to(self.ranks.device)
                for target in self.targets
            }
        dtype = "bfloat16" if self.bf16 else "float32"
        with products_in(dtype, self.ranks.device.type):
            output = self.forward(images, selection)
        wanted = self.objective.normalised(part)
        return output, self.objective.terms(output.predictions, wanted, crop)

    def _measures_gradients(self) -> bool:
        every = self.config.gradient_norm_every
        return bool(every) and self.done % every == 0

    def _feature_gradients(
        self, weighted: Sequence[Tensor], output: StudentOutput
    ) -> Float[Tensor, " terms"]:
        """Squared norm of each term's gradient at the last features all heads share.

        Parts and ranks hold different rows of these features, so their squares add up.
        """
        found = []
        for term in weighted:
            gradients = torch.autograd.grad(
                term, output.shared, retain_graph=True, allow_unused=True
            )
            squares = [g.float().square().sum() for g in gradients if g is not None]
            found.append(torch.stack(squares).sum() if squares else term.detach() * 0)
        return torch.stack(found)

    def _clip(self) -> Tensor:
        limit = self.config.clip_norm or float("inf")
        return torch.nn.utils.clip_grad_norm_(self.student.parameters(), limit)

    def _require_finite(
        self, values: Tensor, gradient_norm: Tensor, seen: list[tuple[Batch, dict[str, Tensor]]]
    ) -> None:
        if bool(torch.isfinite(values).all() & torch.isfinite(gradient_norm)):
            return
        self.optimizer.zero_grad()
        rows = [row for part, _ in seen for row in part.rows.tolist()]
        bad = sorted({row for part, terms in seen for row in _bad_rows(part, terms)})
        named = zip((t.key for t in self.targets), values.tolist(), strict=True)
        terms = ", ".join(f"{key}={value:.4g}" for key, value in named)
        raise NotFinite(
            f"step {self.done + 1} is not finite ({terms}, gradient norm "
            f"{float(gradient_norm):.4g}); {len(bad)} of {len(rows)} rows have such a loss. "
            "The weights are those of the step before. Look at the rows in the run's "
            "diverged.json, lower the learning rate, or take another normalizer.",
            {"step": self.done + 1, "rows": rows, "rows_not_finite": bad},
        )

    def _update(self, lr: float, values: Tensor) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.balance.observe(values)
        self.done += 1
        if self.ema:
            # Early on the average follows the weights, or it would remember the random start.
            decay = min(self.config.ema_decay, self.done / (10 + self.done))
            with torch.no_grad():
                torch._foreach_lerp_(self.ema, list(self.student.parameters()), 1 - decay)

    def _report(
        self,
        factors: Tensor,
        values: Tensor,
        norms: Tensor | None,
        lr: float,
        gradient_norm: Tensor,
    ) -> StepValues:
        keys = [target.key for target in self.targets]
        losses = values.cpu().double()
        weighted = factors * losses
        total = float(weighted.sum())
        return StepValues(
            step=self.done,
            losses=dict(zip(keys, losses.tolist(), strict=True)),
            shares=dict(zip(keys, (weighted / total).tolist(), strict=True)) if total else {},
            total=total,
            lr=lr,
            gradient_norm=float(gradient_norm),
            feature_gradients=dict(zip(keys, norms.tolist(), strict=True))
            if norms is not None
            else {},
        )

    # -- what is kept ----------------------------------------------------------------------------

    @contextlib.contextmanager
    def averaged(self) -> Any:
        """The student with its averaged weights in place, where an average is kept."""
        if not self.ema:
            yield self.student
            return
        parameters: list[Tensor] = list(self.student.parameters())
        with torch.no_grad():
            own = [p.detach().clone() for p in parameters]
            torch._foreach_copy_(parameters, self.ema)
            try:
                yield self.student
            finally:
                torch._foreach_copy_(parameters, own)

    def tensors(self) -> dict[str, Tensor]:
        """Weights, average, optimizer state and every rank's random state, by name.

        To be called on all ranks at once.
        """
        found = {f"student/{name}": value for name, value in self.student.state_dict().items()}
        names = [name for name, _ in self.student.named_parameters()]
        if self.ema:
            found |= {f"ema/{n}": value for n, value in zip(names, self.ema, strict=True)}
        for number, entries in self.optimizer.state_dict()["state"].items():
            for name, value in entries.items():
                found[f"optimizer/{number}/{name}"] = torch.as_tensor(value)
        for kind, state in self.random.states.items():
            for rank, value in enumerate(self.ranks.gathered(state)):
                found[state_name(kind, rank)] = value
        return found

    def state(self) -> dict[str, Any]:
        """What is not a tensor, as JSON values."""
        # AdamW counts steps per parameter, timm's LAMB per group.
        groups = [
            {key: float(group[key]) for key in ("lr", "weight_decay", "step") if key in group}
            for group in self.optimizer.param_groups
        ]
        return {"done": self.done, "balance": self.balance.state(), "groups": groups}

    def restore(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint's ``tensors`` and ``state``."""
        self.student.load_state_dict(tensors_below(tensors, "student/"))
        averages = tensors_below(tensors, "ema/")
        for (name, _), average in zip(self.student.named_parameters(), self.ema, strict=False):
            average.copy_(averages[name])
        entries: dict[int, dict[str, Tensor]] = {}
        for name, value in tensors_below(tensors, "optimizer/").items():
            number, _, key = name.partition("/")
            entries.setdefault(int(number), {})[key] = value
        current = self.optimizer.state_dict()
        groups = [
            {**group, **kept}
            for group, kept in zip(current["param_groups"], state["groups"], strict=True)
        ]
        self.optimizer.load_state_dict({"state": entries, "param_groups": groups})
        self.balance.restore(state["balance"])
        self.done = int(state["done"])
        self.random.restore(
            tensors, seed=self.config.seed, rank=self.ranks.rank, num_done=self.done
        )


def _cropped(images: Tensor, crop: Crop, patch: int, *, resize: bool) -> Tensor:
    top, left, side = crop.top * patch, crop.left * patch, crop.side * patch
    window = images[:, :, top : top + side, left : left + side]
    if not resize:
        return window
    return torch.nn.functional.interpolate(
        window, images.shape[-2:], mode="bilinear", antialias=True
    )


def _bad_rows(part: Batch, terms: Mapping[str, Tensor]) -> list[int]:
    """Global rows of the part whose loss is not finite, in any term."""
    bad: list[int] = []
    for key, per_row in terms.items():
        finite = torch.isfinite(per_row.detach()).cpu().numpy()
        if not finite.all():
            bad += part.rows[part.positions(key)[np.flatnonzero(~finite)]].tolist()
    return bad

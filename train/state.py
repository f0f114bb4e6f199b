"""One student in training: weights, optimizer, average, loss balance and random state.

``train_step`` takes a batch and does one optimizer step. Everything that a resumed run needs to go
on bit for bit is in ``tensors`` and ``facts``. Several students can take turns on the same batches:
each keeps its own random state, so that none can tell whether it is alone.
"""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from phistill.compute.compiler import explaining_compiler
from phistill.compute.memory import free_bytes, is_out_of_memory
from phistill.compute.precision import products_in
from phistill.compute.ranks import Ranks
from phistill.compute.seeds import RandomState, state_name
from phistill.errors import Diverged, OutOfMemory, counted

from .checkpoint import tensors_below
from .data.batch import Batch
from .loss.augment import draw_crop, input_size, photometric
from .loss.balance import Balance
from .loss.objective import Objective
from .loss.token_grids import Crop
from .optim import learning_rate, make_optimizer
from .resolve import ResolvedRun
from .student.backbone import Student, StudentOutput, build_student
from .student.pixels import to_images
from .student.probe import probe


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


@dataclass(frozen=True, eq=False, kw_only=True, slots=True)
class _Sums:
    """What the parts of a batch added up to."""

    values: Float[Tensor, " terms"]
    """Unweighted terms, as shares of the means over the global batch."""

    squares: Float[Tensor, " terms"]
    """Squared norms of the weighted terms' gradients at the shared features, where measured."""

    per_row: list[tuple[Batch, dict[str, Tensor]]]
    """Parts with the loss of each row by target key."""


class TrainState:
    """The mutable state of one training run, and its step."""

    def __init__(self, run: ResolvedRun, ranks: Ranks) -> None:
        config = run.config
        self.config, self.targets, self.ranks = config, run.targets, ranks
        self.num_steps, self.done = run.num_steps, 0
        self.student: Student = build_student(config, run.targets, run.image_size)
        self.student.to(ranks.device)
        self.bf16 = run.precision == "bf16"
        with self._products():
            known = probe(self.student)
        # Ranks would wait for their gradients for ever, and decay would shrink them.
        for name, parameter in self.student.named_parameters():
            parameter.requires_grad_(name not in known.unused)
        self.num_parts = config.accumulate or self._parts_that_fit(known.row_bytes)
        """How many parts this rank cuts its share of a batch into."""
        if self.bf16 and ranks.device.type == "cpu":
            self.student.unfuse_attention()
        self.objective = Objective(config, run.targets, run.normalizers, run.dispersions)
        self.objective.to(ranks.device)
        self.balance = Balance(config, run.targets)
        self.optimizer = make_optimizer(config, self.student)
        self.averageable = {
            name: value
            for name, value in self.student.state_dict(keep_vars=True).items()
            if value.is_floating_point()
        }
        """Weights and, with batch norm, the running statistics that belong to them; by name."""
        self.ema = [value.detach().clone() for value in self.averageable.values()]
        if not config.ema_decay:
            self.ema = []
        if config.compile:
            # Not the heads: within one compiled call, features between them have no gradient.
            self.student.backbone.compile()
        self.forward: Any = ranks.wrap(self.student)
        self.random = RandomState(config.seed, ranks.rank, ranks.device)

    @property
    def is_finished(self) -> bool:
        return self.done >= self.num_steps

    # -- one step --------------------------------------------------------------------------------

    def train_step(self, batch: Batch) -> StepValues:
        """One optimizer step: forward, loss, backward, clip, update.

        Raises NotFinite, before any weight changes, on a value that is not finite.
        """
        every = self.config.gradient_norm_every
        measure = bool(every) and self.done % every == 0
        lr = learning_rate(self.config, self.done, self.num_steps)
        factors = self.balance.factors()
        self.student.train()
        with self.random.in_place(), explaining_compiler(), self._explaining_memory():
            sums = self._backward(batch, factors.tolist(), measure=measure)
        limit = self.config.clip_norm or float("inf")
        gradient_norm = nn.utils.clip_grad_norm_(self.student.parameters(), limit)
        values = self.ranks.total(sums.values)
        self._require_finite(values, gradient_norm, sums.per_row)
        self._update(lr, values)
        norms = self.ranks.total(sums.squares).sqrt().tolist() if measure else []
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
            feature_gradients=dict(zip(keys, norms, strict=True)) if measure else {},
        )

    def _backward(self, batch: Batch, factors: Sequence[float], *, measure: bool) -> _Sums:
        """Add up the gradients of the batch's parts; ranks exchange them at the last one."""
        values = torch.zeros(len(self.targets), device=self.ranks.device)
        squares, per_row = torch.zeros_like(values), []
        # Every part has a row; a rank with fewer rows than parts has fewer parts.
        num_parts = min(self.num_parts, len(batch.rows))
        for number in range(num_parts):
            part = batch.part(number, num_parts)
            last = number == num_parts - 1
            with contextlib.nullcontext() if last else self.ranks.no_sync(self.forward):
                output, terms = self._forward(part)
                means = [terms[t.key].sum() / max(1, batch.counts[t.key]) for t in self.targets]
                weighted = [f * m for f, m in zip(factors, means, strict=True)]
                if measure:
                    squares += _feature_gradients(weighted, output)
                # Ranks take the mean of their gradients; what is wanted is the sum.
                (torch.stack(weighted).sum() * self.ranks.world).backward()
            values += torch.stack(means).detach()
            per_row.append((part, {key: value.detach() for key, value in terms.items()}))
        return _Sums(values=values, squares=squares, per_row=per_row)

    def _forward(self, part: Batch) -> tuple[StudentOutput, dict[str, Tensor]]:
        config, step = self.config, part.step
        size = input_size(config, self.student.image_size, step)
        images = to_images(part.pixels, size)
        images = photometric(images, config, step=step, first=part.first)
        crop = draw_crop(config, size // self.student.patch_pixels, step)
        if crop is not None:
            images = _cropped(images, crop, self.student.patch_pixels, resize=config.crop_resize)
        rows_of = None
        if part.teacher_of is not None:
            rows_of = {
                target.teacher: torch.from_numpy(part.positions(target.key)).to(self.ranks.device)
                for target in self.targets
            }
        with self._products():
            output = self.forward(images, rows_of)
        wanted = self.objective.normalised(part)
        return output, self.objective.terms(output.predictions, wanted, crop)

    def _products(self) -> contextlib.AbstractContextManager[Any]:
        """Matrix products in the run's precision."""
        return products_in("bfloat16" if self.bf16 else "float32", self.ranks.device.type)

    def _parts_that_fit(self, row_bytes: int) -> int:
        """Parts of a batch for which half of the free memory is enough; what they change is said.

        A student with batch norm would learn something else from parts, so its batch stays whole.
        """
        ranks = self.ranks
        free = free_bytes(ranks.device)
        rows = -(-self.config.batch_size // ranks.world)
        if free is None or any(isinstance(m, _BatchNorm) for m in self.student.modules()):
            return 1
        if ranks.device.type == "cpu":
            free //= ranks.world  # they may all be on this machine
        num_parts = min(rows, max(1, math.ceil(rows * row_bytes / max(free / 2, 1))))
        if num_parts > 1 and ranks.is_first:
            warnings.warn(
                f"A step of {rows:,} rows takes about {rows * row_bytes / 2**30:,.1f} GiB, and "
                f"{free / 2**30:,.1f} GiB of {ranks.device} are free: it is taken in {num_parts} "
                f"parts, with the same losses. Say accumulate={num_parts} to have it so always.",
                stacklevel=2,
            )
        return num_parts

    @contextlib.contextmanager
    def _explaining_memory(self) -> Iterator[None]:
        try:
            yield
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise OutOfMemory(
                f"{self.ranks.device} has not enough memory for a step of "
                f"batch_size={self.config.batch_size} in {counted(self.num_parts, 'part')} "
                f"({str(error).strip().splitlines()[0][:200]}). Take --set "
                f"accumulate={2 * self.num_parts}, which gives the same losses, a smaller "
                "batch_size or a smaller student."
            ) from error

    def _require_finite(
        self,
        values: Tensor,
        gradient_norm: Tensor,
        per_row: Sequence[tuple[Batch, Mapping[str, Tensor]]],
    ) -> None:
        if bool(torch.isfinite(values).all() & torch.isfinite(gradient_norm)):
            return
        self.optimizer.zero_grad()
        rows = [row for part, _ in per_row for row in part.rows.tolist()]
        bad = sorted({row for part, terms in per_row for row in _bad_rows(part, terms)})
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
                torch._foreach_lerp_(self.ema, list(self.averageable.values()), 1 - decay)

    # -- what is kept ----------------------------------------------------------------------------

    @contextlib.contextmanager
    def averaged(self) -> Iterator[Student]:
        """The student with its averaged weights in place, where an average is kept."""
        if not self.ema:
            yield self.student
            return
        values = list(self.averageable.values())
        with torch.no_grad():
            own = [value.detach().clone() for value in values]
            torch._foreach_copy_(values, self.ema)
            try:
                yield self.student
            finally:
                torch._foreach_copy_(values, own)

    def tensors(self) -> dict[str, Tensor]:
        """Weights, average, optimizer state and every rank's random state, by name.

        To be called on all ranks at once.
        """
        tensors = {f"student/{name}": value for name, value in self.student.state_dict().items()}
        if self.ema:
            averages = zip(self.averageable, self.ema, strict=True)
            tensors |= {f"ema/{name}": value for name, value in averages}
        for name, value in self._optimizer_state():
            if isinstance(value, Tensor):
                tensors[f"optimizer/{name}"] = value
        for kind, state in self.random.states.items():
            for rank, value in enumerate(self.ranks.gathered(state)):
                tensors[state_name(kind, rank)] = value
        return tensors

    def facts(self) -> dict[str, Any]:
        """What is not a tensor, as JSON values."""
        plain = {name: v for name, v in self._optimizer_state() if not isinstance(v, Tensor)}
        return {
            "done": self.done,
            "balance": self.balance.state(),
            "optimizer": plain,
            "num_parts": self.num_parts,
        }

    def restore(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Go on from a checkpoint's ``tensors`` and ``facts``."""
        self.student.load_state_dict(tensors_below(tensors, "student/"))
        averages = tensors_below(tensors, "ema/")
        for name, average in zip(self.averageable, self.ema, strict=False):
            average.copy_(averages[name])
        groups = self.optimizer.state_dict()["param_groups"]
        entries: dict[int, dict[str, Any]] = {}
        for name, value in {**tensors_below(tensors, "optimizer/"), **facts["optimizer"]}.items():
            kind, number, key = name.split("/", 2)
            owner = groups[int(number)] if kind == "group" else entries.setdefault(int(number), {})
            owner[key] = value
        self.optimizer.load_state_dict({"state": entries, "param_groups": groups})
        self.balance.restore(facts["balance"])
        if not self.config.accumulate:
            self.num_parts = max(self.num_parts, facts["num_parts"])
        self.done = int(facts["done"])
        self.random.restore(
            tensors, seed=self.config.seed, rank=self.ranks.rank, num_done=self.done
        )

    def _optimizer_state(self) -> Iterator[tuple[str, Any]]:
        """What the optimizer keeps, by ``parameter/NUMBER/NAME`` and ``group/NUMBER/NAME``."""
        stored = self.optimizer.state_dict()
        for number, entries in stored["state"].items():
            for name, value in entries.items():
                yield f"parameter/{number}/{name}", value
        for number, group in enumerate(stored["param_groups"]):
            for name, value in group.items():  # settings of other types come from the config
                if isinstance(value, Tensor) or type(value) in (int, float):
                    yield f"group/{number}/{name}", value


def _feature_gradients(
    weighted: Sequence[Tensor], output: StudentOutput
) -> Float[Tensor, " terms"]:
    """Squared norm of each term's gradient at the last features all heads share.

    Parts and ranks hold different rows of these features, so their squares add up.
    """
    norms = []
    for term in weighted:
        gradients = torch.autograd.grad(term, output.shared, retain_graph=True, allow_unused=True)
        squares = [g.float().square().sum() for g in gradients if g is not None]
        norms.append(torch.stack(squares).sum() if squares else term.detach() * 0)
    return torch.stack(norms)


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

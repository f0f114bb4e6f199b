"""One student in training: weights, optimizer, average, loss balance and random state.

``train_step`` takes a batch and does one optimizer step; ``look`` tells what it measured. On a
device that works ahead of the host nothing waits but ``look``: a step that is not finite, and those
after it, are left out on the device, and the next look goes back to before it and says so. On a CPU
every step is looked at.

Everything that a resumed run needs to go on bit for bit is in ``tensors`` and ``facts``. Several
students can take turns on the same batches: each keeps its own random state, so that none can tell
whether it is alone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from phistill.compute.compiler import explaining_compiler
from phistill.compute.copies import placed
from phistill.compute.devices import runs_ahead
from phistill.compute.precision import products_in
from phistill.compute.ranks import Ranks
from phistill.compute.seeds import RandomState, state_name

from ..checkpoint import tensors_below
from ..data.batch import Batch
from ..loss.augment import draw_crop, input_size, photometric
from ..loss.balance import Balance
from ..loss.objective import Objective
from ..loss.token_grids import Crop
from ..resolve import ResolvedRun
from ..student.backbone import Student, StudentOutput, build_student
from ..student.pixels import to_images
from ..student.probe import probe
from .memory import explaining_memory, parts_that_fit
from .optim import learning_rate
from .update import Update
from .values import Measured, RowLosses, StepValues, look, not_finite


@dataclass(frozen=True, eq=False, kw_only=True, slots=True)
class _Sums:
    """What the parts of a batch added up to."""

    values: Float[Tensor, " terms"]
    """Unweighted terms, as shares of the means over the global batch."""

    squares: Float[Tensor, " terms"]
    """Squared norms of the weighted terms' gradients at the shared features, where measured."""

    rows: list[RowLosses]


@dataclass(frozen=True, eq=False, kw_only=True, slots=True)
class _Before:
    """What the host keeps of a state, and the buffers that a forward pass writes."""

    done: int
    random: Mapping[str, Tensor]
    num_seen: int
    optimizer: Any
    buffers: Sequence[Tensor]


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
        self.num_parts = config.accumulate or parts_that_fit(
            self.student, config.batch_size, known.row_bytes, ranks
        )
        """How many parts this rank cuts its share of a batch into."""
        if self.bf16 and ranks.device.type == "cpu":
            self.student.unfuse_attention()
        self.objective = Objective(config, run.targets, run.normalizers, run.dispersions)
        self.objective.to(ranks.device)
        self.balance = Balance(config, run.targets, ranks.device)
        self.update = Update(config, self.student)
        kept = self.student.state_dict(keep_vars=True).values()
        self._buffers = [value for value in kept if not isinstance(value, nn.Parameter)]
        if config.compile:
            # Not the heads: within one compiled call, features between them have no gradient.
            self.student.backbone.compile()
        self.forward: Any = ranks.wrap(self.student)
        self.random = RandomState(config.seed, ranks.rank, ranks.device)
        self._runs_ahead = runs_ahead(ranks.device)
        self._is_finite = torch.ones((), dtype=torch.bool, device=ranks.device)
        """Whether every step so far was."""
        self._unseen: list[tuple[_Before, Measured]] = []
        self._values: StepValues | None = None

    @property
    def is_finished(self) -> bool:
        return self.done >= self.num_steps

    # -- one step --------------------------------------------------------------------------------

    def train_step(self, batch: Batch) -> None:
        """One optimizer step: forward, loss, backward, clip, update.

        On a CPU raises NotFinite, before any weight changes, on a value that is not finite.
        """
        before, every = self._before(), self.config.gradient_norm_every
        measure = bool(every) and self.done % every == 0
        lr = learning_rate(self.config, self.done, self.num_steps)
        factors = self.balance.factors()
        self.student.train()
        with (
            self.random.in_place(),
            explaining_compiler(),
            explaining_memory(self.config.batch_size, self.num_parts, self.ranks),
        ):
            sums = self._backward(batch, factors.float(), measure=measure)
        limit = self.config.clip_norm or float("inf")
        gradient_norm = nn.utils.clip_grad_norm_(self.student.parameters(), limit)
        values = self.ranks.total(sums.values)
        self._is_finite = (
            self._is_finite & torch.isfinite(values).all() & torch.isfinite(gradient_norm)
        )
        self.done += 1
        measured = Measured(
            step=self.done,
            lr=lr,
            values=values,
            factors=factors,
            gradient_norm=gradient_norm,
            squares=self.ranks.total(sums.squares) if measure else None,
            is_finite=self._is_finite,
            rows=sums.rows,
        )
        self._unseen.append((before, measured))
        if not self._runs_ahead:
            self.look()
        wanted = self._is_finite if self._runs_ahead else None
        if wanted is not None:
            for buffer, old in zip(self._buffers, before.buffers, strict=True):
                buffer.copy_(torch.where(wanted, buffer, old))
        self.update.apply(lr, self.done, wanted)
        self.balance.observe(values, wanted)

    def look(self) -> StepValues | None:
        """Wait for the device: what the last step measured, None before the first.

        Raises NotFinite when a step since the last look was not finite, on all ranks at once; the
        state is then that before this step.
        """
        if not self._unseen:
            return self._values
        unseen, self._unseen = self._unseen, []
        keys = [target.key for target in self.targets]
        values, finite = look([measured for _, measured in unseen], keys)
        if not all(finite):
            number = finite.index(False)
            before, measured = unseen[number]
            self._go_back(before)
            raise not_finite(measured, keys, num_skipped=len(unseen) - number)
        self._values = values
        return values

    def _before(self) -> _Before:
        return _Before(
            done=self.done,
            random=self.random.states,
            num_seen=self.balance.num_seen,
            optimizer=self.update.host_state() if self._runs_ahead else None,
            buffers=[buffer.clone() for buffer in self._buffers],
        )

    def _go_back(self, before: _Before) -> None:
        """To before a step that was not finite; no step since then has changed a weight."""
        self.done, self.random.states = before.done, dict(before.random)
        self.balance.num_seen = before.num_seen
        self._is_finite = torch.ones_like(self._is_finite)
        for buffer, old in zip(self._buffers, before.buffers, strict=True):
            buffer.copy_(old)
        if self._runs_ahead:
            self.update.go_back(before.optimizer)
        self.update.optimizer.zero_grad()

    def _backward(self, batch: Batch, factors: Tensor, *, measure: bool) -> _Sums:
        """Add up the gradients of the batch's parts; ranks exchange them at the last one."""
        values = torch.zeros(len(self.targets), device=self.ranks.device)
        squares, rows = torch.zeros_like(values), []
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
            rows.append(RowLosses.of(part, terms))
        return _Sums(values=values, squares=squares, rows=rows)

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
                target.teacher: placed(
                    torch.from_numpy(part.positions(target.key)), self.ranks.device
                )
                for target in self.targets
            }
        with self._products():
            output = self.forward(images, rows_of)
        wanted = self.objective.normalised(part)
        return output, self.objective.terms(output.predictions, wanted, crop)

    def _products(self) -> contextlib.AbstractContextManager[Any]:
        """Matrix products in the run's precision."""
        return products_in("bfloat16" if self.bf16 else "float32", self.ranks.device.type)

    # -- what is kept ----------------------------------------------------------------------------

    @contextlib.contextmanager
    def averaged(self) -> Iterator[Student]:
        """The student with its averaged weights in place, where an average is kept."""
        if not self.update.ema:
            yield self.student
            return
        values = list(self.update.averageable.values())
        with torch.no_grad():
            own = [value.detach().clone() for value in values]
            torch._foreach_copy_(values, self.update.ema)
            try:
                yield self.student
            finally:
                torch._foreach_copy_(values, own)

    def tensors(self) -> dict[str, Tensor]:
        """Weights, average, optimizer state and every rank's random state, by name.

        To be called on all ranks at once.
        """
        tensors = {f"student/{name}": value for name, value in self.student.state_dict().items()}
        tensors |= self.update.tensors()
        for kind, state in self.random.states.items():
            for rank, value in enumerate(self.ranks.gathered(state)):
                tensors[state_name(kind, rank)] = value
        return tensors

    def facts(self) -> dict[str, Any]:
        """What is not a tensor, as JSON values."""
        return {
            "done": self.done,
            "balance": self.balance.state(),
            "optimizer": self.update.facts(),
            "num_parts": self.num_parts,
        }

    def restore(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Go on from a checkpoint's ``tensors`` and ``facts``."""
        self.student.load_state_dict(tensors_below(tensors, "student/"))
        self.update.restore(tensors, facts["optimizer"])
        self.balance.restore(facts["balance"])
        if not self.config.accumulate:
            self.num_parts = max(self.num_parts, facts["num_parts"])
        self.done = int(facts["done"])
        self.random.restore(
            tensors, seed=self.config.seed, rank=self.ranks.rank, num_done=self.done
        )


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

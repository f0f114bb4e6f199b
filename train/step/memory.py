"""How many parts a step is cut into so that it fits, and what is said when it does not."""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Iterator

from torch.nn.modules.batchnorm import _BatchNorm

from phistill.compute.memory import free_bytes, is_out_of_memory
from phistill.compute.ranks import Ranks
from phistill.errors import OutOfMemory, counted

from ..student.backbone import Student


def parts_that_fit(student: Student, batch_size: int, row_bytes: int, ranks: Ranks) -> int:
    """Parts of a batch for which half of the free memory is enough; what they change is said.

    A student with batch norm would learn something else from parts, so its batch stays whole.
    """
    free = free_bytes(ranks.device)
    rows = -(-batch_size // ranks.world)
    if free is None or any(isinstance(m, _BatchNorm) for m in student.modules()):
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
def explaining_memory(batch_size: int, num_parts: int, ranks: Ranks) -> Iterator[None]:
    """OutOfMemory, which names the setting to change, where memory runs out inside."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemory(
            f"{ranks.device} has not enough memory for a step of batch_size={batch_size} in "
            f"{counted(num_parts, 'part')} ({str(error).strip().splitlines()[0][:200]}). Take "
            f"--set accumulate={2 * num_parts}, which gives the same losses, a smaller batch_size "
            "or a smaller student."
        ) from error

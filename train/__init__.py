"""Students: configuration, losses, the loop, checkpoints, evaluation, export.

``train(cache, out, TrainConfig(...))`` makes a run folder; ``load_run(out)`` gives the student as a
function, ``evaluate(out)`` says how much of each teacher it explains, ``export(out, folder)``
leaves phistill behind, ``load_student(folder)`` reads it. Names are loaded on first use, so that
importing this room costs nothing.
"""

import sys
from types import ModuleType
from typing import Any

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


class _CallableRoom(ModuleType):
    """``phistill.train`` is this room; called, it is ``phistill.train.train``."""

    def __call__(self, *args: Any, **options: Any) -> Any:
        return self.train(*args, **options)


sys.modules[__name__].__class__ = _CallableRoom

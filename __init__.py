"""Cache every teacher once. Distill as many students as you like.

The verbs of the command line are functions here, loaded on first use, so that ``import phistill``
costs nothing:

>>> import phistill
>>> phistill.extract("photos/", "my.cache", ["demo:ssl", "demo:clip"])  # doctest: +SKIP
>>> phistill.fit_stats("my.cache")  # doctest: +SKIP
>>> phistill.train("my.cache", "runs/phi-s")  # doctest: +SKIP
>>> phistill.evaluate("runs/phi-s")  # doctest: +SKIP

Everything else is in the rooms: ``phistill.cache`` (bytes on disk), ``phistill.stats`` (moments and
normalizers), ``phistill.pipeline`` (images and teachers), ``phistill.train`` (students),
``phistill.report`` (what a person looks at), ``phistill.errors`` and ``phistill.demo``.
"""

import importlib
import logging
from typing import Any

import lazy_loader

__version__ = "0.1.0"

# What the modules log is shown where a program, or phistill's command line, sets logging up.
logging.getLogger(__name__).addHandler(logging.NullHandler())

_load, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> Any:
    # The room of the same name is callable, so that the function need not hide it.
    return importlib.import_module("phistill.train") if name == "train" else _load(name)

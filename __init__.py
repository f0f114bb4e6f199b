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

# Nothing is imported here: until __main__ runs, nobody has an answer to Ctrl-C.
__version__ = "0.1.0"


def _front_door() -> tuple[object, ...]:
    """The stub's ``__getattr__``, ``__dir__`` and ``__all__``."""
    import logging

    import lazy_loader

    # Shown where a program, or phistill's command line, sets logging up; modules log notes and
    # facts, no warnings, so that nothing is shown to one that took a room by itself either.
    logging.getLogger(__name__).addHandler(logging.NullHandler())
    return lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> object:
    import importlib

    if name == "train":  # the room of the same name is callable: the function need not hide it
        return importlib.import_module("phistill.train")
    if "_opened" not in globals():
        globals()["_opened"] = _front_door()
    load, _, public = globals()["_opened"]
    return public if name == "__all__" else load(name)


def __dir__() -> object:
    return __getattr__("__all__")

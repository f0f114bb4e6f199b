"""Code of a user's own: teachers, image sources, students, heads, losses and row filters.

All are named alike, ``package.module:function``, and found in what is installed, on PYTHONPATH or,
last, in the working folder: a file beside you is a module. Teachers and image sources can also be
registered as entry points of a package, which gives them a name of their own.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from phistill.errors import UsageError

MODULE = "module"
"""Names a teacher or an image source that is not registered: ``module:package.module:function``."""

TEACHERS = "phistill.teachers"
IMAGE_SOURCES = "phistill.image_sources"
"""Groups of entry points."""


def load(name: str, what: str) -> Callable[..., Any]:
    """The callable called ``name``; UsageError says which part of the name does not exist.

    ``what`` is what the name was given for, for messages.
    """
    module_name, _, attribute = name.partition(":")
    if not module_name or not attribute:
        raise UsageError(f"{what}={name!r} must be package.module:function.")
    folder = os.getcwd()
    if folder not in sys.path and "" not in sys.path:
        sys.path.append(folder)  # for good: a plug-in may import its neighbours later
        importlib.invalidate_caches()
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if not f"{module_name}.".startswith(f"{error.name}."):
            raise UsageError(f"{what}={name!r} cannot be imported: {error}.") from error
        raise UsageError(
            f"{what}={name!r}: there is no module {error.name!r}, neither installed nor in "
            f"{folder}. Run where its file lies, or put its folder on PYTHONPATH."
        ) from error
    except Exception as error:  # a module of a user's own may raise anything
        raise UsageError(
            f"{what}={name!r} cannot be imported: {type(error).__name__}: {error}."
        ) from error
    function = getattr(module, attribute, None)
    if not callable(function):
        raise UsageError(f"{what}={name!r}: {module_name} has no callable {attribute!r}.")
    return function


def registered(group: str) -> dict[str, EntryPoint]:
    """The entry points of ``group`` by name, those of phistill among them."""
    return {entry.name: entry for entry in entry_points(group=group)}


def split_options(text: str) -> tuple[str, dict[str, str]]:
    """``NAME?key=value&...`` as its name and its options; UsageError where they are none.

    Values are taken as they are written: a path may hold ``+``, ``%``, ``=``, and ``&`` where no
    ``key=`` comes after it.
    """
    name, mark, query = text.partition("?")
    options: dict[str, str] = {}
    key = ""
    for part in query.split("&") if mark else ():
        before, equals, value = part.partition("=")
        if equals and before.isidentifier():
            if before in options:
                raise UsageError(f"{text!r} gives the option {before!r} twice.")
            key, options[before] = before, value
        elif key:
            options[key] += f"&{part}"
        else:
            raise UsageError(f"{text!r}: {query!r} is not key=value&...")
    return name, options

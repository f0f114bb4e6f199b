"""From the text ``[NAME=]SOURCE:MODEL[?key=value&...]`` to a teacher.

Sources are entry points in the group ``phistill.teachers``; ours are found the same way as a
user's own. ``module:package.module:function`` calls a function without any registration.
Some options are for teachers of every source (see ``adjust``); a source sees the others.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Self
from urllib.parse import parse_qsl

from phistill import plugins
from phistill.cache.format.names import check_teacher_name
from phistill.errors import PhistillError, TeacherError, UsageError

from .contract import Teacher
from .hub import asked_once, needs_hub
from .wrapper import OPTIONS as COMMON_OPTIONS
from .wrapper import Adjustment

MODULE = "module"
HUB_ADVICE = (
    "\nThe weights come from a hub. Without a network give ?weights=FILE or a local-dir:FOLDER "
    "model, or copy the hub's cache to this machine; `phistill doctor --network` asks the hub."
)


@dataclass(frozen=True, slots=True)
class TeacherSpec:
    """A parsed teacher argument."""

    name: str
    source: str
    model: str
    options: tuple[tuple[str, str], ...] = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse ``[NAME=]SOURCE:MODEL[?key=value&...]``; UsageError shows the grammar.

        NAME defaults to the last part of MODEL with unusual letters replaced.
        """
        body, _, query = text.partition("?")
        name, equals, rest = body.partition("=")
        source, colon, model = (rest if equals else body).partition(":")
        if not colon or not source or not model:
            raise UsageError(
                f"teacher {text!r} is not [NAME=]SOURCE:MODEL[?key=value&...], "
                f"for example demo:clip. Sources: {', '.join(known_sources())}."
            )
        try:
            options = parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query))
        except ValueError as error:
            raise UsageError(
                f"teacher {text!r}: options {query!r} are not key=value&..."
            ) from error
        if len(dict(options)) != len(options):
            raise UsageError(f"teacher {text!r} gives an option twice.")
        if not equals:
            last = re.split(r"[/:]", model.rstrip("/"))[-1]
            name = re.sub(r"[^A-Za-z0-9._-]", "-", last).lstrip("._-") or source
        return cls(check_teacher_name(name), source, model, tuple(sorted(options)))

    @property
    def text(self) -> str:
        """``SOURCE:MODEL?options``, which parses to the same teacher."""
        query = "&".join(f"{key}={value}" for key, value in self.options)
        return f"{self.source}:{self.model}" + (f"?{query}" if query else "")

    def build(self) -> Teacher:
        """Build the teacher; UsageError lists the sources when this one is unknown."""
        builder = _builder(self.source, self.model)
        model = self.model if self.source != MODULE else ""
        options = dict(self.options)
        adjustment = Adjustment.take(options)
        hub = asked_once() if needs_hub(self.source, model, options) else nullcontext()
        with hub as silence:
            try:
                return adjustment.apply(builder(model, options))
            except PhistillError:
                raise
            except Exception as error:  # a library, a hub or a user's plug-in may raise anything
                if silence is not None:
                    raise TeacherError(
                        f"teacher {self.text} could not be built: {silence}, and what it needs was "
                        f"not downloaded before.{HUB_ADVICE}"
                    ) from error
                raise TeacherError(
                    f"teacher {self.text} could not be built: {type(error).__name__}: {error}"
                    f"{HUB_ADVICE if _is_hub_error(error) else ''}"
                ) from error


def _is_hub_error(error: BaseException) -> bool:
    """Whether the weights could not be fetched."""
    return any(
        base.__module__.startswith(("huggingface_hub", "requests", "httpx", "urllib"))
        for base in type(error).__mro__
    )


def known_sources() -> list[str]:
    """Names of the installed sources."""
    return sorted({*plugins.registered(plugins.TEACHERS), MODULE})


def take_options(options: dict[str, str], known: tuple[str, ...], what: str) -> None:
    """UsageError listing the known options when an unknown one is given."""
    if unknown := sorted(set(options) - set(known)):
        raise UsageError(
            f"{what}: unknown options {', '.join(unknown)}; known are {', '.join(known)}, "
            f"and for every source {', '.join(COMMON_OPTIONS)}."
        )


def _builder(source: str, model: str) -> Callable[[str, dict[str, str]], Teacher]:
    if source == MODULE:
        return plugins.load(model, MODULE)
    entry = plugins.registered(plugins.TEACHERS).get(source)
    if entry is None:
        raise UsageError(
            f"teacher source {source!r} is not known; known are {', '.join(known_sources())}."
        )
    builder: Callable[[str, dict[str, str]], Teacher] = entry.load()
    return builder

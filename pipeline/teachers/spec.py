"""From the text ``[NAME=]SOURCE:MODEL[?key=value&...]`` to a teacher.

Sources are entry points in the group ``phistill.teachers``; ours are found the same way as a
user's own. ``module:package.module:function`` calls a function without any registration.
Some options are for teachers of every source (see ``wrapper``); a source sees the others.
"""

from __future__ import annotations

import os
import re
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Self

from phistill import plugins
from phistill.cache.format.names import check_teacher_name
from phistill.errors import PhistillError, TeacherError, UsageError, did_you_mean

from .contract import FourMethods, Teacher
from .wrapper import WrapperOptions

HUB_PATIENCE_S = 5.0
"""Within this a hub that can be reached has answered something."""

HUB_SOURCES = ("timm", "open_clip", "transformers")
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

        NAME defaults to the last part of MODEL with unusual letters replaced; open_clip's
        ARCHITECTURE/TAG to both.
        """
        body, options = plugins.split_options(text)
        name, equals, rest = body.partition("=")
        source, colon, model = (rest if equals else body).partition(":")
        if not colon or not source or not model:
            raise UsageError(
                f"teacher {text!r} is not [NAME=]SOURCE:MODEL[?key=value&...], "
                f"for example demo:clip. Sources: {', '.join(known_sources())}."
            )
        if not equals:
            last = re.split(r"[/:]", model.rstrip("/"))[-1]
            if source == "open_clip" and ":" not in model:
                last = model.replace("/", "-")  # tags are shared by architectures
            name = re.sub(r"[^A-Za-z0-9._-]", "-", last).lstrip("._-") or source
        return cls(check_teacher_name(name), source, model, tuple(sorted(options.items())))

    @property
    def text(self) -> str:
        """``SOURCE:MODEL?options``, which parses to the same teacher."""
        query = "&".join(f"{key}={value}" for key, value in self.options)
        return f"{self.source}:{self.model}" + (f"?{query}" if query else "")

    def build(self) -> Teacher:
        """Build the teacher; UsageError lists the sources when this one is unknown."""
        builder = _builder(self.source, self.model)
        model = self.model if self.source != plugins.MODULE else ""
        options = dict(self.options)
        wrapper = WrapperOptions.take(options)
        hub = asked_once() if needs_hub(self.source, model, options) else nullcontext()
        with hub as silence:
            try:
                teacher = builder(model, options)
                return wrapper.apply(
                    teacher if isinstance(teacher, Teacher) else FourMethods(teacher)
                )
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
    return sorted({*plugins.registered(plugins.TEACHERS), plugins.MODULE})


def refuse_unknown_source(source: str) -> None:
    """UsageError for a source that nobody registered."""
    known = known_sources()
    if source not in known:
        raise UsageError(
            f"teacher source {source!r} is not known; known are {', '.join(known)}."
            f"{did_you_mean(source, known)}"
        )


def _builder(source: str, model: str) -> Callable[[str, dict[str, str]], Any]:
    if source == plugins.MODULE:
        return plugins.load(model, plugins.MODULE)
    refuse_unknown_source(source)
    builder: Callable[[str, dict[str, str]], Any] = plugins.registered(plugins.TEACHERS)[
        source
    ].load()
    return builder


def needs_hub(source: str, model: str, options: dict[str, str]) -> bool:
    """Whether building a teacher may ask the hub for weights or a config."""
    if source not in HUB_SOURCES or "weights" in options or model.startswith("local-dir:"):
        return False
    if "random" in options:  # timm and open_clip bring their configs along
        return source == "transformers" and not Path(model).is_dir()
    return not (source == "transformers" and Path(model).is_dir())


@contextmanager
def asked_once() -> Iterator[str | None]:
    """Inside, a hub that does not answer is not asked again: only what was downloaded is used.

    Gives the reason then, None when the hub answers or the user chose to stay offline.
    """
    try:
        from huggingface_hub import constants
    except ImportError:
        yield None
        return
    hub: Any = constants
    if hub.HF_HUB_OFFLINE:
        yield None
        return
    reason = silence(os.environ.get("HF_ENDPOINT") or "https://huggingface.co")
    if reason is None:
        yield None
        return
    hub.HF_HUB_OFFLINE = True
    try:
        yield reason
    finally:
        hub.HF_HUB_OFFLINE = False


@cache
def silence(endpoint: str) -> str | None:
    """Why a hub does not answer; None when it does, whatever it says. Proxies are honoured."""
    if not endpoint.startswith(("https://", "http://")):
        return f"HF_ENDPOINT={endpoint!r} is no web address"
    request = urllib.request.Request(endpoint, method="HEAD")  # noqa: S310
    try:
        with urllib.request.urlopen(request, timeout=HUB_PATIENCE_S):  # noqa: S310
            return None
    except urllib.error.HTTPError:
        return None
    except OSError as error:
        return f"{endpoint} does not answer ({getattr(error, 'reason', error)})"

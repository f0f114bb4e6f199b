"""The errors of phistill: one tree, so that a caller can catch what it can mend.

``UsageError`` is what the caller asked wrongly (the command line exits with 2); every other
``PhistillError`` is a failure that its message explains (exit 1). Anything else is a bug.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from numbers import Integral


class PhistillError(Exception):
    """Something failed in a way the message explains."""


class UsageError(PhistillError, ValueError):
    """The caller asked for something that does not exist or cannot be combined."""


class CacheMismatch(PhistillError):
    """The cache holds something else than this run asks for."""


class CorruptCache(PhistillError):
    """Bytes of a cache are not what its commit records or checksums promise."""


class IncompleteCache(PhistillError):
    """The cache lacks rows that are needed; the message names the command that adds them."""


class MissingRow(IncompleteCache):
    """A row was asked for that is not committed, or was rejected."""


class MissingMoments(PhistillError):
    """No statistics were computed yet for what is asked."""


class StaleMoments(PhistillError):
    """The cache grew or changed after its statistics were computed."""


class DegenerateMoments(PhistillError):
    """The features have no variance, too few rows, or hold NaN."""


class StoreError(PhistillError):
    """Storage did not do what it was asked, so nothing is known of the bytes; not an OSError, which
    a reader may take for damage."""


class ReadOnlyPlace(PhistillError):
    """What was to be written lies where nobody may write."""


class LockHeld(PhistillError):
    """Another process is writing here."""


class SourceError(PhistillError):
    """The images cannot be read, or are not the ones the cache was made from."""


class TeacherError(PhistillError):
    """A teacher could not be built, or does not do what its contract says."""


class TooManyRejects(PhistillError):
    """More images were rejected than the run allows."""


class RunMismatch(PhistillError):
    """A run folder was made with other settings than this call asks for."""


class CorruptCheckpoint(PhistillError):
    """A checkpoint is not what its digest promises."""


class Diverged(PhistillError):
    """Training produced NaN or infinity."""


class OutOfMemory(PhistillError):
    """A device has not enough memory; the message names the setting that needs less."""


class OutOfTime(PhistillError):
    """A run's time limit came before there was anything to finish; the same call goes on."""

    signal_number = 15
    """A command exits with 128 plus it, as if the limit had been a scheduler's SIGTERM."""


@contextmanager
def remedy(text: str, *kinds: type[PhistillError]) -> Iterator[None]:
    """Add what to do to errors of ``kinds``, which say what is wrong and no more."""
    try:
        yield
    except kinds as error:
        raise type(error)(f"{error} {text}") from error


def repair_text(location: str) -> str:
    """What mends a shard of the cache at ``location``."""
    return (
        f"Run `phistill verify {location}` to see what else is damaged, then extract that shard "
        f"again with `phistill extract IMAGES --cache {location} --repair`, or with "
        "import-features and --repair where it was imported."
    )


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`` Did you mean phi-s?`` to end a refusal with; empty where nothing is spelt nearly so."""
    return suggestion(nearest(name, known))


def nearest(name: str, known: Iterable[str]) -> list[str]:
    """At most three of ``known`` that are spelt nearly so, the nearest first."""
    return difflib.get_close_matches(name, list(known), n=3)


def suggestion(names: Sequence[str]) -> str:
    """`` Did you mean phi-s?``; empty without names."""
    return f" Did you mean {' or '.join(names)}?" if names else ""


def counted(number: float, noun: str, plural: str = "") -> str:
    """``1 shard``, ``2,000 shards``, ``0.5 bits``; ``plural`` where it is not noun and s."""
    told = f"{number:,}" if isinstance(number, Integral) else f"{number:.3g}"
    return f"{told} {noun if told == '1' else plural or noun + 's'}"


def percent(share: float) -> str:
    """``12%``, ``0.64%``, ``0.0003%``: two digits, whatever the size."""
    return f"{float(f'{100 * share:.2g}'):.10g}%"

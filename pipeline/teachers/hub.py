"""Whether the model hub answers, asked once: its client retries for most of a minute when not."""

from __future__ import annotations

import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

PATIENCE_S = 5.0
"""Within this a hub that can be reached has answered something."""

SOURCES = ("timm", "open_clip", "transformers")


def needs_hub(source: str, model: str, options: dict[str, str]) -> bool:
    """Whether building a teacher may ask the hub for weights or a config."""
    if source not in SOURCES or "weights" in options or model.startswith("local-dir:"):
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
    asked = urllib.request.Request(endpoint, method="HEAD")  # noqa: S310
    try:
        with urllib.request.urlopen(asked, timeout=PATIENCE_S):  # noqa: S310
            return None
    except urllib.error.HTTPError:
        return None
    except OSError as error:
        return f"{endpoint} does not answer ({getattr(error, 'reason', error)})"

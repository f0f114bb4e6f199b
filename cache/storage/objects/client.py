"""Requests to an object store: opened from a URL, tried again, and explained when they fail.

obstore retries what a server refuses (5xx) and what never connected. It does not retry a body that
ends too early, a list that ends too early, or a request that was refused with 429, so every request
is also tried again from here.
"""

from __future__ import annotations

import errno
import logging
import os
import random
import re
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from phistill.errors import StoreError, UsageError

if TYPE_CHECKING:
    from obstore.store import ObjectStore

T = TypeVar("T")

log = logging.getLogger(__name__)

SCHEMES = ("s3", "s3a", "gs", "az", "azure", "abfs", "abfss")
ATTEMPTS = 4
"""Of every request."""
RETRIES = 4
"""obstore's own, inside each attempt."""
FIRST_WAIT_S = 0.25
"""Before the second attempt; four times as long before each further one."""

_PATIENT = {"timeout": "300s", "read_timeout": "60s", "connect_timeout": "5s"}
_QUICK = {"timeout": "3s", "connect_timeout": "2s"}
_SWITCHES = ("allow_http", "allow_invalid_certificates")
_TEXTS = ("timeout", "read_timeout", "connect_timeout", "proxy_url", "proxy_excludes", "user_agent")
_NO_BUCKET = re.compile("NoSuchBucket|ContainerNotFound")
"""How the stores say it: S3 and Google as the one, Azure as the other."""
_first_process: list[int] = []
"""The process that made the first request: obstore's threads do not survive a fork."""


class TooShort(Exception):
    """Fewer bytes came than the object has."""


def open_store(url: str, *, quick: bool = False) -> ObjectStore:
    """The store of a URL, its prefix included. ``quick`` gives up after seconds, not minutes."""
    try:
        from obstore.exceptions import BaseError
        from obstore.store import from_url
    except ImportError as error:
        raise UsageError(
            f"{url} lies on an object store, which needs obstore. Install phistill[object-stores]."
        ) from error
    retry: Any = {
        "max_retries": 1 if quick else RETRIES,
        "retry_timeout": timedelta(seconds=3 if quick else 120),
        "backoff": {
            "init_backoff": timedelta(milliseconds=100),
            "max_backoff": timedelta(seconds=5),
        },
    }
    client = {**_PATIENT, **_client_settings(), **(_QUICK if quick else {})}
    options: Any = {"client_options": client, "retry_config": retry}
    provider = _profile_credentials(url)
    if provider is not None:
        options["credential_provider"] = provider
    try:
        return from_url(url, **options)
    except (BaseError, ValueError) as error:
        raise UsageError(f"{url} cannot be opened: {_first_line(error)}. {_SETTINGS}") from error


def _client_settings() -> dict[str, Any]:
    """AWS_ALLOW_HTTP and its like: obstore reads them only when it is given no client options."""
    settings: dict[str, Any] = {}
    for prefix in ("AWS_", "GOOGLE_", "AZURE_"):
        for name in (*_SWITCHES, *_TEXTS):
            value = os.environ.get(prefix + name.upper())
            if value:
                yes = value.lower() in ("1", "true", "yes", "on")
                settings[name] = yes if name in _SWITCHES else value
    return settings


def _profile_credentials(url: str) -> Any:
    """Credentials of the AWS profile, through boto3 where it is installed: obstore knows the
    environment and the machine's role, but not ~/.aws."""
    if not url.startswith("s3") or "AWS_ACCESS_KEY_ID" in os.environ:
        return None
    shared = os.environ.get("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials")
    if "AWS_PROFILE" not in os.environ and not Path(shared).expanduser().is_file():
        return None
    try:
        from obstore.auth.boto3 import Boto3CredentialProvider
    except ImportError:
        return None
    return Boto3CredentialProvider()


def attempt(verb: str, where: str, call: Callable[[], T], *, attempts: int = ATTEMPTS) -> T:
    """``call()``, tried again while the failure may pass.

    ``verb`` is its participle for messages ("read"). Raises FileNotFoundError, obstore's
    AlreadyExistsError and PreconditionError as they come, and StoreError naming ``where`` and what
    to do for everything else.
    """
    from obstore import exceptions as known

    _require_same_process(where)
    started, wait = time.monotonic(), FIRST_WAIT_S
    for number in range(1, attempts + 1):
        try:
            return call()
        except FileNotFoundError as error:
            if _NO_BUCKET.search(str(error)):
                raise _explain(verb, where, error, started, number) from None
            raise FileNotFoundError(errno.ENOENT, "no such object", where) from None
        except (known.AlreadyExistsError, known.PreconditionError):
            raise
        except (known.BaseError, TooShort) as error:
            if number == attempts or _is_final(error):
                raise _explain(verb, where, error, started, number) from error
            log.debug("%s not %s, trying again: %s", where, verb, _first_line(error))
        time.sleep(wait * random.uniform(0.5, 1.0))
        wait *= 4
    raise AssertionError("the last attempt returns or raises")


def _require_same_process(where: str) -> None:
    if not _first_process:
        _first_process.append(os.getpid())
    if _first_process[0] != os.getpid():
        raise UsageError(
            f"{where} cannot be reached from a forked process: the connections stayed with its "
            "parent. Start workers with multiprocessing_context='spawn' or 'forkserver'."
        )


def _status(error: BaseException) -> int | None:
    status = re.search(r"status code: (\d{3})", str(error))
    if status is None:
        return 404 if _NO_BUCKET.search(str(error)) else None
    return int(status[1])


def _is_final(error: BaseException) -> bool:
    """Whether asking again cannot help."""
    from obstore import exceptions as known

    never = (
        known.PermissionDeniedError,
        known.UnauthenticatedError,
        known.NotSupportedError,
        known.InvalidPathError,
        known.UnknownConfigurationKeyError,
    )
    status = _status(error)
    refused = status is not None and 400 <= status < 500 and status not in (408, 429)
    return isinstance(error, never) or refused or "builder error" in str(error)


def _first_line(error: BaseException) -> str:
    """What obstore says, without its dump of the source and the server's XML."""
    text = str(error).split("\n\nDebug source")[0].split("<?xml")[0].split("<Error>")[0]
    return " ".join(text.split()).rstrip(" :.")


_SETTINGS = (
    "The endpoint, region and credentials come from the environment: AWS_ENDPOINT_URL, AWS_REGION, "
    "AWS_ACCESS_KEY_ID and so on; see docs/object-stores.md."
)


def _explain(
    verb: str, where: str, error: BaseException, started: float, number: int
) -> StoreError:
    from obstore import exceptions as known

    text = _first_line(error)
    if _NO_BUCKET.search(str(error)):
        advice = "Its bucket does not exist: make it first, or mend the URL."
    elif "169.254.169.254" in text or "metadata" in text:
        advice = f"No credentials were found. {_SETTINGS}"
    elif "builder error" in text:
        advice = "For an endpoint without TLS (http://) set AWS_ALLOW_HTTP=true."
    elif isinstance(error, known.PermissionDeniedError | known.UnauthenticatedError):
        advice = f"The store refused these credentials: check them and the policy. {_SETTINGS}"
    elif _is_final(error):
        advice = _SETTINGS
    else:
        seconds = time.monotonic() - started
        tried = f"{number} attempts in {seconds:.0f} s"
        advice = f"({tried}.) Check the network and the store, then run the same command again: "
        advice += "it goes on where it stopped."
    return StoreError(f"{where} could not be {verb}: {text}. {advice}")

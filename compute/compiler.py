"""What torch.compile says where it cannot compile, in one line."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from phistill.errors import UsageError


@contextlib.contextmanager
def explaining_compiler() -> Iterator[None]:
    """UsageError where torch.compile fails inside, most often for want of a C++ compiler.

    Errors of other code pass. It compiles when a function is first called, so that is where to ask.
    """
    try:
        yield
    except RuntimeError as error:
        if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UsageError(
            f"compile=true, but torch.compile fails: {reason[:300].rstrip('.')}. Install a C++ "
            "compiler (g++, with the headers of this Python), or take compile=false."
        ) from error

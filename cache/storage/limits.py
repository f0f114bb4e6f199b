"""How many files this process may have open, and what to say when it has."""

from __future__ import annotations

import errno

MAX_OPEN_FILES = 2**16
"""The soft limit is raised to the hard one, but no further than this."""
USUAL_LIMIT = 256
"""Where a system does not say."""


def open_file_limit() -> int:
    """Files that this process may have open, its soft limit raised to the hard one."""
    try:
        import resource
    except ImportError:  # not a POSIX system
        return USUAL_LIMIT
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = MAX_OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, MAX_OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < highest:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (highest, hard))
            return highest
        except (OSError, ValueError):
            return soft
    return MAX_OPEN_FILES if soft == resource.RLIM_INFINITY else soft


def is_out_of_files(error: OSError) -> bool:
    """Whether the process, or the machine, has as many files open as it may."""
    return error.errno in (errno.EMFILE, errno.ENFILE)


def out_of_files_text() -> str:
    """What to do about it."""
    return (
        f"This process may have {open_file_limit():,} files open, and has. Raise the limit with "
        "`ulimit -n` (or its hard limit, `ulimit -Hn`, as the system's administrator), or use "
        "fewer workers."
    )

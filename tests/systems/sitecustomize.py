"""Takes from Python, in this process and its children, what another system does not have. It is
found on PYTHONPATH; PHISTILL_TEST_SYSTEM says which system."""

import os
import sys

WITHOUT = {
    "macos": {
        "modules": (),
        "os": ("posix_fadvise", "preadv", "sched_getaffinity", "memfd_create"),
        "resource": ("RLIMIT_AS",),
        "select": ("epoll",),
        "fcntl": ("F_OFD_SETLK", "F_OFD_GETLK"),  # macOS has them, laid out differently
    },
    "windows": {
        "modules": ("fcntl", "resource"),
        "os": (
            *("posix_fadvise", "preadv", "pread", "pwrite", "pwritev", "writev", "readv"),
            *("sched_getaffinity", "memfd_create", "O_DIRECTORY", "O_CLOEXEC"),
        ),
        "select": ("poll", "epoll"),
    },
}

system = WITHOUT[os.environ["PHISTILL_TEST_SYSTEM"]]
for name in system["modules"]:
    sys.modules[name] = None  # type: ignore[assignment]
for module in ("os", "resource", "select", "fcntl"):
    for name in system.get(module, ()):
        loaded = __import__(module)
        if hasattr(loaded, name):
            delattr(loaded, name)

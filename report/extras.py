"""What a report needs beside a plain install; looked for without importing it."""

from __future__ import annotations

import importlib.util

from phistill.errors import UsageError


def require_libraries() -> None:
    """UsageError naming the extra when matplotlib or Jinja2 is not installed."""
    missing = [name for name in ("matplotlib", "jinja2") if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(
            f"a report needs {' and '.join(missing)}. Install the extra: "
            "pip install 'phistill[report]'."
        )

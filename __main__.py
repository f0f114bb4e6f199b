"""The ``phistill`` command, and ``python -m phistill``: Ctrl-C is answered from the first moment.

Loading the commands takes a moment, loading what they need seconds; nothing is imported before the
answer is in place.
"""

from __future__ import annotations

import os
import signal
from types import FrameType


def main() -> None:
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else it is to be ignored
        signal.signal(signal.SIGINT, _leave)
    from phistill.cli import main as run

    run()


def _leave(number: int, frame: FrameType | None) -> None:
    os.write(2, b"Interrupted. Nothing had begun.\n")
    os._exit(128 + number)


if __name__ == "__main__":
    main()

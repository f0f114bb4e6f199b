"""A decoding process whose decoder crashes, hangs or talks on certain images."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

from phistill.pipeline import decode_worker

decode_image = decode_worker.decode_image


def misbehave(data: bytes, image_id: str, *rest: Any) -> Any:
    if image_id == "crashes":
        os.kill(os.getpid(), signal.SIGSEGV)
    if image_id == "hangs":
        time.sleep(3600)
    if image_id == "talks":
        os.write(1, b"TIFFReadDirectory: Warning, unknown field.\n" * 1000)
    return decode_image(data, image_id, *rest)


if __name__ == "__main__":
    decode_worker.decode_image = misbehave
    decode_worker.main()

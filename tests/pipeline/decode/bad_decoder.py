"""A decoding process whose decoder crashes, hangs or talks on certain images."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence

from phistill.pipeline.decode import worker as decode_worker
from phistill.pipeline.decode.image import DecodedImage, DecodeSetup, decode_image


def misbehave(
    data: bytes, image_id: str, numbers: Sequence[int], setup: DecodeSetup
) -> DecodedImage:
    if image_id == "crashes":
        os.kill(os.getpid(), signal.SIGSEGV)
    if image_id == "hangs":
        time.sleep(3600)
    if image_id == "talks":
        os.write(1, b"TIFFReadDirectory: Warning, unknown field.\n" * 1000)
    return decode_image(data, image_id, numbers, setup)


if __name__ == "__main__":
    decode_worker.main(misbehave)

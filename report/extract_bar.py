"""The live line of an extraction: how fast, how busy the teachers are, and what they wait for."""

from __future__ import annotations

from phistill.pipeline.progress import ExtractProgress

from .terminal import bytes_text

WAIT_WORTH_SAYING = 0.05
"""From this share of the time on, what the teachers wait for is named."""


def done_images(at: ExtractProgress) -> int:
    """Images through everything they miss; one through half of its teachers counts a half."""
    return at.computed_rows * at.num_images // at.total_rows if at.total_rows else 0


def progress_note(at: ExtractProgress) -> str:
    """``41.2 images/s, teachers busy 97 %, 12.3 MB/s written, 0 rejected``."""
    parts = [
        f"{at.images_per_s:.3g} images/s"
        if at.images_per_s < 100
        else f"{at.images_per_s:,.0f} images/s"
    ]
    if at.busy is not None:
        parts.append(f"teachers busy {at.busy:.0%}{_waiting(at)}")
    parts.append(f"{bytes_text(at.bytes_per_s)}/s written")
    parts.append(f"{at.num_rejects:,} rejected")
    return ", ".join(parts)


def _waiting(at: ExtractProgress) -> str:
    waits = {"images": at.images_wait_s or 0.0, "the disk": at.disk_wait_s or 0.0}
    shares = {what: wait_s / at.pass_s for what, wait_s in waits.items() if at.pass_s > 0}
    named = [
        f"{share:.0%} waiting for {what}"
        for what, share in shares.items()
        if share >= WAIT_WORTH_SAYING
    ]
    return f" ({', '.join(named)})" if named else ""

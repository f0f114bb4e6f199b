"""Studies that come with phistill: the methods that PHI-S was compared with (arXiv:2410.01680,
Tables 1 and 12), as cells of a sweep."""

from __future__ import annotations

from typing import Any

from phistill.errors import UsageError, did_you_mean

# By the paper's names, or by the settings' own words where these name the same (pca, hybrid-mse).
# Losses on features as they are, then normalizers under mean squared error, then the running
# balance of A.8.1.
METHODS: tuple[dict[str, Any], ...] = (
    {"name": "mse", "normalizer": "none", "patch_loss": "mse"},
    {"name": "cosine", "normalizer": "none", "patch_loss": "cosine"},
    {"name": "hybrid-mse", "normalizer": "none", "patch_loss": "hybrid-mse"},
    {"name": "hybrid-smooth-l1", "normalizer": "none", "patch_loss": "hybrid-smooth-l1"},
    {"name": "global", "normalizer": "global", "patch_loss": "mse"},
    {"name": "standardize", "normalizer": "standardize", "patch_loss": "mse"},
    {"name": "phi-s", "normalizer": "phi-s", "patch_loss": "mse"},
    {"name": "pca", "normalizer": "pca", "patch_loss": "mse"},
    {"name": "zca", "normalizer": "zca", "patch_loss": "mse"},
    {"name": "hca", "normalizer": "hca", "patch_loss": "mse"},
    {"name": "ada-mse", "normalizer": "none", "patch_loss": "mse", "balance": "adaloss"},
    {"name": "ada-phi-s", "normalizer": "phi-s", "patch_loss": "mse", "balance": "adaloss"},
)

PRESETS = {"methods": METHODS}


def preset(name: str) -> tuple[dict[str, Any], ...]:
    """The cells of a preset; UsageError for an unknown one."""
    if name not in PRESETS:
        near = did_you_mean(name, PRESETS)
        raise UsageError(f"preset={name!r} is unknown; there is {', '.join(PRESETS)}.{near}")
    return PRESETS[name]

"""Windows of attention that are filled with padding: seen while a model runs.

Swin, SAM, DaViT, TinyViT and others cut a map into windows, and where these do not divide it they
pad it below and to the right first. Tokens near those edges then look at padding, which no
exception tells.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.overrides import TorchFunctionMode


class WindowPadding(TorchFunctionMode):
    """Within it, calls that pad a map (b, h, w, c) along h or w and not along c are remembered."""

    def __init__(self) -> None:
        super().__init__()
        self._maps: dict[tuple[int, int], tuple[int, int]] = {}

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is torch.nn.functional.pad and len(args) > 1 and args[0].ndim == 4:
            before, *others = args[1]
            if len(others) == 5 and before == others[0] == 0 and any(others[1:]):
                left, right, top, bottom = others[1:]
                height, width = args[0].shape[1:3]
                self._maps[height, width] = (height + top + bottom, width + left + right)
        return func(*args, **(kwargs or {}))

    def text(self) -> str:
        """``64 x 64 to 70 x 70, 32 x 32 to 35 x 35``; nothing where nothing was padded."""
        return ", ".join(
            f"{height} x {width} to {padded[0]} x {padded[1]}"
            for (height, width), padded in self._maps.items()
        )

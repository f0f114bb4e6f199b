"""From predictions and stored features to the terms of the loss.

Targets are normalised here, on the training device, by the fitted normalizers, and decoded where
they are stored as codes; summaries are left as they are unless their loss is MSE.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import cast

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from phistill.cache.codes import RowCodec
from phistill.stats import Normalizer
from phistill.stats.codes import CodecModule

from ..config import TrainConfig
from ..data.batch import Batch
from ..targets import SUMMARY, Target
from .losses import make_loss
from .token_grids import Crop, GridRule, overlap


class TargetTransform(nn.Module):
    """y = W (x - mean) in float32; a diagonal W multiplies, the identity does nothing."""

    mean: Tensor
    W: Tensor

    def __init__(self, normalizer: Normalizer) -> None:
        super().__init__()
        forward = normalizer.forward
        diagonal = np.array_equal(forward, np.diag(np.diagonal(forward)))
        self.is_identity = diagonal and bool((np.diagonal(forward) == 1).all())
        self.is_identity &= not normalizer.mean.any()
        matrix = np.diagonal(forward) if diagonal else forward
        self.register_buffer("mean", torch.tensor(normalizer.mean, dtype=torch.float32))
        self.register_buffer("W", torch.tensor(np.ascontiguousarray(matrix), dtype=torch.float32))
        self.digest = hashlib.sha256(
            self.mean.numpy().tobytes() + self.W.numpy().tobytes()
        ).digest()
        """Equal for transforms that give the same bits."""
        self._normalizer = normalizer
        self._decoding: dict[RowCodec, DecodingTransform] = {}

    def of_codes(self, codec: RowCodec) -> DecodingTransform:
        """The same of values that are stored as codes; made once for each codec."""
        if codec not in self._decoding:
            self._decoding[codec] = DecodingTransform(codec, self._normalizer, self.digest)
        return self._decoding[codec]

    def forward(self, x: Tensor) -> Float[Tensor, "... c"]:
        if self.is_identity:
            return x.float()
        centred = x.float() - self.mean
        return F.linear(centred, self.W) if self.W.ndim == 2 else centred * self.W


class DecodingTransform:
    """y = W (decoded - mean) in float32 of codes (n, bytes), on their device: unpacked there, the
    axes of the codec and W in one product. Decoded without bias: the nearest values would teach a
    student to predict too little where codes are coarse."""

    is_identity = False

    def __init__(self, codec: RowCodec, normalizer: Normalizer, digest: bytes) -> None:
        self._module = CodecModule(codec, normalizer, unbiased=True)
        self.digest = hashlib.sha256(b"unbiased" + digest + codec.to_bytes()).digest()
        """Equal for transforms that give the same bits."""

    def of_codes(self, codec: RowCodec) -> DecodingTransform:
        """Itself: it is of codes already."""
        return self

    def __call__(self, codes: Tensor) -> Float[Tensor, "n ..."]:
        rows: Tensor = self._module.to(codes.device)(codes)
        return rows


class Objective(nn.Module):
    """The loss terms of one run. Holds no parameters."""

    def __init__(
        self,
        config: TrainConfig,
        targets: Sequence[Target],
        normalizers: Mapping[str, Normalizer],
        dispersions: Mapping[str, float],
    ) -> None:
        super().__init__()
        self.targets = tuple(targets)
        self.rule = GridRule(
            side=config.grid_side,
            interpolation=config.grid_interpolation,
            align_corners=config.grid_align_corners,
        )
        self.losses = {
            target.key: make_loss(target, config, dispersions.get(target.key))
            for target in self.targets
        }
        self.transforms = nn.ModuleList(
            TargetTransform(normalizers[target.key]) for target in self.targets
        )

    def transforms_by_target(self) -> dict[str, TargetTransform]:
        """By target key."""
        return {t.key: one for t, one in zip(self.targets, self._transforms(), strict=True)}

    def digest(self) -> bytes:
        """Equal for objectives whose targets are normalised alike."""
        return b"".join(transform.digest for transform in self._transforms())

    @torch.no_grad()
    def normalised(self, batch: Batch) -> dict[str, Tensor]:
        """Targets in normalised space: patches (n, h, w, c), summary (n, c), float32."""
        values = {}
        for target, transform in zip(self.targets, self._transforms(), strict=True):
            value = _once(batch, target.key, transform)
            values[target.key] = (
                value if target.kind == SUMMARY else value.unflatten(1, target.grid)
            )
        return values

    def _transforms(self) -> Iterator[TargetTransform]:
        return cast("Iterator[TargetTransform]", iter(self.transforms))

    def terms(
        self, predictions: Mapping[str, Tensor], wanted: Mapping[str, Tensor], crop: Crop | None
    ) -> dict[str, Float[Tensor, " n"]]:
        """Loss per row of each target, unweighted."""
        found = {}
        for target in self.targets:
            x, y = predictions[target.key].float(), wanted[target.key]
            if target.kind == SUMMARY:
                x, y = x[:, None], y[:, None]
            elif crop is not None:
                x, y = overlap(x, y, crop, self.rule.side)
                x, y = x.flatten(1, 2), y.flatten(1, 2)
                if not x.shape[1]:  # a small window may hold no centre of a coarse grid
                    found[target.key] = x.sum((1, 2))
                    continue
            else:
                grid = self.rule.meeting((x.shape[1], x.shape[2]), target.grid)
                x = self.rule.resize(x, grid).flatten(1, 2)
                y = self.rule.resize(y, grid).flatten(1, 2)
            found[target.key] = self.losses[target.key](x, y)
        return found


def _once(batch: Batch, key: str, stored: TargetTransform) -> Tensor:
    """The batch's target normalised; taken over from the student before where it had the same.

    Only the last normalizer of a target is kept, and only while nobody has written to its result
    (a loss of the user's own might): torch counts writes.
    """
    transform: TargetTransform | DecodingTransform = stored
    if key in batch.codecs:
        transform = stored.of_codes(batch.codecs[key])
    if batch.normalised.get(key) == transform.digest:
        return batch.values[key]
    if batch.shared is None:
        return transform(batch.values[key])
    digest, value, version = batch.shared.get(key, (b"", None, 0))
    if value is None or digest != transform.digest or value._version != version:
        value = transform(batch.values[key])
        batch.shared[key] = (transform.digest, value, value._version)
    return value

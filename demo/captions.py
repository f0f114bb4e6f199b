"""Captions and the tokenizer of `clip`: words of the file name and folders, in a small vocabulary.

Token 0 pads, the last token ends a caption (open_clip pools at the largest id), words lie between.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Int
from torch import Tensor

CONTEXT = 12
"""Tokens of a caption, the end included; longer captions lose their last words."""


def caption(name: str, folders: str) -> str:
    """What is said of a drawing: its name, then the folders, no word twice.

    >>> caption("brown cat", "animals mammals cat")
    'brown cat animals mammals'
    """
    return " ".join(dict.fromkeys(f"{name} {folders}".split()))


def vocabulary(captions: Sequence[str], min_count: int) -> list[str]:
    """Words of at least `min_count` captions, sorted: rarer ones are authors and typing errors."""
    counts = Counter(word for text in captions for word in text.split())
    return sorted(word for word, count in counts.items() if count >= min_count)


@dataclass(frozen=True, slots=True)
class Tokenizer:
    """Words to ids; words outside the vocabulary are left out."""

    words: tuple[str, ...]
    context: int = CONTEXT
    number: dict[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "number", {word: i + 1 for i, word in enumerate(self.words)})

    @property
    def vocab_size(self) -> int:
        return len(self.words) + 2

    def ids(self, text: str) -> list[int]:
        """Ids of the known words of a caption, without end and padding."""
        return [self.number[w] for w in text.split() if w in self.number]

    def pack(self, rows: Sequence[Sequence[int]]) -> Int[Tensor, "n context"]:
        """Cut, end and pad rows of ids."""
        packed = torch.zeros(len(rows), self.context, dtype=torch.int64)
        for i, row in enumerate(rows):
            kept = [*row[: self.context - 1], self.vocab_size - 1]
            packed[i, : len(kept)] = torch.tensor(kept)
        return packed

    def __call__(self, texts: Sequence[str]) -> Int[Tensor, "n context"]:
        return self.pack([self.ids(text) for text in texts])

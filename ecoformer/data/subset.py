"""A part of a data set, for trials and smoke runs."""

from __future__ import annotations

import numpy as np
from PIL import Image

from ecoformer.data.sources import LabelledSource

SUBSET_SEED = 0  # a constant: max_train_samples=N means the same images in every run


class Subset:
    """Some images of a source, in the source's order."""

    def __init__(self, source: LabelledSource, indices: np.ndarray) -> None:
        self.source = source
        self.indices = indices
        self.targets = source.targets[indices]

    def __len__(self) -> int:
        return len(self.indices)

    def open(self, index: int) -> Image.Image:
        return self.source.open(int(self.indices[index]))

    def name(self, index: int) -> str:
        return self.source.name(int(self.indices[index]))


def take(source: LabelledSource, limit: int | None) -> LabelledSource:
    """At most `limit` images, the classes as equal in number as they allow; the same ones in every run."""
    if limit is None or limit >= len(source):
        return source
    order = np.random.default_rng(SUBSET_SEED).permutation(len(source))
    targets = source.targets[order]
    by_class = np.argsort(targets, kind="stable")
    starts = np.searchsorted(targets[by_class], targets[by_class])
    turn = np.empty(len(source), dtype=np.int64)
    turn[by_class] = np.arange(len(source)) - starts  # 0 for a class's first image, 1 for its second, ...
    return Subset(source, np.sort(order[np.argsort(turn, kind="stable")[:limit]]))

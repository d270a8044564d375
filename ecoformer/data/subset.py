"""A part of a data set, for trials and smoke runs."""

import numpy as np
from PIL import Image

from ecoformer.data.sources import LabelledSource
from ecoformer.errors import InputError

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
    return Subset(source, _balanced(source, limit))


def split_off(source: LabelledSource, num_dev: int) -> tuple[LabelledSource, LabelledSource]:
    """(what is left to train on, a development split of `num_dev` images as `take` chooses them).

    Settings are chosen on the second, so that the test data are looked at once. Raises InputError if nothing is left.
    """
    if num_dev >= len(source):
        raise InputError(f"data.dev_samples={num_dev} must be less than the {len(source)} training images: lower it")
    chosen = _balanced(source, num_dev)
    left = np.setdiff1d(np.arange(len(source)), chosen, assume_unique=True)
    return Subset(source, left), Subset(source, chosen)


def _balanced(source: LabelledSource, limit: int) -> np.ndarray:
    order = np.random.default_rng(SUBSET_SEED).permutation(len(source))
    targets = source.targets[order]
    by_class = np.argsort(targets, kind="stable")
    starts = np.searchsorted(targets[by_class], targets[by_class])
    turn = np.empty(len(source), dtype=np.int64)
    turn[by_class] = np.arange(len(source)) - starts  # 0 for a class's first image, 1 for its second, ...
    return np.sort(order[np.argsort(turn, kind="stable")[:limit]])

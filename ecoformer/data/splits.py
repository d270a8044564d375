"""A data set as it was found: its splits, what is known of its classes and samples, and parts of it for trials."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from PIL import Image

from ecoformer.config.schema import DataConfig
from ecoformer.data.decode import ImageSource
from ecoformer.data.sequences import SequenceSource
from ecoformer.errors import InputError


class LabelledSource(ImageSource, Protocol):
    """An `ImageSource` with `targets`: one class index per image, int64."""

    targets: np.ndarray


Source = LabelledSource | SequenceSource


@dataclass(frozen=True)
class Splits:
    """A data set as it was found. `train` is None where only validation was asked for.

    With a `vocab_size` its samples are sequences, whose ids lie below it; images among them are read as grey pixels.
    """

    class_names: list[str]
    train: Source | None
    val: Source
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)  # of images; ids are taken as they are
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    crop_pct: float = 1.0  # what to evaluate at when the config leaves it open
    notes: list[str] = field(default_factory=list)  # what was passed over
    vocab_size: int | None = None


SUBSET_SEED = 0  # a constant: max_train_samples=N means the same samples in every run


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


def take(source: Source, limit: int | None) -> Source:
    """At most `limit` samples, the classes as equal in number as they allow; the same ones in every run."""
    return source if limit is None or limit >= len(source) else part(source, _balanced(source, limit))


def split_off(source: Source, num_dev: int) -> tuple[Source, Source]:
    """(what is left to train on, a development split of `num_dev` samples as `take` chooses them).

    Settings are chosen on the second, so that the test data are looked at once. Raises InputError if nothing is left.
    """
    if num_dev >= len(source):
        raise InputError(f"data.dev_samples={num_dev} must be less than the {len(source)} training images: lower it")
    chosen = _balanced(source, num_dev)
    left = np.setdiff1d(np.arange(len(source)), chosen, assume_unique=True)
    return part(source, left), part(source, chosen)


def held_out(data: DataConfig, found: Mapping[str, Source], where: str) -> tuple[Source | None, Source]:
    """(training split, what is evaluated) of sequences: "val" where it is there, else cut off "train".

    data.val_split=test evaluates the test split, and leaves the training split as it is without. Raises InputError if
    what is asked for is not there.
    """
    train, wanted = found.get("train"), data.val_split or "val"
    if wanted not in ("val", "test"):
        raise InputError(f"data.val_split={wanted} must be val or test for data={data.name}, or null")
    if train is not None and (data.dev_samples or "val" not in found):
        number = data.dev_samples or max(1, round(data.val_share * len(train)))
        train, dev = split_off(train, number)
        found = {**found, "val": dev}
    if wanted not in found:
        raise InputError(f"{where} has no {wanted} split (there: {', '.join(found) or 'none'}): set data.val_split")
    return train, found[wanted]


def part(source: Source, indices: np.ndarray) -> Source:
    return source.part(indices) if isinstance(source, SequenceSource) else Subset(source, indices)


def _balanced(source: Source, limit: int) -> np.ndarray:
    order = np.random.default_rng(SUBSET_SEED).permutation(len(source))
    targets = source.targets[order]
    by_class = np.argsort(targets, kind="stable")
    starts = np.searchsorted(targets[by_class], targets[by_class])
    turn = np.empty(len(source), dtype=np.int64)
    turn[by_class] = np.arange(len(source)) - starts  # 0 for a class's first sample, 1 for its second, ...
    return np.sort(order[np.argsort(turn, kind="stable")[:limit]])

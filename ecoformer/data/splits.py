"""A data set as it was found: its splits, and what is known of its classes and samples."""

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from ecoformer.data.decode import ImageSource
from ecoformer.data.sequences import SequenceSource


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

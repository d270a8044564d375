"""What a look through a data set finds: samples per split and class, and faults."""

from dataclasses import dataclass, field

import numpy as np

from ecoformer.data.folders import shorten
from ecoformer.errors import counted


@dataclass(frozen=True)
class DataFault:
    """One thing that is wrong: a kind (empty class, corrupt image, ...), where, and what, in words."""

    kind: str
    where: str
    what: str = ""

    def __str__(self) -> str:
        return f"{self.kind}: {self.where}" + (f" ({self.what})" if self.what else "")


@dataclass
class SplitCount:
    """Images of a split, per class in the order of the class numbers; broken ones are counted too."""

    name: str
    images: int
    per_class: dict[str, int]


@dataclass
class SequenceCount:
    """Sequences of a split, per class; their lengths (min, median, max), the share that seq_len cuts, and the first."""

    name: str
    samples: int
    per_class: dict[str, int]
    lengths: dict[str, int]
    cut: float | None
    example: str


@dataclass
class Audit:
    """What was found under a root."""

    root: str
    layout: str  # folder, webdataset, hfds, listops or text_bytes
    splits: list[SplitCount | SequenceCount] = field(default_factory=list)
    faults: list[DataFault] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # what is passed over, and no fault


def count(split: str, targets: np.ndarray, names: list[str]) -> SplitCount:
    """Images per class; labels outside the classes count towards the split alone."""
    inside = targets[(targets >= 0) & (targets < len(names))]
    counts = np.bincount(inside, minlength=len(names)).tolist()
    return SplitCount(split, len(targets), dict(zip(names, counts, strict=True)))


def summary(split: SplitCount | SequenceCount) -> str:
    """Samples, classes, and the smallest and largest class; of sequences also their lengths, and the first one."""
    number, noun = (split.images, "image") if isinstance(split, SplitCount) else (split.samples, "sample")
    counts = sorted(split.per_class.items(), key=lambda item: item[1])
    if not counts:
        return f"{split.name}: {counted(number, noun)}, no classes"
    few, many = counts[0], counts[-1]
    empty = [name for name, count in counts if count == 0]
    note = f"; empty: {shorten(empty)}" if empty else ""
    line = (
        f"{split.name}: {counted(number, noun)} in {counted(len(counts), 'class')}, "
        f"{few[1]} ({few[0]}) to {many[1]} ({many[0]}) a class{note}"
    )
    if isinstance(split, SplitCount):
        return line
    cut = "" if split.cut is None else f", {split.cut:.1%} cut"
    lengths = "{min} to {max} tokens, median {median}".format(**split.lengths)
    return f"{line}; {lengths}{cut}\n  {split.example}"

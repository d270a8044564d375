"""Sequences: samples of unequal length as symbols, which become rows of ids, and images as rows of grey pixels.

Id 0 is padding, symbol s is id s + 1. Shapes: B samples, N tokens of a row, S side of an image in pixels.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from ecoformer.data.decode import EvalTransform, ImageSource, decode_images, grey
from ecoformer.errors import InputError

BYTES = 256  # symbols of a text, and grey values of a pixel
CHUNK = 1024


def as_text(symbols: np.ndarray) -> str:
    """Bytes as the text that they are; what is no UTF-8 is replaced."""
    return symbols.astype(np.uint8).tobytes().decode(errors="replace")


@dataclass
class SequenceSource:
    """Samples that are sequences of symbols; all lie in one array, so that a part of them copies none."""

    label: str
    symbols: np.ndarray
    starts: np.ndarray  # of each sample, in `symbols`
    lengths: np.ndarray
    targets: np.ndarray  # a class number per sample, int64
    decode: Callable[[np.ndarray], str] = as_text  # symbols of a sample as a reader knows them
    numbers: np.ndarray | None = None  # of the samples in the whole that this is a part of

    @classmethod
    def of(
        cls, label: str, samples: list[bytes], targets: list[int], decode: Callable[[np.ndarray], str] = as_text
    ) -> "SequenceSource":
        """Samples of at least one symbol, each of which is a byte."""
        lengths = np.array([len(sample) for sample in samples], np.int64)
        symbols = np.frombuffer(b"".join(samples), np.uint8)
        return cls(label, symbols, np.cumsum(lengths) - lengths, lengths, np.array(targets, np.int64), decode)

    def __len__(self) -> int:
        return len(self.targets)

    def part(self, indices: np.ndarray) -> "SequenceSource":
        numbers = np.arange(len(self)) if self.numbers is None else self.numbers
        kept = {key: getattr(self, key)[indices] for key in ("starts", "lengths", "targets")}
        return replace(self, **kept, numbers=numbers[indices])

    def name(self, index: int) -> str:
        return f"{self.label} sample {index if self.numbers is None else self.numbers[index]}"

    def sample(self, index: int) -> np.ndarray:
        """The symbols of one sample, all of them."""
        return self.symbols[self.starts[index] : self.starts[index] + self.lengths[index]]

    def ids(self, indices: Sequence[int] | np.ndarray, seq_len: int, vocab_size: int) -> torch.Tensor:
        """Ids (B, N), cut or padded to N = `seq_len`, in the smallest integers that hold them."""
        rows = np.zeros((len(indices), seq_len), id_type(vocab_size))
        for row, index in zip(rows, indices, strict=True):
            symbols = self.sample(index)[:seq_len]
            row[: len(symbols)] = symbols
            row[: len(symbols)] += 1
        return torch.from_numpy(rows)


def id_type(vocab_size: int) -> type[np.integer[Any]]:
    """The smallest integers that hold ids below `vocab_size`, which is at most 2**15."""
    return np.uint8 if vocab_size <= BYTES else np.int16


def grey_ids(
    source: ImageSource, indices: Sequence[int] | np.ndarray, transform: EvalTransform, **options: Any
) -> tuple[torch.Tensor, np.ndarray]:
    """Images as ids (B, S * S) int16, row by row, and which of `indices` could be read: see `decode_images`."""
    pixels, readable = decode_images(source, indices, transform, **options)
    return torch.cat([grey(chunk).short().flatten(1) + 1 for chunk in pixels.split(CHUNK)]), readable


def class_numbers(labels: dict[str, list[str]], where: str) -> tuple[list[str], dict[str, list[int]]]:
    """The names of the classes, numbers in their order, and the number of every label; `labels` by split.

    Raises InputError if a split has classes that another lacks.
    """
    known = {split: set(names) for split, names in labels.items()}
    first, *others = known
    for split in others:
        if odd := sorted(known[split] ^ known[first]):
            here, there = (split, first) if odd[0] in known[split] else (first, split)
            raise InputError(f"{where}: class {odd[0]!r} is in the {here} split and not in {there}: both need the same")
    names = sorted(known[first], key=lambda name: (int(name), name) if name.isdecimal() else (-1, name))
    number = {name: index for index, name in enumerate(names)}
    return names, {split: [number[name] for name in found] for split, found in labels.items()}

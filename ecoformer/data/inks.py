"""Inks: pictures full of scikit-learn's digits in four colours; which digit does one ink write again and again?

Every picture holds four digits, each as often as the others, and four inks, each as often as the others. One ink writes
one digit alone, the other three write the other three in equal shares. So neither the digits nor the inks tell the
answer, only which of them go together: a model has to look from each digit to those of its colour. The colours differ
from picture to picture. Nothing is downloaded.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ecoformer.config.schema import DataConfig
from ecoformer.data.sources import ArraySource, data_source, load_digits
from ecoformer.data.splits import Splits
from ecoformer.errors import InputError

INKS = 4
CELL = 8  # pixels of a scan's side; each is a cell of the picture
NUM_PICTURES = {"train": 8000, "val": 1000}
SEEDS = {"train": 0, "val": 1}  # constants: every run has the same pictures
AT_ONCE = 500  # pictures


@data_source("inks")
def load_inks(data: DataConfig, *, with_train: bool = True, **_: Any) -> Splits:
    """Pictures of data.img_size pixels, a scan of `digits` in every 8 x 8; those of validation hold validation scans.

    Raises InputError for a size whose cells the inks cannot share.
    """
    if data.img_size % (2 * CELL):
        raise InputError(
            f"data.img_size={data.img_size} must be a multiple of {2 * CELL} for data=inks: {INKS} inks share its "
            f"cells of {CELL} px"
        )
    digits = load_digits()
    made: dict[str, ArraySource] = {}
    for split, scans in (("train", digits.train), ("val", digits.val))[0 if with_train else 1 :]:
        assert isinstance(scans, ArraySource)
        rng = np.random.default_rng(SEEDS[split])
        pictures, targets = draw(scans.images, scans.targets, NUM_PICTURES[split], data.img_size // CELL, rng)
        made[split] = ArraySource(f"inks {split}", pictures, targets)
    mean, std = digits.mean[0], digits.std[0]
    # An ink (see `colours`) takes 1/2 of a grey value on average, and 3/8 of its square.
    std = (3 / 8 * (std**2 + mean**2) - (mean / 2) ** 2) ** 0.5
    return Splits(digits.class_names, made.get("train"), made["val"], (mean / 2,) * 3, (std,) * 3, crop_pct=1.0)


def draw(
    scans: np.ndarray, digits: Sequence[int] | np.ndarray, number: int, side: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """(number, 8 side, 8 side, 3) pictures, uint8, of (N, 8, 8) scans of `digits`, and their pure inks' digits."""
    cells = np.arange(side * side)
    ink, turn = cells % INKS, cells // INKS
    # Which of the picture's digits: the first is the pure ink's, the first ink's; the others take turns.
    digit = np.where(ink == 0, 0, 1 + turn % (INKS - 1))
    chosen = rng.permuted(np.tile(np.arange(10), (number, 1)), axis=1)[:, :INKS]
    order = rng.permuted(np.tile(cells, (number, 1)), axis=1)
    digits_PC, inks_PC = np.take_along_axis(chosen, digit[order], axis=1), ink[order]
    scans_PC = np.empty_like(digits_PC)
    for value in range(10):
        those = digits_PC == value
        scans_PC[those] = rng.choice(np.flatnonzero(np.asarray(digits) == value), those.sum())
    shares = np.rint(255 * colours(rng.random(number))).astype(np.uint16)
    colours_PC3 = np.take_along_axis(shares, inks_PC[..., None], axis=1)
    pictures = np.empty((number, side, CELL, side, CELL, 3), np.uint8)
    for start in range(0, number, AT_ONCE):
        part = slice(start, start + AT_ONCE)
        inked = scans[scans_PC[part], :, :, None] * colours_PC3[part, :, None, None] // 255
        pictures[part] = inked.reshape(-1, side, side, CELL, CELL, 3).swapaxes(2, 3)
    return pictures.reshape(number, side * CELL, side * CELL, 3), chosen[:, 0]


def colours(turns: np.ndarray) -> np.ndarray:
    """(P,) turns of the colour wheel -> (P, INKS, 3) colours evenly spread around it, of equal sums, in [0, 1]."""
    angles = 2 * np.pi * (turns[:, None, None] + np.arange(INKS)[:, None] / INKS - np.arange(3) / 3)
    return (1 + np.cos(angles)) / 2

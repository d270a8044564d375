"""data=inks: what the pictures hold, what tells the answer and what does not."""

from __future__ import annotations

import numpy as np
import pytest

from ecoformer.data import inks
from ecoformer.data.sources import ArraySource, Splits
from ecoformer.errors import InputError

SIDE = 6  # cells: 36, which four inks, and in each three digits, share evenly


def cells_of(pictures: np.ndarray) -> np.ndarray:
    """(P, S, S, 3) pictures -> (P, cells, 3): the colour of each cell's corner."""
    side = pictures.shape[1] // 8
    return pictures[:, ::8, ::8].reshape(-1, side * side, 3).astype(int)


def test_neither_digits_nor_inks_tell_the_answer_but_both_do() -> None:
    digits = np.repeat(np.arange(10), 3)
    # Flat scans: each cell's sum over the channels, 1.5 times the grey value, tells its digit.
    scans = np.broadcast_to((100 + 10 * digits)[:, None, None], (30, 8, 8)).astype(np.uint8)
    pictures, answers = inks.draw(scans, digits, 40, SIDE, np.random.default_rng(0))
    assert pictures.shape == (40, 48, 48, 3) and pictures.dtype == np.uint8
    for cells, answer in zip(cells_of(pictures), answers, strict=True):
        shown = np.rint((cells.sum(-1) / 1.5 - 100) / 10).astype(int)
        hues = cells / cells.sum(-1, keepdims=True)
        ink = np.argmin(np.abs(hues[:, None] - hues[None]).sum(-1) > 0.05, axis=1)  # the first cell of its colour
        assert sorted(np.bincount(shown)[np.unique(shown)]) == [9] * 4
        assert sorted(np.bincount(ink)[np.unique(ink)]) == [9] * 4
        written = {tuple(np.bincount(shown[ink == one], minlength=10)) for one in np.unique(ink)}
        assert sorted(max(counts) for counts in written) == [3, 9]
        assert [np.argmax(counts) for counts in written if max(counts) == 9] == [answer]


def test_each_split_is_made_of_its_own_scans_and_the_same_in_every_run(
    open_data, monkeypatch: pytest.MonkeyPatch
) -> None:
    def scans(value: int) -> ArraySource:
        return ArraySource("scans", np.full((10, 8, 8), value, np.uint8), np.arange(10))

    flat = Splits(list("0123456789"), scans(100), scans(200), mean=(0.4,) * 3, std=(0.1,) * 3)
    monkeypatch.setattr(inks, "load_digits", lambda: flat)
    first, second = (open_data(name="inks", img_size=16, seed=seed) for seed in (0, 1))
    assert (first.num_train, first.num_val, first.num_classes) == (8000, 1000, 10)
    for source, value in ((first.train_source, 100), (first.val_source, 200)):
        assert np.abs(cells_of(source.images).sum(-1) / 1.5 - value).max() <= 2  # each channel is rounded down
    assert np.array_equal(first.val_source.images, second.val_source.images)
    assert np.array_equal(first.train_source.images, second.train_source.images)


def test_statistics_normalise_the_training_split(open_data) -> None:
    data = open_data(name="inks", img_size=48, augment={"hflip": 0.0}, train={"batch_size": 2000})
    images, _ = next(iter(data.train_loader))
    assert images.mean().abs() < 0.02 and (images.std() - 1).abs() < 0.02


def test_a_size_that_inks_cannot_share_is_refused(open_data) -> None:
    with pytest.raises(InputError, match=r"data.img_size=40 must be a multiple of 16 for data=inks"):
        open_data(name="inks", img_size=40)

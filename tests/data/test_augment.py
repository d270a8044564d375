"""Batched augmentation: what each operation does to pixels and targets, and what its draws depend on."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from ecoformer.data.augment import BatchKey, Mix, crop_and_flip, derive_seed, erase, normalize

KEY = BatchKey(seed=3, epoch=1, batch=2)


def images(batch: int = 6, side: int = 7) -> torch.Tensor:
    return torch.randint(1, 256, (batch, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_seeds_are_fixed_numbers_that_differ_by_key():
    assert derive_seed(0, "order", 1) == 8024286156118006313
    assert len({derive_seed(*key) for key in [(0, "a", 1), (1, "a", 0), (0, "b", 1), (0, "a", 2), (-1, "a", 1)]}) == 5


def test_normalize_is_exact():
    mean, std = torch.tensor([0.5, 0.25, 0.0]).view(3, 1, 1), torch.tensor([0.5, 0.25, 1.0]).view(3, 1, 1)
    pixels = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 1, 1, 3).expand(1, 3, 1, 3)
    expected = (pixels.double() / 255 - mean) / std
    torch.testing.assert_close(normalize(pixels, mean, std).double(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("side", [7, 8])
def test_every_crop_is_a_window_of_the_padded_image_or_its_mirror(side: int):
    padding, source = 2, images(40, side)
    out = crop_and_flip(source, KEY, padding=padding, hflip=0.5)
    padded = F.pad(source, [padding] * 4)
    seen = set()
    for index in range(len(source)):
        windows = {
            (top, left, flip): padded[index, :, top : top + side, left : left + side].flip([2] if flip else [])
            for top in range(2 * padding + 1)
            for left in range(2 * padding + 1)
            for flip in (False, True)
        }
        matches = [place for place, window in windows.items() if torch.equal(window, out[index])]
        assert len(matches) == 1
        seen.add(matches[0])
    assert {flip for *_, flip in seen} == {False, True}
    assert {top for top, *_ in seen} == {left for _, left, _ in seen} == set(range(2 * padding + 1))


@pytest.mark.parametrize(("hflip", "expected"), [(0.0, False), (1.0, True)])
def test_flip_alone(hflip: float, expected: bool):
    source = images()
    assert torch.equal(crop_and_flip(source, KEY, padding=0, hflip=hflip), source.flip(3) if expected else source)


def test_geometry_does_not_depend_on_the_number_of_processes():
    source = images(8)
    whole = crop_and_flip(source, KEY, padding=3, hflip=0.5)
    for rank in range(2):
        key = BatchKey(KEY.seed, KEY.epoch, KEY.batch, rank, world_size=2)
        assert torch.equal(crop_and_flip(source[rank::2], key, padding=3, hflip=0.5), whole[rank::2])


@pytest.mark.parametrize("side", [2, 9, 32])
def test_erase_changes_one_rectangle_of_the_stated_area(side: int):
    out = erase(torch.full((200, 3, side, side), 99.0), KEY, probability=0.5)
    changed = (out != 99).any(1)
    erased = changed.flatten(1).any(1)
    assert 60 < int(erased.sum()) < 140
    for mask in changed[erased]:
        rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
        height, width = int(rows[-1] - rows[0]) + 1, int(columns[-1] - columns[0]) + 1
        assert int(mask.sum()) == height * width
        assert max(height, width) < side
        if side == 32:  # rounding of the two sides is small against the area here
            assert 0.015 * side**2 < height * width < 0.36 * side**2
    noise = out[(out != 99)]
    if side == 32:
        assert abs(noise.mean()) < 0.05
        assert abs(noise.std() - 1) < 0.05


def mix(**changes: float) -> Mix:
    return Mix(**{"mixup": 0.8, "cutmix": 1.0, "probability": 1.0, "switch_probability": 0.5, **changes}, num_classes=5)


@pytest.mark.parametrize("batch_size", [1, 5, 6])
@pytest.mark.parametrize("changes", [{}, {"cutmix": 0.0}, {"mixup": 0.0}, {"probability": 0.5}])
def test_mixed_targets_sum_to_one(batch_size: int, changes: dict[str, float]):
    targets = torch.arange(batch_size) % 5
    for batch in range(10):
        _, mixed = mix(**changes)(images(batch_size).float(), targets, BatchKey(0, 0, batch))
        assert mixed.shape == (batch_size, 5)
        torch.testing.assert_close(mixed.sum(1), torch.ones(batch_size))
        assert (mixed >= 0).all()


def test_smoothing_spreads_its_share_over_all_classes():
    _, plain = mix()(images(4).float(), torch.arange(4), KEY)
    _, smooth = mix(smoothing=0.1)(images(4).float(), torch.arange(4), KEY)
    torch.testing.assert_close(smooth, plain * 0.9 + 0.1 / 5)


def test_mixup_weighs_images_as_targets():
    source, targets = images(4).float(), torch.tensor([0, 1, 2, 3])
    mixed, weights = mix(cutmix=0.0)(source.clone(), targets, KEY)
    lam = weights[0, 0]
    assert 0 < lam < 1
    torch.testing.assert_close(mixed, lam * source + (1 - lam) * source.flip(0))
    torch.testing.assert_close(weights[0], torch.tensor([lam, 0, 0, 1 - lam, 0]))


def test_cutmix_targets_are_the_shares_of_pixels():
    targets = torch.tensor([0, 1])
    areas = set()
    for batch in range(20):
        source = torch.stack([torch.zeros(3, 9, 9), torch.ones(3, 9, 9)])
        mixed, weights = mix(mixup=0.0)(source, targets, BatchKey(0, 0, batch))
        torch.testing.assert_close(weights[0, 1], mixed[0].mean())
        torch.testing.assert_close(weights[1, 0], 1 - mixed[1].mean())
        areas.add(float(mixed[0].mean()))
    assert len(areas) > 10


def test_probabilities_choose_between_mixup_cutmix_and_neither():
    source, targets = images(4).float(), torch.tensor([0, 1, 2, 3])
    kinds = {"plain": 0, "mixup": 0, "cutmix": 0}
    for batch in range(300):
        mixed, _ = mix(probability=0.5, switch_probability=0.25)(source.clone(), targets, BatchKey(0, 0, batch))
        copied = (mixed == source) | (mixed == source.flip(0))
        kinds["plain" if torch.equal(mixed, source) else "cutmix" if copied.all() else "mixup"] += 1
    assert 120 < kinds["plain"] < 190
    assert 85 < kinds["mixup"] < 145
    assert 15 < kinds["cutmix"] < 60


def test_no_operation_moves_the_global_generator():
    before = torch.random.get_rng_state()
    crop_and_flip(images(), KEY, padding=2, hflip=0.5)
    erase(images().float(), KEY, probability=1.0)
    mix()(images().float(), torch.zeros(6, dtype=torch.int64), KEY)
    assert torch.equal(torch.random.get_rng_state(), before)

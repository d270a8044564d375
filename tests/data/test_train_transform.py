"""The training transform of single images against timm's own, draw by draw."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform

from ecoformer.config.schema import AugmentConfig, DataConfig
from ecoformer.data.files import as_image, kept_generators, seed_globals, train_transform

SIDE, MEAN = 48, (0.485, 0.456, 0.406)
CROP = {"scale": [0.08, 1.0], "ratio": [0.75, 4 / 3]}


def picture() -> Image.Image:
    """150 x 110 px with coarse shapes and fine noise."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(256, size=(8, 11, 3), dtype=np.uint8)).resize((150, 110))
    return Image.fromarray((np.asarray(coarse) * 0.8 + rng.integers(50, size=(110, 150, 3))).astype(np.uint8))


def differences(interpolation: str, policy: str | None, draws: int = 200) -> np.ndarray:
    """Between our pixels and those of timm's transform for the same seeds: (draws, pixels), absolute."""
    augment = AugmentConfig(hflip=0.5, auto_augment=policy, **CROP)
    ours = train_transform(DataConfig("folder", img_size=SIDE, interpolation=interpolation), augment, MEAN)
    timms = create_transform(
        SIDE,
        is_training=True,
        use_prefetcher=True,
        color_jitter=None,
        auto_augment=policy,
        interpolation=interpolation,
        mean=MEAN,
        **{key: tuple(bounds) for key, bounds in CROP.items()},
    )
    image, found = picture(), []
    with kept_generators():
        for seed in range(draws):
            pair = []
            for transform in (ours, timms):
                seed_globals(seed)
                pair.append(transform(image))
            assert pair[0].shape == (3, SIDE, SIDE) and pair[0].dtype == torch.uint8
            found.append((pair[0].int() - pair[1].int()).abs().flatten().numpy())
    return np.stack(found)


@pytest.mark.parametrize(("interpolation", "most"), [("bicubic", 2), ("bilinear", 2), ("lanczos", 0), ("nearest", 0)])
def test_crops_and_flips_are_timms(interpolation: str, most: int):
    assert differences(interpolation, None).max() <= most


def test_a_policy_sees_the_same_draws_as_timms():
    found = differences("bicubic", "rand-m9-mstd0.5-inc1")
    assert np.median(found.mean(1)) < 0.5  # the policy may widen a grey level: it posterizes, solarizes, equalizes
    assert (found.mean(1) < 4).mean() > 0.95


def test_a_tensor_as_an_image_keeps_its_pixels():
    pixels = torch.randint(256, (3, 5, 7), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert np.array_equal(np.asarray(as_image(pixels)), pixels.permute(1, 2, 0).numpy())

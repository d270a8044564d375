"""timm's further augmentations: 3-augment, vertical flips, AugMix in splits, mixing that ends, blur and grey."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_train_transform import CROP, MEAN, SIDE, picture
from timm.data import create_transform

from ecoformer.config.schema import AugmentConfig, Config, DataConfig, TrainConfig
from ecoformer.data import DataModule
from ecoformer.data.augment import BatchKey, Mix, crop_and_flip
from ecoformer.data.files import kept_generators, seed_globals, train_transform
from ecoformer.errors import InputError
from ecoformer.run.checks import check_config


@pytest.mark.parametrize(
    "options",
    [
        {"auto_augment": "3a", "color_jitter": 0.3},
        {"auto_augment": "augmix-m5-w4-d2"},
        {"vflip": 1.0, "hflip": 0.0},
        {"grayscale_prob": 1.0},
        {"gaussian_blur_prob": 0.7, "color_jitter": 0.4, "color_jitter_prob": 0.5},
    ],
)
def test_the_pixels_are_timms(options: dict[str, Any]) -> None:
    """Nearest-pixel crops are Pillow's in both, so every pixel is the same."""
    ours = train_transform(
        DataConfig("folder", img_size=SIDE, interpolation="nearest"), AugmentConfig(**CROP, **options), MEAN
    )
    bounds = {key: tuple(pair) for key, pair in CROP.items()}
    more = {"color_jitter": None, **bounds, **options}
    timms = create_transform(SIDE, is_training=True, use_prefetcher=True, interpolation="nearest", mean=MEAN, **more)
    plain = create_transform(
        SIDE, is_training=True, use_prefetcher=True, interpolation="nearest", color_jitter=None, hflip=0.0, **bounds
    )
    changed = 0
    with kept_generators():
        for seed in range(20):
            images = []
            for transform in (ours, timms, plain):
                seed_globals(seed)
                images.append(transform(picture()))
            assert torch.equal(images[0], images[1])
            changed += not torch.equal(images[0], images[2])
    assert changed > 5


def test_vertical_flips_of_batches() -> None:
    images = torch.arange(4 * 3 * 5 * 5, dtype=torch.uint8).view(4, 3, 5, 5)
    key = BatchKey(seed=3, epoch=1, batch=2)
    assert torch.equal(crop_and_flip(images, key, padding=0, hflip=0, vflip=1), images.flip(2))
    some = crop_and_flip(images.repeat(8, 1, 1, 1), key, padding=0, hflip=0, vflip=0.5)
    turned = [torch.equal(one, image.flip(1)) for one, image in zip(some, images.repeat(8, 1, 1, 1), strict=True)]
    assert 0 < sum(turned) < 32


def test_mixing_ends() -> None:
    mix = Mix(0.8, 1.0, 1.0, 0.5, num_classes=3, smoothing=0.1, off_epoch=2)
    targets = torch.tensor([0, 1, 2, 0])
    for epoch, mixed in ((0, True), (1, True), (2, False), (3, False)):
        images = torch.randn(4, 3, 8, 8)
        out, soft = mix(images.clone(), targets, BatchKey(0, epoch, 0))
        assert torch.equal(out, images) != mixed
        assert soft.shape == (4, 3)
        one_hot = soft.max(dim=1).values.allclose(torch.tensor(0.9 + 0.1 / 3))
        assert one_hot or mixed


def test_splits_stand_one_after_the_other(image_folder: Path, open_data: Callable[..., DataModule]) -> None:
    def batch(splits: int) -> tuple[torch.Tensor, torch.Tensor]:
        augment = {"auto_augment": "augmix-m9-w3-mstd9", "scale": [1.0, 1.0], "ratio": [1.0, 1.0], "hflip": 0.0}
        data = open_data(
            root=image_folder, augment=augment, train={"batch_size": 4, "aug_splits": splits}, in_memory=False
        )
        assert data.train_loader is not None
        return next(iter(data.train_loader))

    images, targets = batch(3)
    assert images.shape == (12, 3, 8, 8)
    assert torch.equal(targets, targets[:4].repeat(3))
    again, _ = batch(3)
    assert torch.equal(images, again)  # the seed's draws
    clean, *others = images.split(4)
    assert not torch.equal(clean, others[0]) and not torch.equal(*others)
    for other in others:  # of the same pictures, changed a little
        assert (other - clean).abs().mean() < (other - clean.roll(1, 0)).abs().mean()


def test_splits_are_refused_in_memory(image_folder: Path, open_data: Callable[..., DataModule]) -> None:
    with pytest.raises(InputError, match=r"train\.aug_splits=3 works on image files"):
        open_data(root=image_folder, train={"aug_splits": 3})


@pytest.mark.parametrize(
    ("augment", "train", "message"),
    [
        ({"mixup_off_epoch": 3}, {}, "ends a mixing that is off"),
        ({"color_jitter_prob": 0.3}, {}, "set augment.color_jitter"),
        ({}, {"aug_splits": 3}, "train.aug_splits=3 puts each image beside itself"),
        ({"mixup": 0.1, "auto_augment": "augmix-m5"}, {"aug_splits": 3}, "with augment.mixup=0"),
        ({}, {"jsd_loss": True}, "set train.aug_splits=3"),
        ({}, {"bce_sum": True}, "train.bce_sum=True has no effect without train.bce_loss"),
    ],
)
def test_meaningless_settings_are_refused(augment: dict[str, Any], train: dict[str, Any], message: str) -> None:
    config = Config(augment=AugmentConfig(**augment), train=TrainConfig(**train))
    config.model.name = "pvt_v2_b0"
    with pytest.raises(InputError, match=message):
        check_config(config)

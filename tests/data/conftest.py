"""Tiny generated image folders and a short way to open them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from archive_helpers import write_shards
from PIL import Image

from ecoformer.config.schema import AugmentConfig, DataConfig, TrainConfig
from ecoformer.data import DataModule, build_data


def write_image(path: Path, seed: int, size: tuple[int, int] = (12, 10), mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    """Two classes of six training and three validation images, PNG, of odd and unequal sizes."""
    sizes = [(12, 10), (9, 17), (8, 8), (23, 11), (15, 31), (33, 32)]
    for split, count in (("train", 6), ("val", 3)):
        for label, name in enumerate(("ant", "bee")):
            for index in range(count):
                path = tmp_path / "images" / split / name / f"{index}.png"
                write_image(path, seed=100 * label + index + (50 if split == "val" else 0), size=sizes[index])
    return tmp_path / "images"


@pytest.fixture(name="write_image")
def write_image_fixture() -> Callable[..., None]:
    return write_image


@pytest.fixture
def open_data() -> Callable[..., DataModule]:
    """`open_data(name="folder", root=..., augment={...}, train={...}, seed=...)`; other keys are data.*"""

    def build(
        *, augment: dict[str, Any] | None = None, train: dict[str, Any] | None = None, seed: int = 0, **keys: Any
    ) -> DataModule:
        calls = {key: keys.pop(key) for key in ("rank", "world_size", "with_train", "device") if key in keys}
        data = {"name": "folder", "img_size": 8, "crop_pct": 1.0, "num_workers": 0, **keys}
        data["root"] = str(data["root"]) if "root" in data else None
        if augment is None and "seq_len" in data:
            augment = {"hflip": 0.0}  # the default is for images
        return build_data(
            DataConfig(**data),
            AugmentConfig(**(augment or {})),
            TrainConfig(**{"batch_size": 4, "progress": False, **(train or {})}),
            seed=seed,
            **{"device": "cpu", **calls},
        )

    return build


@pytest.fixture
def shards(image_folder: Path, tmp_path: Path, write_image) -> Path:
    """Three training shards of 13 images and two validation shards of 7, in two classes."""
    write_image(image_folder / "train" / "bee" / "6.png", seed=77)
    write_image(image_folder / "val" / "ant" / "3.png", seed=78)
    root = tmp_path / "shards"
    write_shards(image_folder / "train", root, "train", 3)
    write_shards(image_folder / "val", root, "val", 2)
    return root

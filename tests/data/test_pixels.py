"""Images as grey pixel sequences: the pixels, the splits, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ecoformer.data.decode import read_image
from ecoformer.errors import InputError


@pytest.fixture
def open_pixels(open_data):
    return lambda **keys: open_data(
        **{
            "name": "pixels",
            "img_size": 8,
            "seq_len": 64,
            "train": {"batch_size": 2},
            **keys,
        }
    )


def test_a_row_is_the_grey_image_line_by_line(open_pixels, image_folder: Path):
    data = open_pixels(pixels_of="folder", root=image_folder)
    assert (data.vocab_size, data.seq_len, data.img_size, data.in_memory) == (257, 64, 8, True)
    assert (data.num_train, data.num_val, data.class_names) == (12, 6, ["ant", "bee"])
    ids = torch.cat([ids for ids, _ in data.val_loader])
    assert ids.shape == (6, 64) and ids.dtype == torch.int64 and ids.min() >= 1 and ids.max() <= 256
    with Image.open(image_folder / "val" / "ant" / "2.png") as image:
        grey = np.asarray(image.convert("RGB").convert("L"), dtype=int)  # of 8 x 8 pixels: not resized
    assert np.abs(ids[2].view(8, 8).numpy() - 1 - grey).max() <= 1
    calibration = data.calibration_images(12, seed=0)
    train = {tuple(row) for ids, _ in data.train_loader for row in ids.tolist()}
    assert train == {tuple(row) for row in calibration.tolist()}
    assert read_image(data.train_source, 2, Image.Image.copy).size == (8, 8)


def test_digits_at_their_own_size(open_pixels):
    data = open_pixels(pixels_of="digits", max_train_samples=50, max_val_samples=20)
    ids, targets = next(iter(data.val_loader))
    levels = torch.cat([ids for ids, _ in data.val_loader]).unique() - 1
    assert ids.shape == (2, 64) and targets.dtype == torch.int64 and len(levels) <= 17 and levels.max() == 255


def test_test_images_are_evaluated_on_request_alone(open_pixels, image_folder: Path):
    (image_folder / "val").rename(image_folder / "test")
    keys: dict[str, Any] = {"pixels_of": "folder", "root": image_folder, "val_share": 0.25}
    cut, test = open_pixels(**keys), open_pixels(**keys, val_split="test")
    assert (cut.num_train, cut.num_val, test.num_train, test.num_val) == (9, 3, 9, 6)
    assert open_pixels(**keys, with_train=False).num_val == 3


def test_refusals(open_pixels, image_folder: Path):
    def refusal(**keys: Any) -> str:
        with pytest.raises(InputError) as caught:
            open_pixels(**{"root": image_folder, **keys})
        return str(caught.value)

    assert refusal() == "data=pixels needs data.pixels_of: set it to the images, such as cifar10"
    assert refusal(pixels_of="listops").startswith("data.pixels_of=listops does not exist; ")
    assert refusal(pixels_of="folder", seq_len=63) == (
        "data.seq_len=63 must be data.img_size**2=64 for data=pixels: set one of them"
    )
    assert refusal(pixels_of="hfds") == (
        "data.pixels_of=hfds needs data.val_split, or data.dev_samples: say what to validate on"
    )
    assert refusal(pixels_of="folder", val_split="test") == (
        "data.pixels_of=folder has no test split (there: train, val): set data.val_split"
    )
    assert refusal(pixels_of="folder", num_classes=3) == (
        "data.num_classes=3 belongs to data=webdataset and data=hfds, not to data=pixels: leave it out"
    )
    with pytest.raises(InputError, match=r"data\.seq_len=64 is for sequences, data=folder are images: leave it out"):
        open_pixels(name="folder", root=image_folder)
    (image_folder / "val" / "ant" / "0.png").write_bytes(b"none")
    assert "0.png cannot be decoded" in refusal(pixels_of="folder")
    assert open_pixels(pixels_of="folder", root=image_folder, max_corrupt=1).num_val == 5

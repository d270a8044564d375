"""Decoding: every PIL mode to RGB, the evaluation resize beside timm's, broken files by name."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform

from ecoformer.data.decode import EvalTransform, decode_images, open_rgb
from ecoformer.data.folders import FolderSource
from ecoformer.errors import InputError

RGB = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)


def reopen(image: Image.Image, path: Path) -> np.ndarray:
    image.save(path)
    return np.asarray(open_rgb(FolderSource(path.parent, [path.name], [0]), 0))


def test_grey_alpha_and_bilevel_images_become_rgb(tmp_path: Path):
    grey = Image.fromarray(RGB).convert("L")
    expected = np.repeat(np.asarray(grey)[:, :, None], 3, axis=2)
    assert np.array_equal(reopen(grey, tmp_path / "l.png"), expected)
    assert np.array_equal(reopen(grey.convert("LA"), tmp_path / "la.png"), expected)
    assert np.array_equal(reopen(Image.fromarray(RGB).convert("RGBA"), tmp_path / "rgba.png"), RGB)
    bilevel = Image.fromarray(RGB[..., 0] > 127)
    assert np.array_equal(reopen(bilevel, tmp_path / "1.png")[..., 1], np.where(RGB[..., 0] > 127, 255, 0))


@pytest.mark.parametrize("transparency", [None, b"\x00\x80\xff"])
def test_palette_images_are_looked_up(tmp_path: Path, transparency: bytes | None):
    image = Image.fromarray(RGB).quantize(4)
    expected = np.asarray(image.convert("RGB"))
    if transparency is not None:
        image.info["transparency"] = transparency
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.array_equal(reopen(image, tmp_path / "p.png"), expected)


def test_16_bit_grey_keeps_its_upper_byte(tmp_path: Path):
    values = np.arange(0, 65536, 1040, dtype=np.uint16).reshape(8, 8)[:7]
    assert np.array_equal(reopen(Image.fromarray(values), tmp_path / "i16.png")[..., 2], values >> 8)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("crop_pct", [1.0, 0.875, 0.7])
@pytest.mark.parametrize("size", [(8, 8), (9, 9), (17, 12), (13, 40), (224, 223)])
def test_eval_transform_equals_timms(size: tuple[int, int], crop_pct: float, interpolation: str):
    pixels = np.random.default_rng(sum(size)).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    theirs = create_transform(9, is_training=False, crop_pct=crop_pct, interpolation=interpolation, use_prefetcher=True)
    image = Image.fromarray(pixels)
    assert torch.equal(EvalTransform(9, crop_pct, interpolation)(image), theirs(image))


def broken(path: Path, kind: str) -> None:
    Image.fromarray(np.tile(RGB, (20, 20, 1))).save(path)
    data = path.read_bytes()
    path.write_bytes({"cut": data[: len(data) // 2], "text": b"<html>404</html>", "empty": b""}[kind])


@pytest.mark.parametrize("kind", ["cut", "text", "empty"])
@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_a_broken_file_is_named_in_one_line(tmp_path: Path, suffix: str, kind: str):
    path = tmp_path / f"bad{suffix}"
    broken(path, kind)
    source = FolderSource(tmp_path, [path.name], [0])
    pattern = re.escape(str(path)) + r" cannot be decoded \(.+\): repair or remove the file"
    with pytest.raises(InputError, match=f"^{pattern}$") as caught:
        decode_images(source, [0], EvalTransform(8, 1.0, "bicubic"))
    assert "\n" not in str(caught.value)


def test_threads_decode_the_same_pixels(tmp_path: Path):
    names = []
    for index in range(12):
        names.append(f"{index}.png")
        Image.fromarray(np.roll(np.tile(RGB, (10, 12, 1)), index)).save(tmp_path / names[-1])
    source, transform = FolderSource(tmp_path, names, [0] * 12), EvalTransform(16, 1.0, "bicubic")
    one, _ = decode_images(source, range(12), transform, threads=1)
    assert torch.equal(decode_images(source, range(12), transform, threads=3)[0], one)
    assert one.shape == (12, 3, 16, 16)
    assert len(one.flatten(1).unique(dim=0)) == 12

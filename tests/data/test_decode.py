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

from ecoformer.data.decode import EvalTransform, decode_images, decoded, decoded_pixels, read_image, read_opened
from ecoformer.data.folders import FolderSource
from ecoformer.errors import InputError

RGB = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)


def reopen(image: Image.Image, path: Path) -> np.ndarray:
    image.save(path)
    return read_image(FolderSource(path.parent, [path.name], [0]), 0, np.array)


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
        white = Image.new("RGBA", image.size, "white")
        expected = np.asarray(Image.alpha_composite(white, image.convert("RGBA")).convert("RGB"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.array_equal(reopen(image, tmp_path / "p.png"), expected)


def test_16_bit_grey_keeps_its_upper_byte(tmp_path: Path):
    values = np.arange(0, 65536, 1040, dtype=np.uint16).reshape(8, 8)[:7]
    assert np.array_equal(reopen(Image.fromarray(values), tmp_path / "i16.png")[..., 2], values >> 8)


@pytest.mark.parametrize(
    ("mode", "ending", "options"),
    [
        *[("RGB", "jpg", options) for options in ({}, {"subsampling": 0}, {"progressive": True}, {"quality": 30})],
        ("RGB", "jpg", {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"}),
        *[("L", "jpg", {}), ("CMYK", "jpg", {}), ("RGB", "png", {}), ("P", "png", {}), ("RGB", "webp", {})],
    ],
)
def test_pixels_for_training_are_pillows(tmp_path: Path, mode: str, ending: str, options: dict):
    path = tmp_path / f"image.{ending}"
    Image.fromarray(RGB).resize((83, 61), Image.Resampling.BICUBIC).convert(mode).save(path, **options)
    whole = path.read_bytes()
    with Image.open(path) as image, Image.open(path) as again:
        assert np.array_equal(decoded_pixels(image).permute(1, 2, 0), decoded(again))
    source = FolderSource(tmp_path, [path.name], [0])
    for damaged in (whole[: len(whole) // 2], whole[:-1], whole + b"more", whole.replace(whole[90:94], bytes(4), 1)):
        path.write_bytes(damaged)
        ends = []
        for read in (lambda: read_opened(source, 0, decoded_pixels), lambda: read_image(source, 0, np.array)):
            try:
                ends.append(np.asarray(read()))
            except InputError as fault:
                ends.append(str(fault))
        pixels, pillows = ends
        if isinstance(pillows, str):
            assert pixels == pillows
        else:
            assert np.array_equal(pixels.transpose(1, 2, 0), pillows)


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


def test_12_bit_values_in_a_16_bit_file_are_not_black(tmp_path: Path):
    values = np.linspace(0, 4095, 56).astype(np.uint16).reshape(7, 8)
    assert np.array_equal(reopen(Image.fromarray(values), tmp_path / "i12.png")[..., 0], values >> 4)


def test_icons_drawn_in_the_alpha_channel_can_be_seen(tmp_path: Path):
    for colour, ground in ((0, 255), (255, 0)):  # black on white; white, which white would hide, on black
        icon = np.full((7, 8, 4), colour, dtype=np.uint8)
        icon[..., 3] = 0
        icon[2:5, 3, 3] = 255
        shown = reopen(Image.fromarray(icon), tmp_path / "icon.png")
        assert shown[0, 0].tolist() == [ground] * 3 and shown[3, 3].tolist() == [colour] * 3


def test_a_strip_that_would_need_gigabytes_is_a_broken_image(tmp_path: Path):
    class Strip:
        def __len__(self) -> int:
            return 1

        def open(self, index: int) -> Image.Image:
            return Image.open(tmp_path / "strip.png")

        def name(self, index: int) -> str:
            return "strip.png"

    Image.new("RGB", (8000, 1)).save(tmp_path / "strip.png")
    with pytest.raises(InputError, match=r"strip.png cannot be decoded .8000 x 1 px, whose shorter side"):
        decode_images(Strip(), [0], EvalTransform(224, 0.875, "bicubic"), threads=1)

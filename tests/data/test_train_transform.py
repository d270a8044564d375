"""The training transform of single images against timm's own, draw by draw, and the command that times both."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform

from ecoformer.cli.benchmark_data import main
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


def benchmark(image_folder: Path, *more: str) -> int:
    sizes = ["--workers", "1", "--img-size", "16", "--batch-size", "4", "--rounds", "2", "--min-seconds", "0.01"]
    return main(["--root", str(image_folder), *sizes, *more])


def test_both_loaders_are_timed_stage_by_stage_and_as_a_whole(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert benchmark(image_folder, "--format", "json", "--out", str(tmp_path / "loader.json")) == 0
    report = json.loads(capsys.readouterr().out)
    assert json.loads((tmp_path / "loader.json").read_text()) == report
    names = [(row["recipe"], row["loader"]) for row in report["rows"]]
    assert names == [(recipe, loader) for recipe in ("crop, flip", "all") for loader in ("ecoformer", "timm")]
    for row in report["rows"]:
        assert 0 < row["low"] <= row["images_per_second"] <= row["high"]
        if row["loader"] == "timm":
            assert row["ratio_to_timm"] is row["stages_ms"] is None
            continue
        assert {"read", "decode", "crop+resize", "flip", "collate", "batch"} <= set(row["stages_ms"])
        assert ("RandAugment" in row["stages_ms"]) == ("to tensor" in row["stages_ms"]) == (row["recipe"] == "all")
        assert min(row["ratios"]) <= row["ratio_to_timm"] <= max(row["ratios"])
    assert benchmark(image_folder, "--against", "none") == 0
    printed = capsys.readouterr().out
    assert "crop+resize" in printed and "ecoformer" in printed and " timm " not in printed


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--root", "nowhere"], "data.root=nowhere is not a folder"),
        (["--images", "3"], "--images 3 is less than --batch-size 4: raise it"),
        (["--workers", "0"], "argument --workers: '0' must be a whole number of at least 1"),
    ],
)
def test_wrong_input_is_one_line_and_code_2(
    image_folder: Path, more: list[str], message: str, capsys: pytest.CaptureFixture[str]
):
    assert benchmark(image_folder, *more) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith(f"error: {message}") and printed.err.count("\n") == 1 and printed.out == ""

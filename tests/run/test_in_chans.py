"""model.in_chans=1: images are read in grey, with weights and normalisation adapted as timm does."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from app_helpers import QUICK, TINY_PVT, make_folders
from PIL import Image
from timm.data import create_transform
from timm.data.loader import adapt_to_chs
from timm.models import adapt_input_conv

from ecoformer.cli.main import main
from ecoformer.config.schema import AugmentConfig, DataConfig, TrainConfig
from ecoformer.data import build_data
from ecoformer.energy import count
from ecoformer.model.checkpoint import load_checkpoint
from ecoformer.nn.inputs import example_input
from ecoformer.run.start import model_of_run, read_run

MEAN, STD = [0.5, 0.4, 0.3], [0.2, 0.3, 0.4]
POLICIES: list[dict[str, Any]] = [
    {},
    {"auto_augment": "rand-m9-mstd0.5-inc1"},
    {"auto_augment": "3a", "color_jitter": 0.3},
    {"auto_augment": "augmix-m5-w4-d2"},
]


def opened(
    root: Path, in_memory: bool, in_chans: int = 1, mean: list[float] = MEAN, crop_pct: float = 0.875, **augment: Any
) -> Any:
    splits = {"aug_splits": 2} if "augmix" in augment.get("auto_augment", "") else {}
    return build_data(
        DataConfig(
            name="folder",
            root=str(root),
            img_size=24,
            crop_pct=crop_pct,
            mean=mean,
            std=STD,
            num_workers=0,
            in_memory=in_memory,
        ),
        AugmentConfig(**augment),
        TrainConfig(batch_size=4, progress=False, **splits),
        seed=3,
        device="cpu",
        in_chans=in_chans,
    )


@pytest.fixture(scope="module")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folders(tmp_path_factory.mktemp("colours"), ["ant", "bee"], 40, {"train": 4, "val": 2})


@pytest.mark.parametrize("in_memory", [True, False])
def test_evaluation_sees_what_timm_shows_a_grey_model(colours: Path, in_memory: bool) -> None:
    data = opened(colours, in_memory)
    mean, std = adapt_to_chs(tuple(MEAN), 1), adapt_to_chs(tuple(STD), 1)
    assert data.mean == pytest.approx(mean) and data.std == pytest.approx(std)
    theirs = create_transform((1, 24, 24), mean=mean, std=std, crop_pct=0.875, interpolation="bicubic")
    paths = sorted((colours / "val").glob("*/*.png"))
    expected = torch.stack([theirs(Image.open(path).convert("L")) for path in paths])
    found = torch.cat([images for images, _ in data.val_loader])
    assert found.shape == (4, 1, 24, 24)
    torch.testing.assert_close(found, expected)
    assert data.calibration_images(3, seed=0).shape == (3, 1, 24, 24)


@pytest.mark.parametrize("augment", POLICIES)
def test_training_images_are_the_grey_of_the_coloured_ones(colours: Path, augment: dict[str, Any]) -> None:
    """Every policy of timm's, the same draws: the luma of what RGB training would see."""
    batches = []
    for in_chans in (1, 3):
        data = opened(colours, False, in_chans, mean=[0.4] * 3, **augment)
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (data.mean, data.std))
        data.train_loader.set_epoch(0)
        batches.append(torch.cat([images for images, _ in data.train_loader]) * std + mean)
    luma = (batches[1] * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(1, keepdim=True)
    assert batches[0].shape == luma.shape
    assert (batches[0] - luma).abs().max() < 0.6 / 255


def test_a_grey_run_from_training_to_the_hub(
    tmp_path: Path, colours: Path, train: Callable[..., Any], refused: Callable[..., str]
) -> None:
    """Started from an RGB run, converted, evaluated, counted, exported and opened by timm."""
    line = ["model=pvt_v2_b0", TINY_PVT, *QUICK, "data=folder", f"data.root={colours}", "data.img_size=64"]
    line += ["data.num_workers=0", "train.batch_size=4", "augment=none"]
    train(tmp_path / "rgb", *line, "attention=stock")
    other = ["attention=msa", "augment.hflip=0", "train.epochs=0"]
    train(tmp_path / "grey", *line, *other, "model.in_chans=1", f"init.checkpoint={tmp_path / 'rgb'}")
    back = refused("train", *line, *other, f"init.checkpoint={tmp_path / 'grey'}", f"output_dir={tmp_path / 'back'}")
    assert back.endswith("was trained with model.in_chans=1, now it is 3: make them the same")
    key = "patch_embed.proj.weight"
    rgb, grey = (load_checkpoint(tmp_path / name / "best.pt")["model"][key] for name in ("rgb", "grey"))
    assert torch.equal(grey, adapt_input_conv(1, rgb)) and grey.shape[1] == 1
    run = read_run(tmp_path / "grey")
    model = model_of_run(run).eval()
    assert run.config.model.in_chans == 1 and example_input(model, 64).shape == (1, 1, 64, 64)
    assert count(model, 64).muls == count(model, (1, 64, 64)).muls > 0
    out, folder, file = tmp_path / "figures.json", tmp_path / "hub", tmp_path / "model.pt2"
    assert main(["eval", f"checkpoint={run.path}", "progress=false", "device=cpu", f"out={out}"]) == 0
    summary = json.loads((tmp_path / "grey" / "summary.json").read_text())
    assert json.loads(out.read_text())["top1"] == summary["top1"]
    assert main(["hub", str(run.path), "--out", str(folder)]) == 0
    again = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    images = example_input(model, 64, 2)
    torch.testing.assert_close(again(images), model(images))
    assert timm.data.resolve_model_data_config(again)["input_size"] == (1, 64, 64)
    assert main(["export", str(run.path), "--out", str(file), "--format", "torch_export"]) == 0


@pytest.mark.parametrize("in_memory", [True, False])
def test_grey_files_of_8_and_16_bits_keep_their_values(tmp_path: Path, in_memory: bool) -> None:
    values = np.arange(24 * 24, dtype=np.uint16).reshape(24, 24)
    pictures = {"a": (values % 256).astype(np.uint8), "b": values * 100}
    for split, number_of in (("train", 4), ("val", 1)):
        for name, pixels in pictures.items():
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(number_of):
                Image.fromarray(pixels).save(tmp_path / split / name / f"{number}.png")
    data = opened(tmp_path, in_memory, crop_pct=1.0)
    images = torch.cat([batch for batch, _ in data.val_loader])
    found = (images * data.std[0] + data.mean[0]).mul(255).round().to(torch.uint8).numpy()
    assert np.array_equal(found[0, 0], pictures["a"]) and np.array_equal(found[1, 0], pictures["b"] >> 8)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.in_chans=4", "model.in_chans=4 must be 1 or 3: images are read in grey or in RGB"),
        ("+model.kwargs.in_chans=3", "model.kwargs.in_chans=3: write model.in_chans=3, which is a key of its own"),
    ],
)
def test_other_channels_are_refused(refused: Callable[..., str], override: str, message: str) -> None:
    assert message in refused("train", "model=pvt_v2_b0", "data=digits", override, *QUICK)


def test_an_evaluation_refuses_channels_as_training_does(refused: Callable[..., str], tmp_path: Path) -> None:
    run = tmp_path / "best.pt"
    run.touch()
    assert "is for model=NAME: a checkpoint has its own" in refused("eval", f"checkpoint={run}", "model.in_chans=1")
    message = refused("eval", "model.name=pvt_v2_b0", "pretrained=true", "model.in_chans=4")
    assert "model.in_chans=4 must be 1 or 3: images are read in grey or in RGB" in message

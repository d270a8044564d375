"""The segmentation example: CamVid's layout, mIoU by hand, and a whole run on a few small images."""

import importlib
import json
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from tiny_models import digits_run

from ecoformer.config.schema import Config
from ecoformer.model.checkpoint import save_checkpoint

EXAMPLES = Path(__file__).parents[2] / "examples"
QUICK = ["--steps=2", "--tune-steps=1", "--batch=2", "--fit=2"]


@pytest.fixture
def example(monkeypatch):
    """The script as a module, counting and timing at one small size."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    module = importlib.import_module("segmentation")
    monkeypatch.setattr(module, "SIZES", (64,))
    return module


@pytest.fixture
def folder(example, tmp_path):
    """CamVid's layout, with scenes in it."""
    for split, seed in (("train", 1), ("test", 2)):
        for name, image, mask in zip("abc", *example.scenes(3, (64, 96), seed), strict=True):
            for place, pixels in ((split, image.permute(1, 2, 0)), (f"{split}annot", mask)):
                path = tmp_path / place / f"{name}.png"
                path.parent.mkdir(exist_ok=True)
                Image.fromarray(pixels.numpy()).save(path)
    return tmp_path


def test_the_published_layout_is_read_as_it_is(example, folder):
    images, masks = example.camvid(folder, "train", None)
    expected_images, expected_masks = example.scenes(3, (64, 96), 1)
    assert torch.equal(images, expected_images) and torch.equal(masks, expected_masks)
    small, halved = example.camvid(folder, "test", (32, 48))
    assert small.shape == (3, 3, 32, 48) and set(halved.unique().tolist()) <= {*range(9), 11}


def test_scenes_say_whose_hue_is_where(example):
    """In every patch that is not hidden the mask agrees with the hues of the things above."""
    images, masks = example.scenes(40, (96, 96), 3)
    again = example.scenes(40, (96, 96), 3)
    assert torch.equal(images, again[0]) and torch.equal(masks, again[1])
    agree = 0
    for image, mask in zip(images.float(), masks, strict=True):
        things = [image[:, mask == kind].median(dim=1).values for kind in range(3, 7) if (mask == kind).sum() > 20]
        twin = mask == 7
        if twin.sum() > 20 and things:
            agree += min(float((image[:, twin].mean(dim=1) - thing).abs().max()) for thing in things) < 130
    assert agree > 20


def test_iou_by_hand(example):
    masks = torch.tensor([[[0, 0, 1], [1, 11, 3]]], dtype=torch.uint8)
    found = torch.tensor([[[0, 1, 1], [1, 0, 0]]], dtype=torch.uint8)
    ious = example.class_ious(found, masks, 4)
    assert ious[:2].tolist() == pytest.approx([1 / 3, 2 / 3]) and ious[3] == 0  # the void pixel is nobody's
    assert ious[2].isnan()
    assert float(ious.nanmean()) == pytest.approx(1 / 3)


def test_a_run_leaves_table_and_picture(example, folder, tmp_path, capsys):
    out = tmp_path / "out"
    settings = ["stock/stock", "stock/distilled:num_features=4,fit_steps=2", "msa/msa", "msa/uniform"]
    assert example.main(["run", f"--data={folder}", f"--out={out}", *QUICK, "--settings", *settings]) == 0
    content = json.loads((out / "table.json").read_text())
    assert [row["setting"] for row in content["rows"]] == settings
    assert content["run"]["size"] == [64, 96] and content["run"]["train"] == content["run"]["test"] == 3
    for row in content["rows"]:
        assert 0 <= row["miou"] <= 1 and 0 <= row["miou_tuned"] <= 1
        known = [iou for iou in row["ious"].values() if iou is not None]
        assert row["miou"] == pytest.approx(float(np.mean(known)))
    energy = {row["setting"]: row["audited_64_pj"] for row in content["rows"]}
    assert energy["msa/uniform"] < energy["msa/msa"]
    assert Image.open(out / "predictions.png").width > 500
    assert example.main(["time", f"--out={out}"]) == 0
    assert all(row["ms_64"] > 0 for row in json.loads((out / "table.json").read_text())["rows"])
    assert "ms, 64 px" in (out / "table.md").read_text()


def test_a_run_on_images_gives_its_backbone(example, tmp_path, capsys):
    config, path = Config(), tmp_path / "best.pt"
    config.model.name, config.data.name, config.attention = "pvt_v2_b0", "digits", {"name": "stock"}
    source = timm.create_model("pvt_v2_b0", num_classes=2).eval()
    content = {"settings": asdict(config), "class_names": ["a", "b"]}
    state = {"kind": "weights", "config": content, "epoch": 1, "step": 1, "metrics": None}
    save_checkpoint(path, {**state, "model": dict(source.state_dict())})
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        maps = example.backbone_of(path).eval()(images)
        expected = source.forward_intermediates(images, intermediates_only=True)
    assert all(torch.equal(found, right) for found, right in zip(maps, expected, strict=True))
    digits_run(path)
    assert example.main(["run", f"--out={tmp_path}", f"--init={path}", "--scenes=2"]) == 2
    assert "is vit_tiny_patch16_224 with attention=msa: give a run of pvt_v2_b0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda d: shutil.rmtree(d / "train"), "no PNG in train/; give CamVid as SegNet lays it out"),
        (lambda d: (d / "trainannot" / "b.png").unlink(), "train/b.png has no mask trainannot/b.png"),
        (lambda d: Image.new("RGB", (96, 64)).save(d / "trainannot" / "b.png"), "is no mask of class numbers 0 to 11"),
        (lambda d: Image.new("L", (96, 64), 12).save(d / "trainannot" / "b.png"), "is no mask of class numbers"),
        (lambda d: (d / "train" / "b.png").write_bytes(b"no"), "train/b.png or its mask cannot be read"),
    ],
    ids=["no split", "no mask", "colours", "numbers", "damaged"],
)
def test_bad_folders_are_one_line(example, folder, tmp_path, capsys, spoil, message):
    spoil(folder)
    assert example.main(["run", f"--data={folder}", f"--out={tmp_path / 'out'}"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and message in error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--settings", "uniform"], "must begin with stock/ or msa/"),
        (["--settings", "msa/nothing"], "attention=nothing does not exist"),
        (["--settings", "msa/ecoformer", "--size", "32", "32"], "num_anchors=25"),
        (["--init", "nowhere.pt"], "nowhere.pt"),
        (["--batch", "0"], "must be a whole number of at least 1"),
    ],
    ids=["source", "kind", "tokens", "init", "batch"],
)
def test_bad_settings_are_one_line_before_any_training(example, tmp_path, capsys, arguments, message):
    assert example.main(["run", f"--out={tmp_path}", "--scenes=2", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and message in error

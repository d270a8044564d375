"""The segmentation example: CamVid's layout, mIoU by hand, and a whole run on a few small images."""

import importlib
import itertools
import json
import shutil
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from tiny_models import digits_run

from ecoformer.config.schema import Config
from ecoformer.data.folders import read_folders
from ecoformer.model.checkpoint import save_checkpoint

EXAMPLES = Path(__file__).parents[2] / "examples"
QUICK = ["--steps=2", "--tune-steps=1", "--batch=2", "--fit=2"]


@pytest.fixture
def example(monkeypatch):
    """The script as a module, counting and timing at one small size, with one block a stage."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    module = importlib.import_module("segmentation")
    monkeypatch.setattr(module, "SIZES", (64,))
    small = partial(timm.create_model, depths=(1, 1, 1, 1))
    monkeypatch.setattr(module, "create", lambda name, options: small(name, **options))
    once = partial(module.interleaved_seconds, rounds=1, min_seconds=0)
    monkeypatch.setattr(module, "interleaved_seconds", once)
    return module


@pytest.fixture
def data(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module("segmentation_data")


@pytest.fixture
def folder(data, tmp_path):
    """CamVid's layout, with scenes in it; void is 11."""
    for split, seed in (("train", 1), ("test", 2)):
        images, masks = data.scenes(3, (64, 96), seed)
        for name, image, mask in zip("abc", images, masks.masked_fill(masks == data.VOID, 11), strict=True):
            for place, pixels in ((split, image.permute(1, 2, 0)), (f"{split}annot", mask)):
                path = tmp_path / place / f"{name}.png"
                path.parent.mkdir(exist_ok=True)
                Image.fromarray(pixels.numpy()).save(path)
    return tmp_path


def test_the_published_layout_is_read_as_it_is(data, folder):
    images, masks = data.annotated(folder, "train", None, 11)
    expected_images, expected_masks = data.scenes(3, (64, 96), 1)
    assert torch.equal(images, expected_images) and torch.equal(masks, expected_masks)
    small, halved = data.annotated(folder, "test", (32, 48), 11)
    assert small.shape == (3, 3, 32, 48) and set(halved.unique().tolist()) <= {*range(9), data.VOID}


def test_other_folders_name_their_classes(data, folder):
    """Any number of classes, void as 255 or as the number of classes, images of every kind."""
    names = [f"kind {number}" for number in range(150)]
    (folder / "classes.txt").write_text("\n".join(names) + "\n")
    for split in ("train", "test"):
        for name in "abc":
            Image.open(folder / split / f"{name}.png").save(folder / split / f"{name}.JPG", "JPEG")
            (folder / split / f"{name}.png").unlink()
    numbers = np.arange(64 * 96, dtype=np.uint8).reshape(64, 96) % 152
    numbers[numbers == 151] = 255
    Image.fromarray(numbers).save(folder / "trainannot" / "a.png")
    kind, classes, (images, masks), _ = data.read(folder, None, 1)
    assert (kind, classes) == (folder.name, names) and images.shape == (3, 3, 64, 96)
    assert (masks[0][numbers >= 150] == data.VOID).all()
    assert torch.equal(masks[0][numbers < 150], torch.from_numpy(numbers[numbers < 150]))


def test_scenes_say_whose_hue_is_where(data):
    """In every patch that is not hidden the mask agrees with the hues of the things above."""
    images, masks = data.scenes(40, (96, 96), 3)
    again = data.scenes(40, (96, 96), 3)
    assert torch.equal(images, again[0]) and torch.equal(masks, again[1])
    agree = 0
    for image, mask in zip(images.float(), masks, strict=True):
        things = [image[:, mask == kind].median(dim=1).values for kind in range(3, 7) if (mask == kind).sum() > 20]
        twin = mask == 7
        if twin.sum() > 20 and things:
            agree += min(float((image[:, twin].mean(dim=1) - thing).abs().max()) for thing in things) < 130
    assert agree > 20


@pytest.fixture
def photographs(tmp_path):
    """Folders of photographs of one shade each: that of class a is 50, that of class b 200."""
    for split, kind in itertools.product(("train", "val"), "ab"):
        path = tmp_path / "photographs" / split / kind / "1.png"
        path.parent.mkdir(parents=True)
        Image.new("RGB", (48, 40), (50 if kind == "a" else 200,) * 3).save(path)
    return tmp_path / "photographs"


def test_mosaics_show_photographs_of_the_class_that_they_say(data, photographs):
    source = read_folders(photographs, with_train=True).train
    images, masks = data.mosaics(source, 8, (48, 64), 3)
    again = data.mosaics(source, 8, (48, 64), 3)
    assert torch.equal(images, again[0]) and torch.equal(masks, again[1])
    assert images.shape == (8, 3, 48, 64) and set(masks.unique().tolist()) == {0, 1, data.VOID}
    assert (masks == data.VOID).float().mean() < 0.2
    for number, shade in enumerate((50, 200)):
        assert (images.movedim(1, -1)[masks == number] == shade).all()


def test_a_run_on_photographs(example, photographs, tmp_path, capsys):
    run = ["run", f"--data={photographs}", f"--out={tmp_path / 'out'}", *QUICK, "--settings", "stock/stock"]
    run += ["--scenes=4", "--size", "64", "64"]
    assert example.main(run) == 0
    content = json.loads((tmp_path / "out" / "table.json").read_text())
    assert content["run"]["data"] == "mosaics" and list(content["rows"][0]["ious"]) == ["a", "b"]
    (photographs / "val" / "b" / "1.png").write_bytes(b"no")
    assert example.main(run) == 2
    for number, split in itertools.product(range(254), ("train", "val")):
        (photographs / split / f"c{number}").symlink_to(photographs / split / "a")
    assert example.main(run) == 2
    damaged, many = capsys.readouterr().err.splitlines()
    assert "b/1.png" in damaged and "256 classes: give photographs of at most 255" in many


def test_iou_by_hand(example):
    masks = torch.tensor([[[0, 0, 1], [1, 255, 3]]], dtype=torch.uint8)
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
        (lambda d: shutil.rmtree(d / "train"), "no image in train/; give CamVid as SegNet lays it out"),
        (lambda d: (d / "trainannot" / "b.png").unlink(), "train/b.png has no mask trainannot/b.png"),
        (
            lambda d: Image.new("RGB", (96, 64)).save(d / "trainannot" / "b.png"),
            "is no mask of class numbers 0 to 11 and 255",
        ),
        (lambda d: Image.new("L", (96, 64), 12).save(d / "trainannot" / "b.png"), "is no mask of class numbers"),
        (lambda d: (d / "train" / "b.png").write_bytes(b"no"), "train/b.png or its mask cannot be read"),
        (lambda d: (d / "classes.txt").write_text("a\na\n"), "classes.txt has 2 lines: give 2 to 255 classes"),
        (lambda d: (d / "classes.txt").write_bytes(b"\xff"), "classes.txt cannot be read"),
    ],
    ids=["no split", "no mask", "colours", "numbers", "damaged", "classes twice", "no text"],
)
def test_bad_folders_are_one_line(example, folder, tmp_path, one_line, spoil, message):
    spoil(folder)
    assert message in one_line(example.main, "run", f"--data={folder}", f"--out={tmp_path / 'out'}")


def test_weights_that_are_no_numbers_are_no_result(example, tmp_path, capsys):
    arguments = ["run", f"--out={tmp_path}", "--scenes=4", "--steps=3", "--tune-steps=0", "--batch=2", "--lr=1e30"]
    assert example.main([*arguments, "--size", "32", "32", "--settings", "stock/stock"]) == 2
    assert "the gradient is no number at step" in capsys.readouterr().err and not (tmp_path / "table.json").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--settings", "uniform"], "must begin with stock/ or msa/"),
        (["--settings", "msa/nothing"], "attention=nothing does not exist"),
        (["--settings", "msa/ecoformer", "--size", "32", "32"], "num_anchors=25"),
        (["--size", "31", "64"], "--size 31 64 is too small: give at least 32 32"),
        (["--init", "nowhere.pt"], "nowhere.pt"),
        (["--batch", "0"], "must be a whole number of at least 1"),
        (["--lr", "nan"], "'nan' must be a number of at least 0"),
    ],
    ids=["source", "kind", "tokens", "size", "init", "batch", "rate"],
)
def test_bad_settings_are_one_line_before_any_training(example, tmp_path, one_line, arguments, message):
    assert message in one_line(example.main, "run", f"--out={tmp_path}", "--scenes=2", *arguments)

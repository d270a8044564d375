"""Scenes of cut-outs in photographs: the mask says what was pasted, and the segmentation example reads the folder."""

import importlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

EXAMPLES = Path(__file__).parents[2] / "examples"
RED, BLUE = (250, 0, 0), (0, 0, 250)


@pytest.fixture
def example(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module("segmentation_paste")


def disc(colour, side=60):
    """A disc in the middle of a transparent image."""
    image = Image.new("RGBA", (side, side))
    ImageDraw.Draw(image).ellipse((10, 10, side - 10, side - 10), (*colour, 255))
    return image


@pytest.fixture
def line(tmp_path):
    """A command: five red and five blue cut-outs, photographs in two shades of green."""
    for kind, colour in (("reds", RED), ("blues", BLUE)):
        for number in range(5):
            path = tmp_path / "cuts" / "all" / kind / "deep" / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            disc(colour).save(path)
        Image.new("RGB", (9, 9)).save(path.with_name("whole.png"))  # nothing was cut away
        path.with_name("cartoon").mkdir()
        disc((0, 0, 0)).save(path.parent / "cartoon" / "5.png")
    for split in ("train", "val"):
        for kind, shade in (("dark", 100), ("light", 200)):
            (tmp_path / "photographs" / split / kind).mkdir(parents=True)
            Image.new("RGB", (80, 70), (0, shade, 0)).save(tmp_path / "photographs" / split / kind / "1.png")
    folders = [f"--cutouts={tmp_path / 'cuts'}", f"--photographs={tmp_path / 'photographs'}"]
    return [*folders, f"--out={tmp_path / 'scenes'}", "--classes", "all/reds", "all/blues"]


def test_a_mask_says_what_was_pasted(example, line, tmp_path, monkeypatch, capsys):
    """Where it says photograph, red or blue, the scene is; what lies between is void."""
    assert example.main([*line, "--skip", "cart*", "--leave-out", "light", "--scenes=8", "--tests=4"]) == 0
    assert capsys.readouterr().out.splitlines()[0] == "train: 8 scenes of 8 cut-outs and 1 photographs"
    data = importlib.import_module("segmentation_data")
    kind, classes, (images, masks), test = data.read(tmp_path / "scenes", None, 1)
    assert (kind, classes) == ("scenes", ["photograph", "reds", "blues"]) and len(test[0]) == 4
    assert images.shape == (8, 3, 160, 160) and set(masks.unique().tolist()) == {0, 1, 2, data.VOID}
    pixels = images.movedim(1, -1).float()
    for number, colour in enumerate(((0, 100, 0), RED, BLUE)):
        wrong = (pixels[masks == number] - pixels.new_tensor(colour)).abs().amax(dim=-1) > 60
        assert wrong.float().mean() < 0.03  # JPEG blurs what borders on another colour
    assert (masks == data.VOID).float().mean() < 0.1
    assert example.main(line) == 2 and "has scenes already" in capsys.readouterr().err


def test_test_scenes_show_other_cut_outs(example, line, tmp_path, monkeypatch):
    seen = {}
    monkeypatch.setattr(example, "cut_outs", lambda folder, skipped: [f"{folder.name}{n}" for n in range(9)])
    monkeypatch.setattr(
        example, "write_scenes", lambda out, split, source, kept, things, *rest: seen.update({split: things})
    )
    assert example.main(line) == 0
    assert seen["test"] == [["reds3", "reds7"], ["blues3", "blues7"]]
    assert all(
        len(mine) == 7 and not {*mine} & {*other} for mine, other in zip(seen["train"], seen["test"], strict=True)
    )


def test_scenes_are_those_of_their_seed(example):
    cuts = [[disc(RED)], [disc(BLUE, 30)]]
    ground = Image.new("RGB", (64, 48))
    first, again, other = (example.scene(np.random.default_rng(seed), ground, cuts) for seed in (1, 1, 2))
    assert first[0].tobytes() == again[0].tobytes() and (first[1] == again[1]).all()
    assert first[0].tobytes() != other[0].tobytes() and not np.asarray(ground).any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--skip", "deep"], "has 0 cut-outs, PNG with an alpha channel: give a class at least 4"),
        (["--classes", "all/greens"], "has 0 cut-outs"),
        (["--leave-out", "bright"], "--leave-out bright must be some of the classes"),
        (["--leave-out", "dark", "light"], "must be some of the classes"),
        (["--photographs", "nowhere"], "nowhere is not a folder"),
    ],
    ids=["none", "class", "unknown", "all", "photographs"],
)
def test_bad_arguments_are_one_line(example, line, one_line, arguments, message):
    assert message in one_line(example.main, *line, *arguments)

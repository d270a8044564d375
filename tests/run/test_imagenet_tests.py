"""ImageNet-V2, A, R and ReaL: the classes, outputs and labels that timm has for them."""

from __future__ import annotations

import csv
import importlib.resources
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from app_helpers import TINY_PVT, compose_config, make_folders
from test_timm_weights import SYNSETS, published
from timm.data import create_transform, resolve_model_data_config
from timm.data.real_labels import RealLabelsImagenet
from torch import nn

from ecoformer.cli.eval import main as evaluate
from ecoformer.data import imagenet
from ecoformer.engine.predictions import RealLabels
from ecoformer.model.checkpoint import save_checkpoint
from ecoformer.run.start import build_model

Refused = Callable[..., str]
CPU = ["device=cpu", "progress=false", "data.num_workers=0"]


def indices_of(part: str) -> list[int]:
    text = importlib.resources.files("timm.data").joinpath(f"_info/imagenet_{part}_indices.txt").read_text()
    return [int(line) for line in text.split()]


def pictures(folder: Path, names: list[str], count: int = 2) -> Path:
    """Class folders without a split above them, as the archives have them."""
    make_folders(folder, names, 110, {"archive": count})
    return folder / "archive"


def evaluated(folder: Path, *line: str) -> tuple[dict[str, Any], list[dict[str, str]]]:
    out, details = folder / "figures.json", folder / "details"
    evaluate([*CPU, *line, f"out={out}", f"details={details}"])
    with open(details / "predictions.csv") as file:
        return json.loads(out.read_text()), list(csv.DictReader(file))


def logits_of(name: str, rows: list[dict[str, str]], **changed: Any) -> torch.Tensor:
    """Through timm's own transform, of the images in the order of the rows."""
    import timm
    from PIL import Image

    model = timm.create_model(name, pretrained=True).eval()
    transform = create_transform(**resolve_model_data_config(model, use_test_size=True) | changed)
    with torch.no_grad():
        return model(torch.stack([transform(Image.open(row["image"]).convert("RGB")) for row in rows]))


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    return published(tmp_path_factory.mktemp("timm") / "model", None, 1000)


@pytest.mark.parametrize("part", ["a", "r"])
def test_of_a_part_only_its_200_classes_compete(weights: str, tmp_path: Path, part: str) -> None:
    chosen = indices_of(part)
    root = pictures(tmp_path, [SYNSETS[chosen[number]] for number in (199, 3)])
    line = [f"model={weights}", "pretrained=true", f"data.name=imagenet_{part}", f"data.root={root}"]
    figures, rows = evaluated(tmp_path, *line)
    logits = logits_of(weights, rows)[:, chosen]
    assert len(rows) == figures["num_images"] == 4 and figures["dataset"] == f"imagenet_{part}"
    expected = [SYNSETS[chosen[number]] for number in logits.argmax(1).tolist()]
    assert [row["prediction"] for row in rows] == expected
    probabilities = logits.softmax(1).max(1).values.tolist()
    assert [float(row["probability"]) for row in rows] == pytest.approx(probabilities, abs=1e-3)
    labels = torch.tensor([chosen.index(SYNSETS.index(row["class"])) for row in rows])
    assert {Path(row["image"]).parent.name for row in rows} == {row["class"] for row in rows}
    assert figures["loss"] == pytest.approx(float(nn.functional.cross_entropy(logits, labels)), abs=1e-3)


def test_v2s_folders_are_numbers(weights: str, tmp_path: Path) -> None:
    root = pictures(tmp_path, ["0", "10", "2", "999"])
    given = [f"model={weights}", "pretrained=true", "data.name=imagenet_v2", f"data.root={root}"]
    figures, rows = evaluated(tmp_path, *given, "data.mean=[0.1,0.2,0.3]", "data.std=[0.3,0.2,0.1]")
    logits = logits_of(weights, rows, mean=(0.1, 0.2, 0.3), std=(0.3, 0.2, 0.1))
    labels = torch.tensor([int(Path(row["image"]).parent.name) for row in rows])
    assert [row["class"] for row in rows] == [SYNSETS[label] for label in labels.tolist()]
    assert [row["prediction"] for row in rows] == [SYNSETS[number] for number in logits.argmax(1).tolist()]
    assert figures["loss"] == pytest.approx(float(nn.functional.cross_entropy(logits, labels)), abs=1e-3)


@pytest.mark.parametrize("by_number", [False, True])
def test_a_run_on_imagenet_is_evaluated_on_a_part(tmp_path: Path, by_number: bool) -> None:
    """Its classes are synsets in folders, and numbers in shards; only two of its images are looked at."""
    config = compose_config("model=pvt_v2_b0", TINY_PVT, "data=imagenet", "attention=stock", "data.img_size=64")
    config.data.dev_samples = 100
    model = build_model(config, 1000).model.eval()
    names = [str(number) for number in range(1000)] if by_number else sorted(SYNSETS)
    content = {"config": {"settings": asdict(config), "class_names": names}, "epoch": 1, "step": 1, "metrics": None}
    save_checkpoint(tmp_path / "best.pt", {"kind": "weights", **content, "model": model.state_dict()})
    chosen = indices_of("a")
    root = pictures(tmp_path, [SYNSETS[number] for number in chosen[:2]])
    figures, rows = evaluated(
        tmp_path, f"checkpoint={tmp_path / 'best.pt'}", "data.name=imagenet_a", f"data.root={root}"
    )
    assert len(rows) == 4 and {row["class"] for row in rows} == {SYNSETS[number] for number in chosen[:2]}
    assert {row["prediction"] for row in rows} <= {SYNSETS[number] for number in chosen}
    assert 0 < figures["loss"] < 7 and figures["img_size"] == 64


def test_real_accuracy_is_timms(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    labels = [torch.randperm(10, generator=generator)[:number].tolist() for number in (0, 1, 2, 3, 1, 0, 4, 2)]
    logits = torch.randn(8, 10, generator=generator)
    table = tmp_path / "real.json"
    table.write_text(json.dumps(labels))
    names = [f"val/n0/ILSVRC2012_val_{number + 1:08d}.JPEG" for number in (5, 0, 7, 2, 1, 6, 3, 4)]
    theirs = RealLabelsImagenet(names, real_json=str(table))
    theirs.add_result(logits)
    ours = RealLabels([theirs.real_labels[Path(name).name] for name in names])
    for chunk in logits.split(3):
        ours.add(chunk, torch.zeros(len(chunk)))
    figures = ours.figures(torch.device("cpu"))
    assert (figures["top1"], figures["top5"]) == pytest.approx((theirs.get_accuracy(1), theirs.get_accuracy(5)))
    assert 0 < figures["top1"] < figures["top5"] and figures["num_images"] == 6


def test_real_labels_go_by_the_name_of_the_image(weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = pictures(tmp_path, SYNSETS[:2])
    for number, path in enumerate(sorted(root.glob("*/*.png")), start=1):
        path.rename(path.with_name(f"ILSVRC2012_val_{5 - number:08d}.png"))
    assert imagenet.real_labels(imagenet.FolderSource(root, ["ILSVRC2012_val_00000003.JPEG"], [0])) == [[230, 231]]
    line = [f"model={weights}", "pretrained=true", "data.name=imagenet_real", f"data.root={root}"]
    figures, rows = evaluated(tmp_path, *line)
    guesses = {Path(row["image"]).stem[-1]: SYNSETS.index(row["prediction"]) for row in rows}
    assert len(rows) == 4 and figures["num_images"] == 3  # the first image of all has no label
    table = json.dumps([[guesses["1"]], [(guesses["2"] + 1) % 1000], [7, guesses["3"]], []])
    monkeypatch.setattr(imagenet, "_timms", lambda name: table)
    figures, _ = evaluated(tmp_path, *line)
    assert figures["num_images"] == 3 and figures["top1"] == pytest.approx(200 / 3)


def test_what_cannot_be_is_refused(refused: Refused, tmp_path: Path, weights: str) -> None:
    root = pictures(tmp_path, ["n01498041", "n01440764"], 1)  # the second is ImageNet's first class, not one of A's
    given = [*CPU, f"model.name={weights}", "pretrained=true", f"data.root={root}"]
    assert "n01440764 is no class of imagenet_a, which has 200" in refused("eval", *given, "data.name=imagenet_a")
    message = refused("eval", *given, "data.name=imagenet_real")
    assert "imagenet_real has labels of ImageNet's validation images, by their names" in message
    message = refused("train", "model=pvt_v2_b0", "data=folder", "data.name=imagenet_a", f"data.root={root}")
    assert "data.name=imagenet_a is a test set: train on data=imagenet" in message

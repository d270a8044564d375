"""timm's weights without a run: evaluated on a folder as timm's validate.py would, and as a teacher."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from app_helpers import QUICK, TINY_PVT, compose_config, make_folders
from PIL import Image
from safetensors.torch import save_file
from timm.data import ImageNetInfo, create_transform, resolve_model_data_config

from ecoformer.cli.eval import main as evaluate
from ecoformer.config.schema import EvalConfig, EvalDataConfig, EvalModelConfig
from ecoformer.engine.logit_teacher import LogitTeacher
from ecoformer.run.build import build_evaluation, build_run
from ecoformer.run.directory import choose_run_dir

SYNSETS = ImageNetInfo().label_names()
ARGS = {"embed_dims": [8, 16, 40, 64], "depths": [1, 1, 1, 1]}
Refused = Callable[..., str]


def published(folder: Path, labels: list[str] | None, num_classes: int, in_chans: int = 3) -> str:
    """A timm model with its weights in a folder, as from the hub; of ImageNet's classes without labels."""
    torch.manual_seed(1)
    args = ARGS | ({} if in_chans == 3 else {"in_chans": in_chans})
    model = timm.create_model("pvt_v2_b0", num_classes=num_classes, **args)
    shown = {
        "input_size": [in_chans, 64, 64],
        "test_input_size": [in_chans, 96, 96],
        "first_conv": "patch_embed.proj",
        "interpolation": "bilinear",
        "crop_pct": 0.9,
        "mean": [0.5, 0.4, 0.3],
        "std": [0.2, 0.3, 0.4],
        "num_classes": num_classes,
        **({"label_names": labels} if labels else {}),
    }
    folder.mkdir()
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, folder / "model.safetensors")
    content = {"architecture": "pvt_v2_b0", "num_classes": num_classes, "model_args": args, "pretrained_cfg": shown}
    (folder / "config.json").write_text(json.dumps(content))
    return f"local-dir:{folder}"


def logits_of(name: str, root: Path) -> dict[str, torch.Tensor]:
    """Of every validation image, through timm's own transform."""
    model = timm.create_model(name, pretrained=True).eval()
    transform = create_transform(**resolve_model_data_config(model, use_test_size=True))
    paths = sorted((root / "val").glob("*/*.png"))
    with torch.no_grad():
        images = torch.stack([transform(Image.open(path).convert("RGB")) for path in paths])
        return dict(zip(map(str, paths), model(images), strict=True))


@pytest.fixture(scope="module")
def imagenet_part(tmp_path_factory: pytest.TempPathFactory) -> Path:
    names = [SYNSETS[number] for number in (7, 0, 500)]
    return make_folders(tmp_path_factory.mktemp("part"), names, 110, {"train": 4, "val": 3})


def test_a_part_of_imagenet_is_evaluated_as_timm_would(imagenet_part: Path, tmp_path: Path) -> None:
    """The images that timm sees, 96 px at the test size, and of the 1000 outputs those of the three classes."""
    name = published(tmp_path / "model", None, 1000)
    out, details = tmp_path / "figures.json", tmp_path / "details"
    line = [f"data.root={imagenet_part}", "device=cpu", "progress=false", f"out={out}", f"details={details}"]
    evaluate([f"model={name}", "pretrained=true", "batch_size=4", "data.num_workers=0", *line])
    figures = json.loads(out.read_text())
    assert (figures["img_size"], figures["init"], figures["attention"]) == (96, "pretrained", "stock")
    classes = sorted(path.name for path in (imagenet_part / "val").iterdir())
    chosen = [SYNSETS.index(each) for each in classes]
    theirs = {path: logits[chosen] for path, logits in logits_of(name, imagenet_part).items()}
    with open(details / "predictions.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["image"] for row in rows] == list(theirs)
    for row in rows:
        probabilities = theirs[row["image"]].softmax(0)
        assert row["class"] == Path(row["image"]).parent.name
        assert row["prediction"] == classes[int(probabilities.argmax())]
        assert float(row["probability"]) == pytest.approx(float(probabilities.max()), abs=1e-3)
        assert row["in_top5"] == "1"
    hits = sum(row["class"] == row["prediction"] for row in rows)
    assert figures["top1"] == pytest.approx(100 * hits / len(rows))
    with open(details / "per_class.csv") as file:
        per_class = list(csv.DictReader(file))
    assert [row["class"] for row in per_class] == classes and {row["images"] for row in per_class} == {"3"}
    assert sum(float(row["top1"]) for row in per_class) / 3 == pytest.approx(figures["top1"], abs=0.01)
    with open(details / "confusion.csv") as file:
        confusion = {row["true class"]: row for row in csv.DictReader(file)}
    assert sum(int(confusion[each][each]) for each in classes) == hits
    assert all(sum(int(confusion[each][other]) for other in classes) == 3 for each in classes)


def test_grey_images_meet_weights_as_timm_adapts_them(folders: Path, tmp_path: Path) -> None:
    """The same logits as timm's model with in_chans=1 gives for grey images, normalised by the mean of the channels."""
    name = published(tmp_path / "model", ["ant", "bee", "cat"], 3)
    model: Any = timm.create_model(name, pretrained=True, in_chans=1).eval()
    shown = EvalDataConfig(root=str(folders), img_size=64, num_workers=0)
    config = EvalConfig(model=EvalModelConfig(name=name, in_chans=1), pretrained=True, data=shown)
    evaluation = build_evaluation(config, torch.device("cpu"))
    images, _ = next(iter(evaluation.data.val_loader))
    assert evaluation.config.model.in_chans == 1 and images.shape[1:] == (1, 64, 64)
    assert evaluation.data.mean == pytest.approx((0.4,)) and evaluation.data.std == pytest.approx((0.3,))
    with torch.no_grad():
        torch.testing.assert_close(evaluation.on_data(images), model(images))


def test_weights_for_grey_images_are_given_grey_images(folders: Path, tmp_path: Path) -> None:
    """A published folder says that its model takes one channel; nothing need be said again."""
    name = published(tmp_path / "model", ["ant", "bee", "cat"], 3, in_chans=1)
    out = tmp_path / "figures.json"
    line = [f"data.root={folders}", "data.img_size=64", "data.num_workers=0", "device=cpu", "progress=false"]
    evaluate([f"model={name}", "pretrained=true", *line, f"out={out}"])
    assert json.loads(out.read_text())["num_images"] == 9


def test_own_settings_go_before_timms(folders: Path, tmp_path: Path) -> None:
    """Classes in the order of the weights, though the folders sort otherwise; another size."""
    name = published(tmp_path / "model", ["cat", "ant", "bee"], 3)
    out = tmp_path / "figures.json"
    line = [f"data.root={folders}", "data.img_size=64", "data.num_workers=0", "device=cpu", "progress=false"]
    evaluate([f"model={name}", "pretrained=true", *line, f"out={out}"])
    figures = json.loads(out.read_text())
    assert figures["img_size"] == 64 and figures["num_images"] == 9


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("model.name=pvt_v2_b0", "model=NAME and pretrained=true go together"),
        ("pretrained=true checkpoint=x.pt", "model=NAME and pretrained=true go together"),
        ("model.name=pvt_v2_b0 pretrained=true checkpoint=x.pt", "are two models: give one of them"),
        ("model.name=pvt_v2_b0 pretrained=true attention=msa", "attention=msa is a checkpoint's"),
        ("model.name=pvt_v2_b0 pretrained=true", "connect once, or give a checkpoint instead"),
        ("model.name=pvt_v2_b77 pretrained=true", "model=pvt_v2_b77 does not exist; did you mean pvt_v2_b"),
    ],
)
def test_refusals(line: str, message: str, refused: Refused) -> None:
    assert message in refused("eval", *line.split())


def test_unknown_classes_are_refused(refused: Refused, folders: Path, tmp_path: Path) -> None:
    name = published(tmp_path / "model", None, 1000)
    message = refused("eval", f"model.name={name}", "pretrained=true", f"data.root={folders}")
    assert "knows 1000 classes, the data have 3" in message


def test_details_name_every_image(refused: Refused, folders: Path, tmp_path: Path) -> None:
    name = published(tmp_path / "model", ["ant", "bee", "cat"], 3)
    line = [f"model.name={name}", "pretrained=true", f"data.root={folders}", f"details={tmp_path / 'd'}"]
    assert "set data.max_corrupt=0" in refused("eval", *line, "data.max_corrupt=1")


def test_a_timm_model_teaches(imagenet_part: Path, tmp_path: Path) -> None:
    """Its logits are those of its own normalisation, of the data's classes; and the run learns from them."""
    name = published(tmp_path / "model", None, 1000)
    line = ["model=pvt_v2_b0", TINY_PVT, *QUICK, "data=folder", f"data.root={imagenet_part}", "data.img_size=64"]
    line += ["data.num_workers=0", f"distill.model={name}", f"output_dir={tmp_path / 'run'}"]
    config = compose_config(*line)
    run = build_run(config, choose_run_dir(config), torch.device("cpu"))
    teacher = run.trainer.train_step.teacher
    assert isinstance(teacher, LogitTeacher)
    images, _ = next(iter(run.data.val_loader))
    model: Any = timm.create_model(name, pretrained=True).eval()
    mean, std = (torch.tensor(pair).view(3, 1, 1) for pair in (run.data.mean, run.data.std))
    own_mean, own_std = (torch.tensor(pair).view(3, 1, 1) for pair in ((0.5, 0.4, 0.3), (0.2, 0.3, 0.4)))
    with torch.no_grad():
        expected = model((images * std + mean - own_mean) / own_std)
    chosen = [SYNSETS.index(each) for each in run.data.class_names]
    torch.testing.assert_close(teacher.logits(images), expected[:, chosen], rtol=1e-4, atol=1e-5)
    assert run.trainer.fit()["epochs"] == 1


def test_sequences_have_no_teacher_of_images(refused: Refused, tmp_path: Path) -> None:
    name = published(tmp_path / "model", None, 1000)
    tiny = [
        "data.seq_len=24",
        "data.min_tokens=6",
        "data.max_depth=3",
        "data.max_args=5",
        "data.max_train_samples=16",
        "data.max_val_samples=8",
    ]
    line = ["model=lra_encoder", "data=listops", *tiny, *QUICK, "augment=none", f"distill.model={name}"]
    assert "takes images, data.name=listops are sequences of ids" in refused("train", *line)


def test_two_teachers_are_refused(refused: Refused, digits_runs: Callable[[str], Path]) -> None:
    checkpoint = digits_runs("msa") / "best.pt"
    line = ["experiment=digits_msa", f"distill.checkpoint={checkpoint}", "distill.model=pvt_v2_b0"]
    assert "are two teachers" in refused("train", *line)

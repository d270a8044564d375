"""train.py from a published checkpoint, and eval.py on an imported one."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from app_helpers import QUICK, ROOT, compose_config, make_folders

from ecoformer import InputError
from ecoformer.config.schema import AugmentConfig, DataConfig, TrainConfig
from ecoformer.data import build_data
from ecoformer.run.build import data_config_note
from ecoformer.run.start import build_model

GOLDEN = ROOT / "tests" / "models" / "golden" / "official_pvt_tiny_ecoformer.npz"
TINY = "+model.kwargs={embed_dims:[16,32,40,64],depths:[1,2,1,1],mlp_ratios:[2,2,2,2]}"
HASH = [
    "attention.num_bits=8",
    "attention.num_anchors=8",
    "attention.top_k=4",
    "attention.fit_steps=2",
    "callbacks.hash_update.num_images=4",
]


def test_training_goes_on_from_published_weights(train, tmp_path: Path):
    small = [*QUICK, "train.max_steps=1", "data.max_train_samples=16", "data.max_val_samples=8", "data.img_size=64"]
    figures = train(
        tmp_path / "run",
        *["experiment=digits_ecoformer", "model=timm", "model.name=pvt_v2_b0", "model.patch_stride=null", TINY],
        *[*HASH, *small, f"init.checkpoint={GOLDEN}"],
    )
    assert figures["epochs"] == 1


def test_an_imported_file_is_evaluated(command, tmp_path: Path):
    script = importlib.import_module("ecoformer.cli.import_weights")
    names = [f"class{index}" for index in range(10)]
    (tmp_path / "names.txt").write_text("\n".join(names))
    arguments = [str(GOLDEN), "--model=pvt_v2_b0_ecoformer", f"--out={tmp_path / 'imported.pt'}"]
    assert script.main([*arguments, f"--classes={tmp_path / 'names.txt'}"]) == 0
    root = make_folders(tmp_path / "data", names, 64, {"val": 1})
    out = tmp_path / "figures.json"
    code = command("eval", f"checkpoint={tmp_path / 'imported.pt'}", f"data.root={root}", "device=cpu", f"out={out}")
    assert code == 0
    assert json.loads(out.read_text())["num_images"] == 10


VIT = [
    *("experiment=digits_msa", "model=timm", "model.name=vit_tiny_patch16_224", "model.patch_stride=null"),
    "+model.kwargs={patch_size:8,embed_dim:24,depth:1,num_heads:2}",
    *(*QUICK, "data.max_train_samples=16", "data.max_val_samples=8"),
]


def test_a_vit_goes_on_at_another_image_size(train, tmp_path: Path):
    """From a file of others, then from the run's own folder; as timm resamples the position embedding."""
    vit = timm.create_model(
        "vit_tiny_patch16_224", img_size=64, patch_size=8, embed_dim=24, depth=1, num_heads=2, num_classes=10
    )
    torch.save(
        {"state_dict_ema": {f"module.{key}": value for key, value in vit.state_dict().items()}}, tmp_path / "v.pth"
    )
    config = compose_config(*VIT, f"init.checkpoint={tmp_path / 'v.pth'}")
    built = build_model(config, 10)
    vit.set_input_size(img_size=32)
    assert torch.equal(built.model.pos_embed, vit.pos_embed)
    assert "position embedding resized for 32 px images, the weights were trained on 64 px" in built.notes
    assert "averaged weights (state_dict_ema) were taken" in built.notes
    train(tmp_path / "run", *VIT, f"init.checkpoint={tmp_path / 'v.pth'}")
    figures = train(tmp_path / "larger", *VIT, "data.img_size=48", f"init.checkpoint={tmp_path / 'run'}")
    assert figures["img_size"] == 48


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("vit_tiny_patch16_224", {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 1, "num_heads": 2}),
        ("pvt_v2_b0", {"embed_dims": [16, 32, 40, 64], "depths": [1, 1, 1, 1]}),
        ("twins_svt_small", {"img_size": 224}),
    ],
)
def test_weights_of_grey_images_stay_as_they_are(tmp_path: Path, name: str, options: dict[str, Any]):
    """As timm's train.py --in-chans 1 leaves them; for RGB they are refused, with the key to set."""
    grey = timm.create_model(name, in_chans=1, num_classes=10, **options)
    torch.save({"state_dict": grey.state_dict()}, tmp_path / "grey.pth")
    config = compose_config("experiment=digits_stock", f"model.name={name}", "model.patch_stride=null", *QUICK)
    config.model.kwargs = {key: value for key, value in options.items() if key != "img_size"}
    config.data.img_size = options.get("img_size", 32)
    config.init.checkpoint, config.model.in_chans = str(tmp_path / "grey.pth"), 1
    built = build_model(config, 10).model.state_dict()
    assert all(torch.equal(built[key], value) for key, value in grey.state_dict().items())
    config.model.in_chans = 3
    with pytest.raises(InputError, match=r"was trained with model\.in_chans=1, now it is 3: make them the same"):
        build_model(config, 10)


def test_a_folder_stands_for_its_checkpoint(train, command, refused, tmp_path: Path):
    train(tmp_path / "run", *VIT, "schedule=constant")
    out = tmp_path / "figures.json"
    assert command("eval", f"checkpoint={tmp_path / 'run'}", f"out={out}", "progress=false") == 0
    assert json.loads(out.read_text())["checkpoint"] == str(tmp_path / "run" / "best.pt")
    assert (
        command(
            "train",
            *VIT,
            "train.epochs=2",
            "schedule=constant",
            "schedule.warmup_epochs=0",
            f"resume={tmp_path / 'run'}",
        )
        == 0
    )
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["epochs"] == 2
    (tmp_path / "empty").mkdir()
    message = refused("eval", f"checkpoint={tmp_path / 'empty'}")
    assert message.endswith("empty is a folder without best.pt and last.pt: give the folder of a run, or a file")
    message = refused("train", *VIT, "resume=true", f"output_dir={tmp_path / 'run'}")
    assert message.startswith("resume=true: did you mean resume=auto,")
    assert refused("train", *VIT, "resume=false").startswith("resume=false: did you mean resume=off")


def test_settings_of_the_data_that_timms_weights_do_not_know():
    model = timm.create_model("vit_tiny_patch16_224")  # trained with mean = std = 0.5, crop 0.9
    data = build_data(DataConfig(name="digits", img_size=32), AugmentConfig(), TrainConfig(), seed=0, device="cpu")
    (note,) = data_config_note(model, data)
    assert note.endswith("data.mean=[0.5,0.5,0.5] data.std=[0.5,0.5,0.5] data.crop_pct=0.9")
    typed = DataConfig(name="digits", img_size=32, mean=[0.5] * 3, std=[0.5] * 3, crop_pct=0.9)
    assert data_config_note(model, build_data(typed, AugmentConfig(), TrainConfig(), seed=0, device="cpu")) == []

"""The real thing, small: PVTv2-B0 with hashed attention on digits, resumed across a hash update."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from test_resume import assert_same_run

from ecoformer import EcoFormerSpec, convert, set_patch_stride
from ecoformer.config.schema import (
    AugmentConfig,
    DataConfig,
    EnergyConfig,
    HashUpdateConfig,
    OptimConfig,
    ScheduleConfig,
    TrainConfig,
)
from ecoformer.data import build_data
from ecoformer.engine.callbacks import EnergyLog
from ecoformer.engine.evaluation import evaluate
from ecoformer.engine.hash_update import HashUpdate
from ecoformer.engine.trainer import Trainer
from ecoformer.model.checkpoint import evaluated_weights, load_checkpoint, load_weights

CPU = torch.device("cpu")
IMG_SIZE = 32
TRAIN = TrainConfig(epochs=2, batch_size=16, grad_accum=2, ema_decay=0.5, smoothing=0.1, progress=False, log_every=1)


def build_model() -> torch.nn.Module:
    torch.manual_seed(3)
    model = timm.create_model("pvt_v2_b0", num_classes=10, drop_path_rate=0.1)
    set_patch_stride(model, 2)
    convert(model, EcoFormerSpec(num_bits=4, num_anchors=8, top_k=2, fit_steps=3), img_size=IMG_SIZE)
    return model


def build_trainer(run_dir: Path) -> Trainer:
    data: Any = build_data(
        DataConfig(name="digits", img_size=IMG_SIZE, max_train_samples=64, max_val_samples=20),
        AugmentConfig(mixup=0.2, cutmix=0.5, crop_padding=2, random_erase=0.1),
        TRAIN,
        seed=1,
        device=CPU,
    )
    return Trainer(
        build_model(),
        data,
        train=TRAIN,
        optim=OptimConfig(lr=1e-3, lr_base_batch=32, clip_grad=5.0),
        schedule=ScheduleConfig(warmup_epochs=1),
        run_dir=run_dir,
        device=CPU,
        seed=4,
        callbacks=[HashUpdate(HashUpdateConfig(every=1, num_images=4)), EnergyLog(EnergyConfig())],
    )


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    run_dir = tmp_path_factory.mktemp("straight")
    return run_dir, build_trainer(run_dir).fit()


def test_one_plus_one_equals_two(straight: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    run_dir, expected = straight
    build_trainer(tmp_path).fit(stop_after=1)
    summary = build_trainer(tmp_path).fit(resume=tmp_path / "last.pt")
    assert_same_run(run_dir, tmp_path)
    clock = ("duration_s", "images_per_second", "train_images_per_second")
    assert {key: summary[key] for key in summary if key not in clock} == {
        key: expected[key] for key in expected if key not in clock
    }


def test_run_directory_and_summary(straight: tuple[Path, dict[str, Any]]) -> None:
    run_dir, summary = straight
    records = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    blocks = [record["block"] for record in records if record["event"] == "hash_fit" and record["epoch"] == 1]
    assert len(blocks) == 6 and len(set(blocks)) == 6  # two blocks in each of stages 1 to 3
    events = [record["event"] for record in records]
    assert events.count("energy") == 1 and events.count("train") == 4 and events.count("epoch") == 2
    assert summary["params"] > 2.5e6 and summary["energy_convention"] == "paper"
    assert summary["loss"] < 3 * math.log(10) and summary["images_per_second"] > 0


def test_best_gives_the_reported_figures_in_a_new_model(straight: tuple[Path, dict[str, Any]]) -> None:
    run_dir, summary = straight
    model = build_model()
    load_weights(model, evaluated_weights(load_checkpoint(run_dir / "best.pt")), "best.pt")
    data = build_data(
        DataConfig(name="digits", img_size=IMG_SIZE, max_val_samples=20),
        AugmentConfig(),
        TRAIN,
        seed=9,
        device=CPU,
        with_train=False,
    )
    result = evaluate(model, data.val_loader, CPU)
    assert (result.top1, result.top5, result.loss) == (summary["top1"], summary["top5"], summary["loss"])
    assert result.num_images == 20

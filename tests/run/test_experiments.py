"""Every experiment file: complete, headed, composed with the published values, and trained for two steps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from app_helpers import CONFIGS, EXPERIMENTS, QUICK, TINY_HASH, TINY_PVT, TINY_TWINS, compose_config

from ecoformer.engine.optim import scaled_lr
from ecoformer.run.checks import check_config

SEQUENCES = {"listops": "listops", "text": "text_bytes", "image": "pixels"}
PUBLISHED_MODELS = [*(f"pvt_v2_b{size}" for size in range(5)), "twins_svt_small"]
SUMMARY_KEYS = {
    *("model", "attention", "dataset", "img_size", "epochs", "top1", "top5", "params", "muls", "adds", "energy_pj"),
    *("attention_energy_pj", "energy_convention", "energy_profile", "images_per_second", "train_images_per_second"),
    *("seed", "duration_s", "versions", "init", "attention_options"),
}
RUN_FILES = ("config.yaml", "metrics.jsonl", "metrics.csv", "last.pt", "best.pt", "summary.json")


def test_no_experiment_is_missing() -> None:
    small = ("digits", "cifar10_pvt_v2_b0", "cifar100_pvt_v2_b0")
    expected = [f"{stem}_{kind}" for stem in small for kind in ("stock", "msa", "ecoformer")]
    expected += [f"imagenet_{model}_{kind}" for model in PUBLISHED_MODELS for kind in ("stock", "msa", "ecoformer")]
    expected += [f"{data}_pvt_v2_b0_distilled_hash" for data in ("cifar10", "imagenet")]
    expected += [f"lra_{task}_{kind}" for task in ("listops", "text", "image") for kind in ("msa", "ecoformer")]
    expected += [f"inks_{kind}" for kind in ("msa", "ecoformer", "uniform")]
    expected += [f"{task}_small_{kind}" for task in ("listops", "text") for kind in ("msa", "ecoformer", "uniform")]
    assert sorted(expected) == EXPERIMENTS


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_header_and_composition(name: str) -> None:
    text = (CONFIGS / "experiment" / f"{name}.yaml").read_text()
    assert f"experiment={name}" in text
    assert "# Published:" in text and "# Time:" in text
    config = compose_config(f"experiment={name}")
    assert check_config(config) == []
    assert config.name == name
    if config.model.name == "lra_encoder":
        task, kind = name.removeprefix("lra_").replace("_small", "").split("_")
        assert (SEQUENCES[task], kind) == (config.data.name, config.attention["name"])
        return
    long_name = f"{name.split('_')[0]}_{config.model.name}_{config.attention['name']}"
    assert name == long_name.replace("digits_pvt_v2_b0", "digits").replace("inks_vit_tiny_patch16_224", "inks")
    assert config.data.name == name.split("_")[0]


@pytest.mark.parametrize("kind", ["stock", "msa", "ecoformer"])
@pytest.mark.parametrize("model", PUBLISHED_MODELS)
def test_official_recipe(model: str, kind: str) -> None:
    twins, second = model.startswith("twins"), kind == "ecoformer"
    config = compose_config(f"experiment=imagenet_{model}_{kind}")
    assert config.train.epochs == (30 if second else 100)
    assert config.optim.name == "adamw" and config.optim.weight_decay == 0.05
    assert config.optim.lr == (25e-5 if twins and second else 5e-5)
    assert scaled_lr(config.optim, 8 * config.train.batch_size) == config.optim.lr / 2
    assert config.optim.clip_grad == (5.0 if twins else None)
    assert config.schedule.name == "cosine" and config.schedule.warmup_epochs == 5
    assert config.schedule.warmup_lr == (5e-7 if twins and second else 1e-7)
    assert config.schedule.min_lr == 1e-6
    assert config.train.batch_size == 32 and config.train.smoothing == 0.1
    augment = config.augment
    assert (augment.mixup, augment.cutmix, augment.random_erase) == (0.8, 1.0, 0.25)
    assert augment.auto_augment == "rand-m9-mstd0.5-inc1"
    assert augment.repeats == (0 if twins else 3)
    assert config.model.drop_path_rate == (0.2 if twins else 0.1)
    assert config.data.img_size == 224 and config.init.pretrained
    if second:
        assert (config.attention["num_bits"], config.attention["num_anchors"], config.attention["top_k"]) == (
            16,
            25,
            10,
        )


@pytest.mark.parametrize(
    ("task", "steps", "warmup"), [("listops", 5000, 1000), ("text", 20000, 8000), ("image", 35000, 175)]
)
def test_long_range_arena_recipe(task: str, steps: int, warmup: int) -> None:
    softmax, hashed = (compose_config(f"experiment=lra_{task}_{kind}") for kind in ("msa", "ecoformer"))
    for config in (softmax, hashed):
        assert config.train.max_steps is not None
        assert config.train.epochs * config.train.max_steps == steps
        assert config.schedule.warmup_epochs * config.train.max_steps == warmup
        assert (config.schedule.name, config.schedule.decay_rate, config.schedule.min_lr) == ("poly", 1.0, 0.0)
        assert (config.optim.name, config.optim.lr, config.optim.weight_decay) == ("adamw", 1e-4, 0.0)
        assert config.train.batch_size == (256 if task == "image" else 32)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_two_steps(
    name: str,
    train: Callable[..., dict[str, Any]],
    folders: Path,
    texts: Path,
    cifar: Callable[[int], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The picture of the fits, which tests of whole runs look at, would take longer than the two steps.
    monkeypatch.setattr("ecoformer.run.summary.draw_hash_fits", lambda run_dir, model: None)
    sequences = compose_config(f"experiment={name}").model.name == "lra_encoder"
    overrides = [f"experiment={name}", "init.pretrained=false", *QUICK]
    if name.startswith("inks"):
        overrides += ["data.img_size=48"]
    elif not sequences:
        overrides.append(TINY_TWINS if "twins" in name else TINY_PVT)
    if sequences:  # of 64 tokens
        overrides += ["data.seq_len=64"]
    if sequences and "text" in name:
        overrides += [f"data.root={texts}"]
    elif name.startswith("lra_image"):
        overrides += [f"data.root={cifar(10)}", "data.img_size=8"]
    elif name.startswith("imagenet"):
        # 64 px: 256, 64, 16 and 4 tokens in the four stages.
        overrides += [f"data.root={folders}", "data.img_size=64", "data.num_workers=0"]
    elif name.startswith("cifar"):
        overrides += [f"data.root={cifar(100 if 'cifar100' in name else 10)}", "data.max_val_samples=16"]
    else:
        overrides += ["data.max_train_samples=32", "data.max_val_samples=16"]
        overrides += ["data.min_tokens=25"] if sequences else []
    if name.endswith("distilled_hash"):
        overrides += TINY_HASH
    if name.endswith("ecoformer"):
        overrides += [*TINY_HASH, "attention.clamp=true"]
    summary = train(tmp_path / "run", *overrides)
    assert summary.keys() >= SUMMARY_KEYS
    assert summary["model"] == compose_config(f"experiment={name}").model.name
    assert summary["epochs"] == 1 and summary["energy_pj"] > summary["attention_energy_pj"] > 0
    assert all((tmp_path / "run" / file).is_file() for file in RUN_FILES)

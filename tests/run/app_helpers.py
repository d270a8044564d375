"""What the tests of the command lines share: where things are, tiny settings, tiny images, in-process composition."""

from __future__ import annotations

import copy
import functools
from pathlib import Path

import numpy as np
from hydra import compose, initialize_config_dir
from PIL import Image

from ecoformer.config.loading import CONFIGS, load_config
from ecoformer.config.schema import SCHEMAS, Config, register_schemas
from ecoformer.run import job

ROOT = Path(__file__).resolve().parents[2]
EXPERIMENTS = sorted(path.stem for path in (CONFIGS / "experiment").glob("*.yaml"))

# A PVTv2 and a Twins with all four stages, small enough to train in a second.
TINY_PVT = "+model.kwargs={depths:[1,1,1,1],embed_dims:[8,16,40,64]}"
TINY_TWINS = "+model.kwargs={depths:[1,1,2,1],embed_dims:[16,32,64,128]}"
QUICK = ["train.progress=false", "device=cpu", "train.epochs=1", "train.max_steps=2", "train.batch_size=8"]
TINY_DIGITS = [TINY_PVT, *QUICK, "data.max_train_samples=64", "data.max_val_samples=32"]
TINY_HASH = ["attention.fit_steps=2", "callbacks.hash_update.num_images=4"]
FIT = ["callbacks.hash_update.num_images=4", "callbacks.hash_update.held_out_images=0"]
# What each kind needs at the token counts of TINY_PVT, and fits that take no time.
OPTIONS = {
    "ecoformer": ["attention.clamp=true", "attention.fit_steps=1"],
    "random_hash": ["attention.clamp=true"],
    "ecoformer_tuned": ["attention.fit_steps=1", "attention.num_anchors=2"],
    "distilled": ["attention.fit_steps=1", "attention.projection=ternary"],
    "distilled_hash": ["attention.fit_steps=1"],
    "hedgehog": ["attention.fit_steps=1"],
}


def compose_config(*overrides: str) -> Config:
    """The typed config of a command line, to be changed at will; composed once a session."""
    return copy.deepcopy(_composed(*overrides))


@functools.cache
def _composed(*overrides: str) -> Config:
    register_schemas()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return load_config(Config, compose("train", list(overrides)))


TASKS = {"train": job.train, "eval": job.evaluate_checkpoint}


def run_task(name: str, *overrides: str) -> object:
    """What a command does for these overrides, without the command line around it."""
    register_schemas()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        composed = compose(name, list(overrides))
    return TASKS[name](load_config(SCHEMAS[name], composed))


def make_folders(root: Path, class_names: list[str], size: int, per_class: dict[str, int]) -> Path:
    """Random images ROOT/SPLIT/CLASS/N.png, so many per class and split."""
    rng = np.random.default_rng(0)
    for split, count in per_class.items():
        for name in class_names:
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                Image.fromarray(rng.integers(256, size=(size, size, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    return root

"""What `ecoformer benchmark-data` does: stages of loading, one by one, and whole passes of both loaders in turns."""

import argparse
import io
import os
import statistics
import time
from collections import defaultdict, deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
from PIL import Image
from timm.data import FastCollateMixup, ImageDataset, create_loader

from ecoformer.config.schema import AugmentConfig, DataConfig, TrainConfig
from ecoformer.data import DataModule, build_data
from ecoformer.data.files import Sample, collate, kept_generators, seed_globals
from ecoformer.errors import InputError
from ecoformer.files import json_text, user_path, write_json
from ecoformer.files.table import Column, Table, render
from ecoformer.lab.speed.throughput import interleaved_seconds
from ecoformer.run.process import processor

SMOOTHING = 0.1
CROP: dict[str, Any] = dict(scale=[0.08, 1.0], ratio=[3 / 4, 4 / 3])
RECIPES = {
    "crop, flip": AugmentConfig(**CROP),
    "all": AugmentConfig(**CROP, auto_augment="rand-m9-mstd0.5-inc1", random_erase=0.25, mixup=0.8, cutmix=1.0),
}
STAGES = {  # else: to tensor
    "decoded_pixels": "decode",
    "RandomCrop": "crop+resize",
    "RandomHorizontalFlip": "flip",
    "RandAugment": "RandAugment",
}


def run(args: argparse.Namespace) -> int:
    load = os.getloadavg()[0]
    rows = [row for recipe, augment in RECIPES.items() for row in compare(args, recipe, augment)]
    keys = ("workers", "img_size", "batch_size", "rounds", "min_seconds", "images")
    settings = {key: getattr(args, key) for key in keys} | {"threads": torch.get_num_threads()}
    found = {"load_average_before": round(load, 2), "load_average_after": round(os.getloadavg()[0], 2)}
    versions = {"torch": torch.__version__, "timm": timm.__version__, "machine": processor()}
    report = {"rows": rows, **settings, **found, **versions}
    if args.out is not None:
        write_json(args.out, report)
    print(json_text(report, indent=2) if args.format == "json" else as_table(rows))
    return 0


def compare(args: argparse.Namespace, recipe: str, augment: AugmentConfig) -> list[dict[str, Any]]:
    """One row a loader: images/s of whole passes, and of ours milliseconds an image of every stage."""
    config = DataConfig("folder", root=args.root, img_size=args.img_size, num_workers=args.workers, in_memory=False)
    train = TrainConfig(batch_size=args.batch_size, smoothing=SMOOTHING)
    data = build_data(config, augment, train, seed=args.seed, device="cpu")
    loaders: dict[str, Any] = {"ecoformer": data.train_loader}
    if args.against == "timm":
        loaders["timm"] = timm_loader(args, augment, data.num_classes)
    costs = {"ecoformer": stages(data, args)}
    passes = {name: lambda loader=loader: deque(loader, maxlen=0) for name, loader in loaders.items()}
    seconds = interleaved_seconds(passes, torch.device("cpu"), args.rounds, args.min_seconds)
    count = len(loaders["ecoformer"]) * args.batch_size
    ratios = [theirs / own for own, theirs in zip(seconds["ecoformer"], seconds.get("timm", []), strict=False)]
    return [
        {
            "recipe": recipe,
            "loader": name,
            "images_per_second": round(count / statistics.median(seen), 1),
            "low": round(count / max(seen), 1),
            "high": round(count / min(seen), 1),
            "ratio_to_timm": round(statistics.median(ratios), 3) if ratios and name != "timm" else None,
            "ratios": [round(ratio, 3) for ratio in ratios] if name != "timm" else None,
            "stages_ms": costs.get(name),
        }
        for name, seen in seconds.items()
    ]


def timm_loader(args: argparse.Namespace, augment: AugmentConfig, num_classes: int) -> Any:
    """timm's loader as its training script builds it, with the same augmentation."""
    mix = dict(mixup_alpha=augment.mixup, cutmix_alpha=augment.cutmix, label_smoothing=SMOOTHING)
    options: dict[str, Any] = {key: getattr(augment, key) for key in ("scale", "ratio", "hflip", "auto_augment")}
    options["color_jitter"] = None  # timm's default is not none
    return create_loader(
        ImageDataset(str(user_path(args.root) / "train")),
        input_size=(3, args.img_size, args.img_size),
        batch_size=args.batch_size,
        is_training=True,
        re_prob=augment.random_erase,
        re_mode="pixel",
        interpolation="bicubic",
        num_workers=args.workers,
        collate_fn=FastCollateMixup(**mix, num_classes=num_classes) if augment.mixup else None,
        device=torch.device("cpu"),
        **options,
    )


def stages(data: DataModule, args: argparse.Namespace) -> dict[str, float]:
    """Milliseconds an image of every stage of our loader, in this process, as in a worker with one thread."""
    loader: Any = data.train_loader
    source: Any = data.train_source
    threads = torch.get_num_threads()
    seconds: dict[str, float] = defaultdict(float)

    def timed(name: str, work: Callable[..., Any], *values: Any) -> Any:
        started = time.perf_counter()
        result = work(*values)
        seconds[name] += time.perf_counter() - started
        return result

    count = min(args.images, len(source)) // args.batch_size * args.batch_size
    if count == 0:
        raise InputError(f"--images {args.images} is less than --batch-size {args.batch_size}: raise it")
    torch.set_num_threads(1)
    with kept_generators():
        seed_globals(args.seed)
        for start in range(0, count, args.batch_size):
            samples = []
            for index in range(start, start + args.batch_size):
                image = timed("read", opened, source.name(index))
                for step in loader.transform.transforms:
                    name = getattr(step, "__name__", type(step).__name__)
                    image = timed(STAGES.get(name, "to tensor"), step, image)
                samples.append(Sample(image, int(source.targets[index])))
            images, targets, _ = timed("collate", collate, samples)
            timed("batch", loader.finish, images, targets, 0, start // args.batch_size)
    torch.set_num_threads(threads)
    return {name: round(1e3 * total / count, 3) for name, total in seconds.items()}


def opened(path: str) -> Image.Image:
    return Image.open(io.BytesIO(Path(path).read_bytes()))


def as_table(rows: list[dict[str, Any]]) -> str:
    columns = [Column(key, key, none="", left=key in ("recipe", "loader")) for key in list(rows[0])[:6]]
    lines = [
        f"{row['recipe']}, ms an image: " + ", ".join(f"{name} {ms}" for name, ms in row["stages_ms"].items())
        for row in rows
        if row["stages_ms"]
    ]
    return render(Table(columns, rows), "table", notes=lines)

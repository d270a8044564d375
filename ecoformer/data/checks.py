"""Settings of the data that cannot work, refused before any image is read."""

from __future__ import annotations

import difflib

from ecoformer.config.schema import AugmentConfig, DataConfig, TrainConfig
from ecoformer.data.decode import INTERPOLATIONS
from ecoformer.errors import InputError

ARCHIVES = ("webdataset", "hfds")
DATA_NAMES = ("digits", "cifar10", "cifar100", "imagenet", "folder", *ARCHIVES)
ARCHIVE_KEYS = ("train_split", "val_split", "image_key", "label_key", "num_classes", "class_names")
MEMORY_IMG_SIZE = 64  # in pixels; larger images profit from crops at other scales, which need the files
MEMORY_LIMIT = 2 * 2**30  # bytes of uint8 pixels, training and validation together
FILE_KEYS = ("scale", "ratio", "color_jitter", "auto_augment", "repeats")


def memory_bytes(num_images: int, img_size: int) -> int:
    return num_images * 3 * img_size**2


def check_data(data: DataConfig, train: TrainConfig) -> None:
    """Raise InputError for values that no data set could work with."""
    if data.name not in DATA_NAMES:
        near = difflib.get_close_matches(data.name, DATA_NAMES, n=1)
        hint = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(DATA_NAMES)}"
        raise InputError(f"data.name={data.name} does not exist: {hint}")
    for key in ARCHIVE_KEYS:
        if getattr(data, key) is not None and data.name not in ARCHIVES:
            raise InputError(
                f"data.{key}={getattr(data, key)} belongs to data={' and data='.join(ARCHIVES)}, not to "
                f"data={data.name}: leave it out"
            )
    if data.download and data.name in ARCHIVES:
        raise InputError(f"data.download=true works for cifar10 and cifar100, not for {data.name}: unset it")
    if data.download and data.name in ("imagenet", "folder"):
        raise InputError(
            f"data.download=true works for cifar10 and cifar100, not for {data.name}: "
            "unset it, and put the images under data.root/train/CLASS and data.root/val/CLASS"
        )
    if data.max_corrupt < 0:
        raise InputError(f"data.max_corrupt={data.max_corrupt} must be at least 0 (0: a broken image ends the run)")
    at_least_one = {
        "data.img_size": data.img_size,
        "data.num_classes": data.num_classes,
        "data.max_train_samples": data.max_train_samples,
        "data.max_val_samples": data.max_val_samples,
        "train.batch_size": train.batch_size,
        "train.eval_batch_size": train.eval_batch_size,
    }
    for key, value in at_least_one.items():
        if value is not None and value < 1:
            raise InputError(f"{key}={value} must be at least 1")
    if data.num_workers < 0:
        raise InputError(f"data.num_workers={data.num_workers} must be at least 0 (0: decode in the main process)")
    if data.crop_pct is not None and not 0 < data.crop_pct <= 1:
        raise InputError(f"data.crop_pct={data.crop_pct} must lie in (0, 1]")
    if data.interpolation not in INTERPOLATIONS:
        raise InputError(
            f"data.interpolation={data.interpolation} does not exist: choose one of {', '.join(INTERPOLATIONS)}"
        )
    for key, values in (("mean", data.mean), ("std", data.std)):
        if values is not None and (len(values) != 3 or (key == "std" and min(values) <= 0)):
            positive = " positive" if key == "std" else ""
            raise InputError(f"data.{key}={list(values)} must be three{positive} numbers, one per RGB channel")
        if values is not None and not all(0 <= value <= 1 for value in values):
            scaled = ",".join(f"{value / 255:.3g}" for value in values)
            raise InputError(
                f"data.{key}={list(values)} must lie in [0, 1], as pixels do here: if meant for pixels in 0..255, "
                f"divide it by 255: data.{key}=[{scaled}]"
            )


def check_augment(augment: AugmentConfig, *, in_memory: bool) -> None:
    """Raise InputError for impossible values, and for settings of the path that the data do not take."""
    for key in ("hflip", "random_erase", "mix_prob", "mix_switch_prob"):
        if not 0 <= getattr(augment, key) <= 1:
            raise InputError(f"augment.{key}={getattr(augment, key)} must lie in [0, 1]")
    for key in ("crop_padding", "color_jitter", "mixup", "cutmix", "repeats"):
        if getattr(augment, key) < 0:
            raise InputError(f"augment.{key}={getattr(augment, key)} must be at least 0")
    for key in ("scale", "ratio"):
        bounds = getattr(augment, key)
        if bounds is not None and (len(bounds) != 2 or not 0 < bounds[0] <= bounds[1]):
            raise InputError(f"augment.{key}={list(bounds)} must be two numbers above 0, the smaller one first")
    if in_memory:
        for key in FILE_KEYS:
            value = getattr(augment, key)
            if value and not (key == "repeats" and value == 1):
                raise InputError(
                    f"augment.{key}={value} works on image files, but the data are held in memory: "
                    f"unset it, or set data.in_memory=false"
                )
    elif augment.crop_padding > 0:
        raise InputError(
            f"augment.crop_padding={augment.crop_padding} works on data held in memory: "
            "use augment.scale for image files, or set data.in_memory=true"
        )


def check_batch(batch_size: int, world_size: int, num_train: int) -> None:
    """Raise InputError if not even one batch can be filled (the last, partial one is dropped)."""
    if batch_size * world_size > num_train:
        processes = f" x {world_size} processes" if world_size > 1 else ""
        limit = num_train // world_size
        remedy = f"lower train.batch_size to at most {limit}" if limit else "use fewer processes"
        raise InputError(f"train.batch_size={batch_size}{processes} is more than {num_train} training images: {remedy}")

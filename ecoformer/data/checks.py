"""Settings of the data that cannot work, refused before any image is read."""

import numpy as np

from ecoformer.config.keys import check_limits
from ecoformer.config.schema import ARCHIVES, BUNDLED, SEQUENCES, AugmentConfig, DataConfig, TrainConfig
from ecoformer.data.sequences import id_type
from ecoformer.errors import InputError

KEYS_OF: dict[str, tuple[str, ...]] = {  # sources that a key belongs to; "pixels" take those of their images
    **dict.fromkeys(("train_split", "image_key", "num_classes", "class_names"), ARCHIVES),
    "val_split": (*ARCHIVES, *SEQUENCES),
    "label_key": (*ARCHIVES, "text_bytes"),
    "text_key": ("text_bytes",),
    "pixels_of": ("pixels",),
    **dict.fromkeys(("max_depth", "max_args", "min_tokens"), ("listops",)),
}
MEMORY_IMG_SIZE = 64  # in pixels; larger images profit from crops at other scales, which need the files
MEMORY_LIMIT = 2 * 2**30  # bytes of uint8 pixels, training and validation together
IMAGE_AUGMENTS = ("hflip", "vflip", "crop_padding", "random_erase", "mixup", "cutmix")
FILE_KEYS = (
    *("scale", "ratio", "color_jitter", "color_jitter_prob", "grayscale_prob", "gaussian_blur_prob", "auto_augment"),
    "repeats",
)


def check_data(data: DataConfig, train: TrainConfig) -> None:
    """Raise InputError for values that no data set could work with."""
    check_limits(data, "data.")
    check_limits(train, "train.")
    source = data.pixels_of if data.name == "pixels" else None
    for key, names in KEYS_OF.items():
        if getattr(data, key) is not None and data.name not in names and source not in names:
            raise InputError(
                f"data.{key}={getattr(data, key)} belongs to data={' and data='.join(names)}, not to "
                f"data={data.name}: leave it out"
            )
    if data.name in SEQUENCES:
        _check_sequences(data)
    if data.name in BUNDLED and data.root is not None:
        raise InputError(
            f"data.root={data.root}: data={data.name} come with scikit-learn, no folder is read: leave it out, or name "
            "the data set that lies there, as data=folder"
        )
    if data.download and data.name in (*ARCHIVES, "listops", "text_bytes", "imagenet", "folder"):
        put = ", and put the images under data.root/train/CLASS and data.root/val/CLASS"
        remedy = f"unset it{put if data.name in ('imagenet', 'folder') else ''}"
        raise InputError(f"data.download=true works for cifar10 and cifar100, not for {data.name}: {remedy}")
    for key, values in (("mean", data.mean), ("std", data.std)):
        if values is not None and not all(0 <= value <= 1 for value in values):
            scaled = ",".join(f"{value / 255:.3g}" for value in values)
            raise InputError(
                f"data.{key}={list(values)} must lie in [0, 1], as pixels do here: if meant for pixels in 0..255, "
                f"divide it by 255: data.{key}=[{scaled}]"
            )


def require_seq_len(data: DataConfig) -> None:
    """Raise InputError where sequences are not said to be of any length."""
    if data.seq_len is None:
        raise InputError(f"data={data.name} needs data.seq_len: set it to the tokens of a sequence, such as 512")


def _check_sequences(data: DataConfig) -> None:
    require_seq_len(data)
    if data.in_memory is False:
        raise InputError(f"data.in_memory=false: data={data.name} are held in memory: leave it out")
    of_images = [key for key in ("mean", "std") if getattr(data, key) is not None]
    if of_images:
        key = of_images[0]
        raise InputError(f"data.{key}={getattr(data, key)} is for images, data={data.name} are sequences: leave it out")
    if data.name == "listops" and data.root is not None:
        for key in ("max_depth", "max_args", "min_tokens"):
            if getattr(data, key) is not None:
                raise InputError(
                    f"data.{key}={getattr(data, key)} is for generated expressions, data.root={data.root} holds its "
                    "own: leave out one of them"
                )
    if data.name == "pixels" and data.seq_len != data.img_size**2:
        raise InputError(
            f"data.seq_len={data.seq_len} must be data.img_size**2={data.img_size**2} for data=pixels: set one of them"
        )


def check_augment(augment: AugmentConfig, *, in_memory: bool, splits: int = 0, sequences: str | None = None) -> None:
    """Raise InputError for impossible values, and for settings of the path that the data do not take.

    `sequences`: what the data are called, if they are no images.
    """
    check_limits(augment, "augment.")
    values = {f"augment.{key}": getattr(augment, key) for key in (*IMAGE_AUGMENTS, *FILE_KEYS)}
    chosen = {key: value for key, value in (values | {"train.aug_splits": splits}).items() if value}
    if augment.repeats == 1:  # as good as 0
        del chosen["augment.repeats"]
    if sequences is not None and chosen:
        key, value = next(iter(chosen.items()))
        raise InputError(f"{key}={value} is for images, {sequences} are sequences: set augment=none")
    if in_memory:
        of_files = [key for key in chosen if key.removeprefix("augment.") not in IMAGE_AUGMENTS]
        if of_files:
            raise InputError(
                f"{of_files[0]}={chosen[of_files[0]]} works on image files, but the data are held in memory: "
                f"unset it, or set data.in_memory=false"
            )
    elif augment.crop_padding > 0:
        raise InputError(
            f"augment.crop_padding={augment.crop_padding} works on data held in memory: "
            "use augment.scale for image files, or set data.in_memory=true"
        )


def held_in_memory(data: DataConfig, num_samples: int, vocab_size: int | None) -> bool:
    """Whether so many samples are held in memory. Raises InputError where they should and do not fit."""
    is_images = vocab_size is None
    if vocab_size is None:
        needed = num_samples * 3 * data.img_size**2
    else:
        assert data.seq_len is not None, "checked"
        needed = num_samples * data.seq_len * np.dtype(id_type(vocab_size)).itemsize
    limit = f"the limit is {MEMORY_LIMIT / 2**30:.0f} GiB"
    if is_images and data.in_memory is None:
        return data.img_size <= MEMORY_IMG_SIZE and needed <= MEMORY_LIMIT
    if needed > MEMORY_LIMIT and not is_images:
        raise InputError(
            f"data.seq_len={data.seq_len} needs {needed / 2**30:.1f} GiB for {num_samples} samples, {limit}: lower it, "
            "or data.max_train_samples"
        )
    if needed > MEMORY_LIMIT and data.in_memory:
        raise InputError(
            f"data.in_memory=true needs {needed / 2**30:.1f} GiB for {num_samples} images of {data.img_size} px, "
            f"{limit}: set data.in_memory=false or lower data.img_size"
        )
    return not is_images or bool(data.in_memory)


def check_batch(batch_size: int, world_size: int, num_train: int, samples: str = "images") -> None:
    """Raise InputError if not even one batch can be filled (the last, partial one is dropped)."""
    if batch_size * world_size > num_train:
        processes = f" x {world_size} processes" if world_size > 1 else ""
        limit = num_train // world_size
        remedy = f"lower train.batch_size to at most {limit}" if limit else "use fewer processes"
        raise InputError(
            f"train.batch_size={batch_size}{processes} is more than {num_train} training {samples}: {remedy}"
        )

"""Settings of the data that cannot work, refused before any image is read."""

from ecoformer.config.keys import check_limits
from ecoformer.config.schema import ARCHIVES, AugmentConfig, DataConfig, TrainConfig
from ecoformer.errors import InputError

ARCHIVE_KEYS = ("train_split", "val_split", "image_key", "label_key", "num_classes", "class_names")
MEMORY_IMG_SIZE = 64  # in pixels; larger images profit from crops at other scales, which need the files
MEMORY_LIMIT = 2 * 2**30  # bytes of uint8 pixels, training and validation together
FILE_KEYS = ("scale", "ratio", "color_jitter", "auto_augment", "repeats")


def memory_bytes(num_images: int, img_size: int) -> int:
    return num_images * 3 * img_size**2


def check_data(data: DataConfig, train: TrainConfig) -> None:
    """Raise InputError for values that no data set could work with."""
    check_limits(data, "data.")
    check_limits(train, "train.")
    for key in ARCHIVE_KEYS:
        if getattr(data, key) is not None and data.name not in ARCHIVES:
            raise InputError(
                f"data.{key}={getattr(data, key)} belongs to data={' and data='.join(ARCHIVES)}, not to "
                f"data={data.name}: leave it out"
            )
    if data.name == "digits" and data.root is not None:
        raise InputError(
            f"data.root={data.root}: data=digits come with scikit-learn, no folder is read: leave it out, or name the "
            "data set that lies there, as data=folder"
        )
    if data.download and data.name in ARCHIVES:
        raise InputError(f"data.download=true works for cifar10 and cifar100, not for {data.name}: unset it")
    if data.download and data.name in ("imagenet", "folder"):
        raise InputError(
            f"data.download=true works for cifar10 and cifar100, not for {data.name}: "
            "unset it, and put the images under data.root/train/CLASS and data.root/val/CLASS"
        )
    for key, values in (("mean", data.mean), ("std", data.std)):
        if values is not None and not all(0 <= value <= 1 for value in values):
            scaled = ",".join(f"{value / 255:.3g}" for value in values)
            raise InputError(
                f"data.{key}={list(values)} must lie in [0, 1], as pixels do here: if meant for pixels in 0..255, "
                f"divide it by 255: data.{key}=[{scaled}]"
            )


def check_augment(augment: AugmentConfig, *, in_memory: bool) -> None:
    """Raise InputError for impossible values, and for settings of the path that the data do not take."""
    check_limits(augment, "augment.")
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

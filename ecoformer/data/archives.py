"""WebDataset shards and Hugging Face datasets as splits: their class names, and labels that fit them."""

from pathlib import Path
from typing import Any

import numpy as np
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from ecoformer.config.schema import ARCHIVES, DataConfig
from ecoformer.data.folders import shorten
from ecoformer.data.hf_disk import read_split
from ecoformer.data.shards import TRAIN_NAMES, VAL_NAMES, find_shards, shard_source
from ecoformer.data.sources import data_source
from ecoformer.data.splits import LabelledSource, Splits
from ecoformer.errors import InputError
from ecoformer.files import user_path

CLASSES_FILE = "classes.txt"


@data_source(*ARCHIVES)
def load_archives(data: DataConfig, *, with_train: bool, num_classes: int | None = None, **_: Any) -> Splits:
    """`data.name` webdataset or hfds. Raises InputError for whatever is wrong with root, splits or labels.

    `num_classes`: of the weights that the data are for, where neither the data nor `data.num_classes` say it.
    """
    if data.root is None:
        holds = "the shards" if data.name == "webdataset" else "the dataset"
        raise InputError(f"data={data.name} needs data.root: set it to the folder that holds {holds}")
    root = user_path(data.root)
    read = _read_shards if data.name == "webdataset" else read_split
    val, known = read(data, root, training=False)
    train, train_known = read(data, root, training=True) if with_train else (None, known)
    if train_known != known:
        raise InputError(f"data.root={root}: the training and validation splits name different classes")
    names = class_names(data, root, known, num_classes)
    for source, split in ((train, "training"), (val, "validation")):
        if source is not None and (faults := label_faults(source.targets, names)):
            raise InputError(f"data.root={root}: the {split} split {faults[0]}")
    notes = []
    if with_train and data.train_split is not None and data.train_split == data.val_split and not data.dev_samples:
        both = f"data.train_split and data.val_split are both {data.val_split}"
        notes.append(f"{both}: what is trained on is evaluated on")
    return Splits(names, train, val, IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, crop_pct=0.875, notes=notes)


def _read_shards(data: DataConfig, root: Path, *, training: bool) -> tuple[LabelledSource, list[str] | None]:
    key, names = ("data.train_split", TRAIN_NAMES) if training else ("data.val_split", VAL_NAMES)
    split = data.train_split if training else data.val_split
    paths = find_shards(root, split, names, key)
    return shard_source(paths, data.image_key, data.label_key, f"{key}={split or paths[0].name} in {root}"), None


def read_names(path: Path, where: str) -> list[str]:
    """Class names, one a line. Raises InputError, which calls the file `where`, if it is no text."""
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{where} cannot be read: give a text file, one class name a line") from error


def class_names(data: DataConfig, root: Path, known: list[str] | None, num_classes: int | None = None) -> list[str]:
    """The classes in the order of their numbers: those of the data set, else of a file of names, else the numbers.

    Raises InputError if nothing says how many classes there are, or two sources disagree.
    """
    path = root / user_path(data.class_names or CLASSES_FILE)
    if known is not None and data.class_names is None:
        names = known
    elif data.class_names is not None or path.is_file():
        names = read_names(path, str(path))
        if len(set(names)) != len(names):
            raise InputError(f"{path} names a class twice: correct it")
    elif (number_of_them := data.num_classes or num_classes) is not None:
        return [str(number) for number in range(number_of_them)]
    else:
        raise InputError(
            f"data={data.name} does not say how many classes there are: set data.num_classes, or list their names in "
            f"{root / CLASSES_FILE}, one a line"
        )
    if data.num_classes is not None and data.num_classes != len(names):
        raise InputError(f"data.num_classes={data.num_classes}, but {len(names)} classes are named: make them the same")
    return names


def label_faults(targets: np.ndarray, names: list[str]) -> list[str]:
    """Labels outside the classes, and classes without images, in words that go on from the name of the split."""
    faults = []
    if len(targets) and not (targets.min() >= 0 and targets.max() < len(names)):
        wrong = int(targets.max() if targets.max() >= len(names) else targets.min())
        if wrong < 0:
            unlabelled = int((targets < 0).sum())
            faults.append(f"has {unlabelled} of {len(targets)} images without a label ({wrong}): label or remove them")
        else:
            faults.append(f"has a label {wrong}, the classes are 0 to {len(names) - 1}: correct data.num_classes")
    counts = np.bincount(targets[(targets >= 0) & (targets < len(names))], minlength=len(names))
    empty = [names[index] for index in np.flatnonzero(counts == 0)]
    if empty:
        faults.append(f"has classes without images ({shorten(empty)}): add images, or remove the class")
    return faults

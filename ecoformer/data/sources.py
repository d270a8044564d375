"""Where samples come from: scikit-learn's digits, CIFAR in either layout, and image folders."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from ecoformer.config.schema import DATA_NAMES, DataConfig
from ecoformer.data.folders import VAL_NAMES, read_folders
from ecoformer.data.splits import LabelledSource as LabelledSource  # plugins import both from here
from ecoformer.data.splits import Splits as Splits
from ecoformer.errors import InputError, one_line
from ecoformer.files import user_path

log = logging.getLogger(__name__)
IMAGENET_CLASSES = 1000
DIGITS_SPLIT_SEED = 0  # constants, so that every run of every seed has the same validation images
DIGITS_VAL_SHARE = 0.2

Opener = Callable[..., Splits]
SOURCES: dict[str, Opener] = {}


def data_source(*names: str) -> Callable[[Opener], Opener]:
    """Register what opens `data.name`: a function (data, *, with_train, num_classes, world_size) -> Splits.

    `data` is the DataConfig; `train` of the result may be None without `with_train`; `num_classes` is that of weights
    that the data are for, or None. It raises InputError for what the user can mend. A plugin adds its own.
    """

    def register(opener: Opener) -> Opener:
        for name in names:
            if name in SOURCES and SOURCES[name].__module__ != opener.__module__:
                raise InputError(f"data.name={name} exists already: choose another name for it")
            SOURCES[name] = opener
            if name not in DATA_NAMES:
                DATA_NAMES.append(name)
        return opener

    return register


class ArraySource:
    """Images that are in memory anyway: uint8 (N, H, W) grey or (N, H, W, 3)."""

    def __init__(self, label: str, images: np.ndarray, targets: Sequence[int] | np.ndarray) -> None:
        self.label = label
        self.images = images
        self.targets = np.asarray(targets, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.targets)

    def open(self, index: int) -> Image.Image:
        return Image.fromarray(self.images[index])

    def name(self, index: int) -> str:
        return f"{self.label} image {index}"


@data_source("digits")
def load_digits(data: DataConfig | None = None, **_: Any) -> Splits:
    """scikit-learn's 1,797 bundled scans of handwritten digits, 8 x 8 pixels in 17 grey levels; no download.

    A fifth, drawn per class with a constant seed, is the validation split. The grey values are repeated
    over three channels, so that stock timm models and their pretrained weights take them as they are.
    """
    from sklearn.datasets import load_digits as read_digits
    from sklearn.model_selection import train_test_split

    bunch = read_digits()
    images = np.rint(bunch.images * (255 / 16)).astype(np.uint8)
    train, val = train_test_split(
        np.arange(len(images)), test_size=DIGITS_VAL_SHARE, random_state=DIGITS_SPLIT_SEED, stratify=bunch.target
    )
    pixels = images[train] / 255.0
    mean, std = float(pixels.mean()), float(pixels.std())
    return Splits(
        class_names=[str(digit) for digit in bunch.target_names],
        train=ArraySource("digits train", images[train], bunch.target[train]),
        val=ArraySource("digits val", images[val], bunch.target[val]),
        mean=(mean, mean, mean),
        std=(std, std, std),
    )


@dataclass(frozen=True)
class CifarFacts:
    """Fixed properties of a CIFAR data set; mean and std are per channel over the 50,000 training images."""

    name: str
    archive: str  # the folder that torchvision unpacks to
    num_classes: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


CIFAR = {
    "cifar10": CifarFacts("cifar10", "cifar-10-batches-py", 10, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": CifarFacts("cifar100", "cifar-100-python", 100, (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
}


@data_source("cifar10", "cifar100")
def load_cifar(data: DataConfig, *, world_size: int, with_train: bool, **_: Any) -> Splits:
    """CIFAR from torchvision's unpacked archive or from folders ROOT/train/CLASS and ROOT/val (or test)/CLASS."""
    name, root, download = data.name, data.root, data.download
    facts = CIFAR[name]
    if root is None:
        raise InputError(
            f"data={name} needs data.root: set it to a folder with {facts.archive}/ or train/CLASS and test/CLASS, "
            "or to an empty folder with data.download=true"
        )
    path = user_path(root)
    unpacked = (path / facts.archive).is_dir()
    if not unpacked and any((path / split).is_dir() for split in ("train", *VAL_NAMES)):
        found = read_folders(path, with_train=with_train)
        if len(found.class_names) != facts.num_classes:
            raise InputError(
                f"data.root={root} has {len(found.class_names)} classes, {name} has {facts.num_classes}: "
                "check data.root, or use data=folder"
            )
        return replace(found, mean=facts.mean, std=facts.std)
    if not unpacked and not download:
        state = "does not exist" if not path.exists() else f"holds neither {facts.archive}/ nor train/ and test/"
        raise InputError(f"data.root={root} {state}: correct data.root, or set data.download=true")
    if not unpacked and world_size > 1:
        raise InputError(
            f"data.download=true would have {world_size} processes write {root} at once: "
            "download with a single process first"
        )
    train, val, class_names = _read_torchvision(facts, path, download=not unpacked, with_train=with_train)
    return Splits(class_names, train, val, facts.mean, facts.std)


def _read_torchvision(
    facts: CifarFacts, path: Path, *, download: bool, with_train: bool
) -> tuple[ArraySource | None, ArraySource, list[str]]:
    # The archive holds pickles. torchvision reads one only after its MD5 sum matched the published file's.
    from torchvision.datasets import CIFAR10, CIFAR100

    dataset = {"cifar10": CIFAR10, "cifar100": CIFAR100}[facts.name]
    try:
        val = dataset(str(path), train=False, download=download)
        train = dataset(str(path), train=True) if with_train else None
    except (OSError, RuntimeError) as fault:  # URLError is an OSError; RuntimeError: MD5 sums differ
        reason = one_line(fault)
        if download:
            raise InputError(
                f"{facts.name} could not be downloaded to {path} ({reason}): check the connection, or unpack "
                f"{facts.archive}/ there yourself"
            ) from fault
        raise InputError(
            f"{path / facts.archive} is damaged ({reason}): remove it and set data.download=true"
        ) from fault
    train_source = None if train is None else ArraySource(f"{facts.name} train", train.data, train.targets)
    return train_source, ArraySource(f"{facts.name} test", val.data, val.targets), list(val.classes)


@data_source("folder", "imagenet")
def load_folder(data: DataConfig, *, with_train: bool, **_: Any) -> Splits:
    """Any image folder, ImageNet among them: ROOT/train/CLASS and ROOT/val/CLASS (or ROOT/test/CLASS)."""
    if data.root is None:
        raise InputError(f"data={data.name} needs data.root: set it to the folder that holds train/ and val/")
    found = read_folders(user_path(data.root), with_train=with_train)
    number = len(found.class_names)
    if data.name == "imagenet" and number != IMAGENET_CLASSES:
        held = f"{number} of ImageNet's {IMAGENET_CLASSES} classes"
        log.warning("data.root=%s holds %s: the model gets %d outputs", data.root, held, number)
    return replace(found, mean=IMAGENET_DEFAULT_MEAN, std=IMAGENET_DEFAULT_STD, crop_pct=0.875)

"""ImageNet's other test sets, for models of its 1000 classes: V2, A and R, and ReaL's labels of its validation set.

Classes and labels are those that timm has, in the order of the 1000 outputs.
"""

import functools
import importlib.resources
import json
import re
from typing import Any

from timm.data import ImageNetInfo
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from ecoformer.config.schema import IMAGENET_TESTS, DataConfig
from ecoformer.data.folders import VAL_NAMES, FolderSource, checked_scan, class_folders, scan_folder
from ecoformer.data.identity import KnownClasses
from ecoformer.data.sources import data_source
from ecoformer.data.splits import Source, Splits
from ecoformer.errors import InputError
from ecoformer.files import user_path

PART = {"imagenet_a": "imagenet_a_synsets.txt", "imagenet_r": "imagenet_r_synsets.txt"}  # which have 200 of the classes
REAL = "imagenet_real"


@data_source(*IMAGENET_TESTS)
def load_imagenet_test(data: DataConfig, *, with_train: bool, **_: Any) -> Splits:
    """Class folders in data.root itself, or in its val/: named by synset, V2's by the number of the class.

    All classes of the test set are classes of the data, whether or not there are images of them.
    """
    if with_train:
        raise InputError(f"data.name={data.name} is a test set: train on data=imagenet, evaluate on this one")
    root = user_path(data.root) if data.root is not None else None
    if root is None or not root.is_dir():
        raise InputError(f"data.name={data.name} needs data.root: set it to the folder that holds its class folders")
    split = next((root / name for name in VAL_NAMES if (root / name).is_dir()), root)
    names = _timms(PART[data.name]).splitlines() if data.name in PART else synsets()
    present = list(class_folders(split))
    classes = [names.index(name) for name in (_synset(folder) for folder in present) if name in names]
    if len(classes) < len(present) or not present:
        odd = next((split / folder for folder in present if _synset(folder) not in names), split)
        raise InputError(
            f"{odd} is no class of {data.name}, which has {len(names)}: its folders are named by synset, as "
            f"{names[0]}, or by ImageNet's number; set data.root to the folder that holds them"
        )
    scan = checked_scan(scan_folder(split, present))
    source = FolderSource(split, scan.paths, [classes[target] for target in scan.targets])
    notes = scan.notes()
    if len(present) < len(names):
        notes.append(f"{split} has images of {len(present)} of the {len(names)} classes of {data.name}")
    return Splits(names, None, source, IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, crop_pct=0.875, notes=notes)


@functools.cache
def synsets() -> list[str]:
    """ImageNet's 1000 classes, in the order of their numbers."""
    return ImageNetInfo().label_names()


def as_synsets(known: KnownClasses) -> KnownClasses:
    """Weights that know ImageNet's 1000 classes by number alone, as shards have them, know their synsets."""
    if sorted(known.names) != sorted(map(str, range(len(synsets())))):
        return known
    return KnownClasses([_synset(name) for name in known.names], known.weights)


def real_labels(source: Source) -> list[list[int]]:
    """ReaL's labels (Beyer et al., 2020) of every image, by its file name: the right classes, of some images none.

    Raises:
        InputError: an image that is not called as in ImageNet's validation set.
    """
    labels = json.loads(_timms("imagenet_real_labels.json"))
    found = []
    for index in range(len(source)):
        number = re.search(r"ILSVRC2012_val_(\d{8})\.\w+$", source.name(index))
        if number is None or not 1 <= int(number[1]) <= len(labels):
            raise InputError(
                f"{source.name(index)}: {REAL} has labels of ImageNet's validation images, by their names "
                "(ILSVRC2012_val_00000001.JPEG): set data.root to them, or use data.name=imagenet"
            )
        found.append(labels[int(number[1]) - 1])
    return found


def _synset(folder: str) -> str:
    """The class that a folder stands for, by its name or its number."""
    return synsets()[int(folder)] if folder.isdecimal() and int(folder) < len(synsets()) else folder


def _timms(name: str) -> str:
    return importlib.resources.files("timm.data").joinpath("_info", name).read_text(encoding="utf-8")

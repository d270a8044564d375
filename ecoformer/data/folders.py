"""Image folders: one folder per split, one folder per class, checked before anything is trained on them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ecoformer.errors import InputError

IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
VAL_NAMES = ("val", "test")  # in this order of preference


class FolderSource:
    """Image files with class indices. Paths are kept as one byte array, which worker processes share unchanged."""

    def __init__(self, root: Path, paths: list[str], targets: list[int]) -> None:
        self.root = os.fspath(root)
        self._paths = np.array([os.fsencode(path) for path in paths])
        self.targets = np.asarray(targets, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.targets)

    def name(self, index: int) -> str:
        return os.path.join(self.root, os.fsdecode(self._paths[index]))

    def open(self, index: int) -> Image.Image:
        return Image.open(self.name(index))


@dataclass(frozen=True)
class FoundFolders:
    class_names: list[str]
    train: FolderSource | None
    val: FolderSource


def read_folders(root: Path, *, with_train: bool) -> FoundFolders:
    """Find ROOT/train and ROOT/val (else ROOT/test); class indices follow the sorted class names.

    Class lists are compared whenever both splits are there; files are listed only for the splits asked for.
    Raises InputError for a missing root or split, an empty class folder, no images, and differing class lists.
    """
    if not root.is_dir():
        raise InputError(f"data.root={root} is not a folder: set data.root to the folder that holds train/ and val/")
    train_dir = root / "train"
    val_dir = next((root / name for name in VAL_NAMES if (root / name).is_dir()), None)
    if val_dir is None:
        raise InputError(f"data.root={root} has no val or test folder: put validation images under {root}/val/CLASS")
    if with_train and not train_dir.is_dir():
        raise InputError(f"data.root={root} has no train folder: put training images under {train_dir}/CLASS")
    class_names = _class_names(val_dir)
    if train_dir.is_dir():
        _compare(_class_names(train_dir), class_names, train_dir, val_dir)
    return FoundFolders(
        class_names=class_names,
        train=_scan(train_dir, class_names) if with_train else None,
        val=_scan(val_dir, class_names),
    )


def _class_names(split: Path) -> list[str]:
    with os.scandir(split) as entries:
        names = sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    if not names:
        raise InputError(f"{split} holds no class folders: put the images under {split}/CLASS")
    return names


def _compare(train: list[str], val: list[str], train_dir: Path, val_dir: Path) -> None:
    if train == val:
        return
    only = [
        f"only in {split.name}: {shorten(sorted(names))}"
        for split, names in ((train_dir, set(train) - set(val)), (val_dir, set(val) - set(train)))
        if names
    ]
    raise InputError(
        f"{train_dir} and {val_dir} hold different classes ({'; '.join(only)}): both need the same class folders"
    )


def _scan(split: Path, class_names: list[str]) -> FolderSource:
    paths: list[str] = []
    targets: list[int] = []
    empty = []
    prefix = os.path.join(split, "")
    for target, name in enumerate(class_names):
        found = sorted(_files(split / name))
        if not found:
            empty.append(name)
        paths += [path.removeprefix(prefix) for path in found]
        targets += [target] * len(found)
    if not paths:
        raise InputError(f"{split} holds no images ({' '.join(IMAGE_SUFFIXES)}) in {len(class_names)} class folders")
    if empty:
        raise InputError(
            f"{split} has class folders without images ({shorten(empty)}): "
            "add images, or remove the class from every split"
        )
    return FolderSource(split, paths, targets)


def _files(folder: Path | str) -> Iterator[str]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                yield from _files(entry.path)
            elif entry.name.lower().endswith(IMAGE_SUFFIXES):
                yield entry.path


def shorten(names: list[str], limit: int = 3) -> str:
    """The first few names, and how many more there are."""
    shown = ", ".join(names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"

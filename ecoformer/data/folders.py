"""Image folders: one folder per split, one folder per class. One scanner, for training, evaluation and `check-data`."""

import os
import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from ecoformer.data.splits import Splits
from ecoformer.errors import InputError

IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp", ".gif", ".jfif")
VAL_NAMES = ("val", "test")  # in this order of preference
SYSTEM_NAMES = {  # in lower case; hidden ones go without saying
    *("@eadir", "#recycle", "#snapshot", "__macosx", "$recycle.bin", "system volume information", "lost+found"),
    *("thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"),
}


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


@dataclass
class FolderScan:
    """What lies under ROOT/SPLIT; paths are relative to it."""

    split: Path
    class_names: list[str]
    paths: list[str] = field(default_factory=list)
    targets: list[int] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)  # files of other endings
    twins: list[tuple[str, str]] = field(default_factory=list)  # a path, and the name beside it but for the case
    empty: list[str] = field(default_factory=list)  # classes
    skipped: int = 0  # hidden files and folders, and those that systems put there

    def source(self) -> FolderSource:
        return FolderSource(self.split, self.paths, self.targets)

    def notes(self, unread: bool = True) -> list[str]:
        """What was passed over; `unread`: files of other endings too."""
        notes = [f"{self.split}: {self.skipped} hidden or system files and folders skipped"] if self.skipped else []
        if unread and self.unread:
            endings = Counter(os.path.splitext(path)[1].lower() or "none" for path in self.unread)
            listed = shorten([f"{ending} {count}" for ending, count in endings.most_common()])
            notes.append(f"{self.split}: {len(self.unread)} files of other endings are not read as images ({listed})")
        return notes


def scan_folder(split: Path, class_names: list[str] | None = None) -> FolderScan:
    """All files of a split, in the order of classes and paths. Links are followed, each folder once a class.

    Args:
        class_names: in the order of their numbers; None: the folders that are there, sorted.
    Raises:
        InputError: a folder cannot be read.
    """
    there, skipped = _class_folders(split)
    scan = FolderScan(split, list(there) if class_names is None else class_names, skipped=skipped)
    above = {_identity(folder) for folder in (split.resolve(), *split.resolve().parents)}
    prefix = os.path.join(split, "")
    for target, name in enumerate(scan.class_names):
        folder = os.path.join(split, there.get(name, name))
        found = sorted(path.removeprefix(prefix) for path in _files(folder, scan, above | {_identity(folder)}))
        images = [path for path in found if path.lower().endswith(IMAGE_SUFFIXES)]
        scan.unread += [path for path in found if not path.lower().endswith(IMAGE_SUFFIXES)]
        scan.twins += twins(found)
        scan.paths += images
        scan.targets += [target] * len(images)
        if not images:
            scan.empty.append(name)
    return scan


def class_folders(split: Path) -> dict[str, str]:
    """Class -> its folder, sorted: the same letters as its system spells them. Raises InputError for two of a class."""
    return _class_folders(split)[0]


def read_folders(root: Path, *, with_train: bool) -> Splits:
    """Find ROOT/train and ROOT/val (else ROOT/test); class indices follow the sorted class names.

    Where only validation is asked for, ROOT may be a test set on its own, with the class folders in it. Class
    lists are compared whenever both splits are there; files are listed only for the splits asked for. Raises InputError
    for a missing root or split, fewer than two classes, an empty class folder, no images, and differing class lists.
    """
    if not root.is_dir():
        raise InputError(f"data.root={root} is not a folder: set data.root to the folder that holds train/ and val/")
    train_dir = root / "train"
    val_dir = next((root / name for name in VAL_NAMES if (root / name).is_dir()), None)
    where = None if val_dir is not None else _where_splits_are(root)
    alone = val_dir is None and where is None and not train_dir.is_dir()
    if alone and not with_train and len(class_folders(root)) > 1:
        val_dir = root
    if val_dir is None:
        raise InputError(
            f"data.root={root} has no val or test folder: {where or f'put validation images under {root}/val/CLASS'}"
        )
    if with_train and not train_dir.is_dir():
        raise InputError(f"data.root={root} has no train folder: put training images under {train_dir}/CLASS")
    class_names = _checked_names(val_dir)
    if train_dir.is_dir():
        _compare(_checked_names(train_dir), class_names, train_dir, val_dir)
    train = checked_scan(scan_folder(train_dir, class_names)) if with_train else None
    val = checked_scan(scan_folder(val_dir, class_names))
    scans = [scan for scan in (train, val) if scan is not None]
    notes = [note for scan in scans for note in scan.notes()]
    return Splits(class_names, None if train is None else train.source(), val.source(), notes=notes)


def too_few_classes(split: Path, class_names: list[str]) -> str | None:
    """Why the folders of a split are no classes to tell apart, in words that go on from its name; None: they are."""
    if not class_names:
        return f"holds no class folders: put the images under {split}/CLASS"
    if len(class_names) > 1:
        return None
    only = split / class_names[0]
    inner = list(class_folders(only))
    if len(inner) > 1:
        return (
            f"holds the folder {only.name} alone, and in it {shorten(inner)}: the classes lie one level too deep, "
            f"move their folders to {split}/CLASS"
        )
    return f"holds one class ({only.name}): a classifier needs at least two, one folder each under {split}"


def _checked_names(split: Path) -> list[str]:
    names = list(class_folders(split))
    if (fault := too_few_classes(split, names)) is not None:
        raise InputError(f"{split} {fault}")
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


def checked_scan(scan: FolderScan) -> FolderScan:
    """The scan. Raises InputError if it found no image, or none of a class."""
    if not scan.paths:
        raise InputError(
            f"{scan.split} holds no images ({' '.join(IMAGE_SUFFIXES)}) in {len(scan.class_names)} class folders"
        )
    if scan.empty:
        raise InputError(
            f"{scan.split} has class folders without images ({shorten(scan.empty)}): "
            "add images, or remove the class from every split"
        )
    return scan


def _where_splits_are(root: Path) -> str | None:
    """The remedy where a root is one level too high or too low."""
    if root.name in ("train", *VAL_NAMES) and any((root.parent / name).is_dir() for name in VAL_NAMES):
        return f"set data.root={root.parent}, which does"
    found = (root / name for name in class_folders(root) if any((root / name / split).is_dir() for split in VAL_NAMES))
    return next((f"set data.root={folder}, which does" for folder in found), None)


def _class_folders(split: Path) -> tuple[dict[str, str], int]:
    """`class_folders`, and how many hidden or system entries lie beside them."""
    entries = _entries(split)
    kept = [entry for entry in entries if not of_system(entry.name)]
    names = [(unicodedata.normalize("NFC", entry.name), entry.name) for entry in kept if _is_folder(entry)]
    found = dict(sorted(names))
    if len(found) < len(names):
        twice = next(name for name, count in Counter(name for name, _ in names).items() if count > 1)
        raise InputError(f"{split} holds {twice} twice, in two Unicode forms (NFC, NFD): move the images into one")
    return found, len(entries) - len(kept)


def _files(folder: str, scan: FolderScan, seen: set[tuple[int, int]]) -> Iterator[str]:
    for entry in sorted(_entries(folder), key=lambda entry: (entry.is_symlink(), entry.name)):
        if of_system(entry.name) or not (entry.is_dir() or entry.is_file() or entry.is_symlink()):  # or a pipe
            scan.skipped += 1
        elif not _is_folder(entry):
            yield entry.path
        elif (identity := _identity(entry.path)) not in seen:  # else reached by another link, or a cycle
            seen.add(identity)
            yield from _files(entry.path, scan, seen)


def of_system(name: str) -> bool:
    """Whether a file or folder is hidden, or one that a system leaves where people keep images."""
    return name.startswith(".") or name.lower() in SYSTEM_NAMES


def twins(paths: list[str]) -> Iterator[tuple[str, str]]:
    """Each path whose name differs from an earlier one of its folder in the case alone, and that name."""
    seen: dict[str, str] = {}
    for path in paths:
        folder, name = os.path.split(path)
        twin = seen.setdefault(os.path.join(folder, name.lower()), name)
        if twin != name:
            yield path, twin


def _entries(folder: Path | str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        raise InputError(f"{folder} cannot be read ({error.strerror}): correct its permissions") from error


def _is_folder(entry: os.DirEntry[str]) -> bool:
    return os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()


def _identity(folder: Path | str) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def shorten(names: list[str], limit: int = 3) -> str:
    """The first few names, and how many more there are."""
    shown = ", ".join(names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"

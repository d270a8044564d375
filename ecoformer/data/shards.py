"""WebDataset shards on local disk as a list of images that can be read in any order.

timm's reader finds a split's shards; the samples are then read by position, not streamed. So order and augmentation
depend on seed and epoch alone, processes and workers share an epoch without duplicates or omissions, a run goes on in
the middle of an epoch, and repeated augmentation works, as for image files. (timm's own stream repeats or leaves out
validation samples on several processes, and goes on over every error.)
"""

import io
import json
import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from glob import glob
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ecoformer.data.tar_index import DamagedTar, tar_files
from ecoformer.errors import InputError, one_line

INFO = "_info.json"
IMAGE_KEYS = ("jpg", "jpeg", "png", "webp")
LABEL_KEY = "cls"
TRAIN_NAMES, VAL_NAMES = ("train",), ("validation", "val", "test")
LARGEST_CLASS = 2**31 - 1
INDEX_THREADS = 8  # they wait for the disk, one page a header


@dataclass
class ShardIndex:
    """The samples of one shard: where each image lies, its label, and what is wrong, in words."""

    path: Path
    keys: list[str] = field(default_factory=list)
    places: list[tuple[int, int]] = field(default_factory=list)  # offset and size of the image
    labels: list[int] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


class ShardSource:
    """Images of several shards, in the order of the shards and of the samples in them."""

    def __init__(self, indices: list[ShardIndex]) -> None:
        self.shards = [os.fspath(index.path) for index in indices]
        self._shard = np.repeat(np.arange(len(indices)), [len(index.keys) for index in indices])
        self._places = np.array([place for index in indices for place in index.places], np.int64).reshape(-1, 2)
        self._keys = np.array([os.fsencode(key) for index in indices for key in index.keys])
        self.targets = np.array([label for index in indices for label in index.labels], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.targets)

    def name(self, index: int) -> str:
        return f"{self.shards[self._shard[index]]}: {os.fsdecode(self._keys[index])}"

    def open(self, index: int) -> Image.Image:
        offset, size = map(int, self._places[index])
        with open(self.shards[self._shard[index]], "rb") as file:
            return Image.open(io.BytesIO(os.pread(file.fileno(), size, offset)))


def find_shards(root: Path, split: str | None, names: Sequence[str], key: str) -> list[Path]:
    """The shards of a split, which must all exist.

    Args:
        split: a file name, a brace pattern (train-{0000..0146}.tar), a glob pattern, or a split of ROOT/_info.json;
            None looks for one of `names`, in _info.json, then as NAME*.tar and NAME/*.tar.
        key: of the config, for messages.
    Raises:
        InputError: no such shards.
    """
    if not root.is_dir():
        raise InputError(f"data.root={root} is not a folder: set data.root to the folder that holds the shards")
    if split is None:
        listed = _listed_splits(root)
        split = next((name for name in names if name in listed), None)
        if split is None:
            for pattern in (pattern for name in names for pattern in (f"{name}*.tar", f"{name}/*.tar")):
                if found := _matching(root, pattern):
                    return found
            raise InputError(
                f"data.root={root} holds no shards called {' or '.join(f'{name}*.tar' for name in names)}: set {key} "
                "to a pattern of theirs, such as 'shard-{0000..0009}.tar'"
            )
    if "://" in split or split.startswith("pipe:"):
        raise InputError(f"{key}={split} is not on local disk: copy the shards there and give their pattern")
    if any(sign in split for sign in "*?[") and "{" not in split:
        if not (found := _matching(root, split)):
            raise InputError(f"{key}={split} matches no file in {root}: correct the pattern")
        return found
    paths = [root / name for name in _expanded(root, split, key)]
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise InputError(
            f"{key}={split} names {len(paths)} shards, {len(missing)} of them do not exist (first {missing[0]}): "
            "correct the pattern"
        )
    return paths


def _matching(root: Path, pattern: str) -> list[Path]:
    return [root / name for name in sorted(glob(pattern, root_dir=root))]


def _listed_splits(root: Path) -> dict[str, Any]:
    try:
        splits = json.loads((root / INFO).read_bytes()).get("splits", {})
        return dict(splits.items())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise InputError(f"{root / INFO} is no JSON object with splits: correct or remove it") from error


def _expanded(root: Path, split: str, key: str) -> list[str]:
    from timm.data.readers import create_reader, reader_wds

    if reader_wds.wds is None:
        raise InputError(
            f"{key}={split} needs the webdataset package: pip install 'ecoformer[data]', or give a glob pattern"
        )
    reader_log = logging.getLogger(reader_wds.__name__)
    level = reader_log.level
    reader_log.setLevel(logging.ERROR)  # it warns of a missing _info.json, which a pattern does not need
    try:
        reader = create_reader("wds/", root=str(root), split=split)
        return [os.fspath(name) for name in reader.split_info.filenames]
    except (RuntimeError, KeyError, TypeError, ValueError, AttributeError) as error:
        if split in (listed := _listed_splits(root)):
            raise InputError(f"{root / INFO}: {split} lacks what timm's reader takes ({one_line(error)})") from error
        raise InputError(
            f"{key}={split} is no pattern of shards (NAME.tar) and no split of {root / INFO} "
            f"(there: {', '.join(listed) or 'none'}): correct it"
        ) from error
    finally:
        reader_log.setLevel(level)


def index_shards(paths: list[Path], image_key: str | None, label_key: str | None) -> list[ShardIndex]:
    """The samples of all shards; nothing is decoded. Faults are listed, not raised."""
    images = tuple(image_key.replace(",", ";").split(";")) if image_key else IMAGE_KEYS
    with ThreadPoolExecutor(INDEX_THREADS) as pool:
        return list(pool.map(lambda path: index_shard(path, images, label_key or LABEL_KEY), paths))


def index_shard(path: Path, image_keys: tuple[str, ...], label_key: str) -> ShardIndex:
    """Group consecutive files of one name into samples, as WebDataset does, and read their labels.

    Args:
        image_keys: extensions of the image, the first one that a sample has is taken.
        label_key: extension of the file with the class number ("cls"), or "json:FIELD" for a field of the sample's
            .json file.
    """
    index = ShardIndex(path)
    extension, _, entry = label_key.partition(":")
    sample: dict[str, tuple[int, int]] = {}
    label: bytes | None = None
    current: str | None = None

    def close() -> None:
        if current is None:
            return
        image = next((key for key in image_keys if key in sample), None)
        if image is None:
            index.faults.append(f"sample {current} has no image (.{' .'.join(image_keys)})")
            return
        number = _class_number(label, entry)
        if number is None:
            what = f"no class number in .{extension}" + (f" under {entry!r}" if entry else "")
            index.faults.append(f"sample {current} has {what}")
            return
        index.keys.append(f"{current}.{image}")
        index.places.append(sample[image])
        index.labels.append(number)

    try:
        for file, content in tar_files(path):
            folder, _, base = file.name.rpartition("/")
            stem, dot, ending = base.partition(".")
            if not dot or not stem or stem.startswith("__"):
                continue
            key = f"{folder}/{stem}" if folder else stem
            if key != current:
                close()
                current, sample, label = key, {}, None
            ending = ending.lower()
            if ending in sample:
                index.faults.append(f"sample {key} has two files .{ending}: keys must differ within a shard")
            sample[ending] = (file.offset, file.size)
            if ending == extension:
                label = bytes(content)
        close()
    except DamagedTar as damage:
        index.faults.append(f"damaged shard: {damage}")
    except OSError as error:
        index.faults.append(f"cannot be read: {error.strerror or error}")
    return index


def _class_number(raw: bytes | None, entry: str) -> int | None:
    """The class number that a label file holds; None if there is none."""
    text = (raw or b"").strip()
    try:
        value: Any = int(text) if text.isdigit() and not entry else json.loads(text)  # "0002", as timm reads it
        if entry:
            value = value[entry]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= LARGEST_CLASS else None


def shard_source(paths: list[Path], image_key: str | None, label_key: str | None, where: str) -> ShardSource:
    """All samples of the shards. Raises InputError naming the first fault, or if there are no samples (`where`)."""
    indices = index_shards(paths, image_key, label_key)
    faults = [(index.path, fault) for index in indices for fault in index.faults]
    if faults:
        path, fault = faults[0]
        more = f" (and {len(faults) - 1} more faults)" if len(faults) > 1 else ""
        raise InputError(f"{path}: {fault}{more}: python scripts/check_data.py lists them all")
    source = ShardSource(indices)
    if len(source) == 0:
        raise InputError(f"{where}: {len(paths)} shards hold no samples: give shards with images and class numbers")
    return source

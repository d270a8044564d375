"""Hugging Face datasets on local disk: what save_to_disk wrote, and folders of parquet files (by timm's reader)."""

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ecoformer.config.schema import DataConfig
from ecoformer.data.shards import TRAIN_NAMES, VAL_NAMES
from ecoformer.errors import InputError, first_line

IMAGE_KEY, LABEL_KEY = "image", "label"
OF_SPLITS, OF_ROWS = "dataset_dict.json", "state.json"  # what save_to_disk leaves in a folder


def is_saved(root: Path) -> bool:
    """Whether save_to_disk wrote a folder: splits of a dataset, or the rows of one."""
    return (root / OF_SPLITS).is_file() or (root / OF_ROWS).is_file()


@dataclass(eq=False)
class RowSource:
    """Rows of a dataset with an image column (undecoded) and whole-number labels."""

    dataset: Any
    image_key: str
    targets: np.ndarray
    where: str

    def __len__(self) -> int:
        return len(self.targets)

    def name(self, index: int) -> str:
        cell = self.dataset[index][self.image_key] or {}
        return f"{self.where}: row {index}" + (f" ({cell['path']})" if cell.get("path") else "")

    def open(self, index: int) -> Image.Image:
        cell = self.dataset[index][self.image_key]
        if cell is None:
            raise ValueError("the row has no image")
        return Image.open(io.BytesIO(cell["bytes"]) if cell["bytes"] is not None else cell["path"])


def read_split(
    data: DataConfig, root: Path, *, training: bool, split: str | None = None
) -> tuple[RowSource, list[str] | None]:
    """One split, of the config's name unless another is given, and the class names where the label column knows them.

    Raises InputError: no such folder, split or column, labels that are no class numbers.
    """
    if not root.is_dir():
        raise InputError(f"data.root={root} is not a folder: set data.root to the folder of the dataset")
    key = "data.train_split" if training else "data.val_split"
    wanted = TRAIN_NAMES if training else VAL_NAMES
    split = split or (data.train_split if training else data.val_split)
    image_key, label_key = data.image_key or IMAGE_KEY, data.label_key or LABEL_KEY
    dataset, chosen = _open(root, split, wanted, key, image_key)
    targets, names = _labels(root, dataset, (image_key, "image_key"), label_key)
    if len(targets) == 0:
        raise InputError(f"data.root={root}: split {chosen} has no rows: set {key} to another one")
    if (targets < 0).all():
        raise InputError(
            f"data.root={root}: split {chosen} has no labels ({label_key} is {targets[0]} in every row): set {key} to "
            "a split that has"
        )
    return RowSource(dataset, image_key, targets, f"{root} [{chosen}]"), names


def read_texts(root: Path, split: str, text_key: str, label_key: str) -> Iterator[tuple[str, str]]:
    """(text, class) of every row of a split that save_to_disk wrote. Raises InputError for a column that is no text."""
    dataset, _ = _open(root, split, (), "data.val_split", None)
    targets, names = _labels(root, dataset, (text_key, "text_key"), label_key)
    if len(targets) == 0:
        raise InputError(f"data.root={root}: split {split} has no rows: give it some, or remove it")
    if getattr(dataset.features[text_key], "dtype", None) not in ("string", "large_string"):
        raise InputError(f"data.root={root}: column {text_key!r} holds no text: set data.text_key")
    for text, target in zip(dataset[text_key], targets.tolist(), strict=True):
        if target < 0 or (names is not None and target >= len(names)):
            raise InputError(f"data.root={root}: split {split} has rows without a label ({target}): remove them")
        yield text or "", str(target) if names is None else names[target]


def _labels(root: Path, dataset: Any, sample: tuple[str, str], label_key: str) -> tuple[np.ndarray, list[str] | None]:
    """Class numbers int64, and their names where the column knows them; `sample`: the other column and its setting."""
    for column, setting in (sample, (label_key, "label_key")):
        if column not in dataset.column_names:
            raise InputError(
                f"data.root={root} has no column {column!r} (there: {', '.join(dataset.column_names)}): "
                f"set data.{setting}"
            )
    feature = dataset.features[label_key]
    targets = np.asarray(dataset.select_columns([label_key]).with_format("numpy")[:][label_key])
    if targets.dtype.kind in "fO" and str(getattr(feature, "dtype", "")).startswith(("int", "uint")):  # some are None
        targets = np.array([-1 if value is None or value != value else int(value) for value in targets.tolist()])
    if targets.dtype.kind not in "iu" or targets.ndim != 1:
        raise InputError(
            f"data.root={root}: column {label_key!r} holds {feature}, not class numbers: set data.label_key, or "
            "encode the column as ClassLabel"
        )
    return targets.astype(np.int64), getattr(feature, "names", None)


def split_names(root: Path) -> list[str]:
    """The splits that a folder holds; a dataset without splits has one called "all".

    Raises InputError if it is no dataset, or the datasets package is missing.
    """
    if (root / OF_SPLITS).is_file():
        return sorted(name for name in os.listdir(root) if (root / name / OF_ROWS).is_file())
    if is_saved(root):
        return ["all"]
    with _reading(root) as datasets:
        return list(datasets.get_dataset_split_names(str(root)))


def _open(root: Path, split: str | None, wanted: tuple[str, ...], key: str, image_key: str | None) -> tuple[Any, str]:
    names = split_names(root)
    chosen = split or next((name for name in wanted if name in names), None)
    if chosen is None or chosen not in names:
        asked = f"{key}={split} is" if split else f"{' or '.join(wanted)} is"
        raise InputError(f"{asked} no split of data.root={root} (there: {', '.join(names)}): set {key}")
    with _reading(root) as datasets:
        if (root / OF_SPLITS).is_file() or chosen == "all":
            dataset = datasets.load_from_disk(str(root / chosen if (root / OF_SPLITS).is_file() else root))
            if image_key in dataset.column_names:
                dataset = dataset.cast_column(image_key, datasets.Image(decode=False))
            return dataset, chosen
        from timm.data.readers import create_reader

        return create_reader(f"hfds/{root}", split=chosen, input_key=image_key).dataset, chosen


@contextmanager
def _reading(root: Path) -> Iterator[Any]:
    """The library, without its progress bars while a run starts, and with one line for whatever it raises."""
    try:
        import datasets
    except ImportError as error:
        raise InputError("data=hfds needs the datasets package: pip install 'ecoformer[data]'") from error
    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield datasets
    except Exception as error:  # the library raises many kinds of its own and of pyarrow's
        remedy = "give what save_to_disk wrote, or a folder of parquet files"
        if "[" in str(root):
            remedy = "the datasets package takes [ for a pattern: rename the folder, or give a link to it"
        raise InputError(f"data.root={root} is no dataset that can be read ({first_line(error)}): {remedy}") from error
    finally:
        if shown:
            datasets.enable_progress_bars()

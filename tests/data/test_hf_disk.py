"""Hugging Face datasets on local disk, in both forms."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from ecoformer.errors import InputError

datasets = pytest.importorskip("datasets")


def table(split: Path, *, image: str = "image", label: Any = None, skip: int = 0) -> Any:
    """The images of split/CLASS/* as a dataset."""
    classes = sorted(path.name for path in split.iterdir())
    samples = [(path, index) for index, name in enumerate(classes) for path in sorted((split / name).iterdir())][skip:]
    features = datasets.Features({image: datasets.Image(), "label": label or datasets.ClassLabel(names=classes)})
    rows = {image: [Image.open(path) for path, _ in samples], "label": [index for _, index in samples]}
    return datasets.Dataset.from_dict(rows, features=features)


def saved(root: Path, splits: dict[str, Any], form: str) -> Path:
    datasets.disable_progress_bars()
    root.mkdir()
    if form == "disk":
        datasets.DatasetDict(splits).save_to_disk(str(root))
    for name, split in splits.items() if form == "parquet" else ():
        split.to_parquet(str(root / f"{name}-00000-of-00001.parquet"))
    return root


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parquet files are turned into Arrow files in a cache: not the user's."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.mark.parametrize("form", ["disk", "parquet"])
@pytest.mark.usefixtures("cached")
def test_rows_hold_the_images_of_the_folder(open_data: Callable, image_folder: Path, tmp_path: Path, form: str):
    root = saved(
        tmp_path / "hf", {"train": table(image_folder / "train"), "validation": table(image_folder / "val")}, form
    )
    for in_memory, workers in ((True, 0), (False, 0), (False, 2)) if form == "disk" else ((False, 0),):
        keys = {"in_memory": in_memory, "num_workers": workers, "train": {"batch_size": 5}}
        ours, theirs = open_data(name="hfds", root=root, **keys), open_data(name="folder", root=image_folder, **keys)
        assert (ours.class_names, ours.num_train, ours.num_val) == (["ant", "bee"], 12, 6)
        for loader in ("train_loader", "val_loader"):
            for mine, other in zip(getattr(ours, loader), getattr(theirs, loader), strict=True):
                assert torch.equal(mine[0], other[0]) and torch.equal(mine[1], other[1])


@pytest.mark.usefixtures("cached")
def test_one_table_other_columns_and_labels_without_names(open_data: Callable, image_folder: Path, tmp_path: Path):
    split = table(image_folder / "val", image="photo", label=datasets.Value("int64"))
    datasets.disable_progress_bars()
    split.save_to_disk(str(tmp_path / "one"))
    keys = {"root": tmp_path / "one", "image_key": "photo", "val_split": "all", "train_split": "all"}
    data = open_data(name="hfds", num_classes=2, **keys)
    assert (data.class_names, data.num_train) == (["0", "1"], 6)
    assert "data.train_split and data.val_split are both all: what is trained on is evaluated on" in data.notes
    with pytest.raises(InputError, match=r"does not say how many classes there are: set data.num_classes"):
        open_data(name="hfds", **keys)


@pytest.mark.usefixtures("cached")
def test_refusals(open_data: Callable, image_folder: Path, tmp_path: Path):
    val = table(image_folder / "val")
    root = saved(tmp_path / "hf", {"train": table(image_folder / "train", skip=6), "validation": val}, "disk")

    def refusal(**keys: Any) -> str:
        with pytest.raises(InputError) as caught:
            open_data(name="hfds", **{"root": root, **keys})
        assert "\n" not in str(caught.value)
        return str(caught.value)

    with pytest.raises(InputError, match=r"data=hfds needs data.root: set it to the folder that holds the dataset"):
        open_data(name="hfds")
    assert refusal(root=tmp_path / "no").startswith(f"data.root={tmp_path}/no is not a folder")
    assert refusal(val_split="nope") == (
        f"data.val_split=nope is no split of data.root={root} (there: train, validation): set data.val_split"
    )
    assert refusal(image_key="x") == f"data.root={root} has no column 'x' (there: image, label): set data.image_key"
    assert refusal(label_key="image").startswith(f"data.root={root}: column 'image' holds Image(")
    assert refusal() == (
        f"data.root={root}: the training split has classes without images (ant): add images, or remove the class"
    )
    assert refusal(num_classes=3, train_split="validation") == (
        "data.num_classes=3, but 2 classes are named: make them the same"
    )
    (tmp_path / "empty").mkdir()
    assert refusal(root=tmp_path / "empty").startswith(f"data.root={tmp_path}/empty is no dataset that can be read (")
    brackets = saved(tmp_path / "br[1]", {"train": table(image_folder / "train")}, "parquet")
    assert refusal(root=brackets).endswith("takes [ for a pattern: rename the folder, or give a link to it")


def test_labels_that_are_none_are_none(open_data: Callable, image_folder: Path, tmp_path: Path):
    train, val = table(image_folder / "train"), table(image_folder / "val")
    bare = val.remove_columns("label").add_column("label", [None] * len(val), feature=val.features["label"])
    root = saved(tmp_path / "hf", {"train": train, "test": bare}, "disk")
    with pytest.raises(InputError, match=r"split test has no labels \(label is -1 in every row\): set data\.val_split"):
        open_data(name="hfds", root=root)


def test_a_split_called_all(open_data: Callable, image_folder: Path, tmp_path: Path):
    root = saved(tmp_path / "hf", {"all": table(image_folder / "train"), "val": table(image_folder / "val")}, "disk")
    assert open_data(name="hfds", root=root, train_split="all").num_train == 12


def test_a_missing_package_is_named(open_data: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match=r"data=hfds needs the datasets package: pip install 'ecoformer\[data\]'"):
        open_data(name="hfds", root=tmp_path)

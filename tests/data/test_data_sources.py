"""What is found where: digits, CIFAR's two layouts, image folders, subsets."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.datasets import CIFAR10

from ecoformer.data.sources import ArraySource, data_source
from ecoformer.data.splits import take
from ecoformer.errors import InputError


def test_digits_come_without_a_download(open_data):
    data = open_data(name="digits", img_size=16)
    assert (data.name, data.num_classes, data.class_names) == ("digits", 10, [str(digit) for digit in range(10)])
    assert (data.num_train, data.num_val) == (1437, 360)
    assert data.in_memory
    images, _ = next(iter(data.val_loader))
    assert images.shape == (4, 3, 16, 16)
    assert torch.equal(images[:, 0], images[:, 1])
    assert torch.equal(images[:, 0], images[:, 2])
    counts = torch.cat([targets for _, targets in data.val_loader]).bincount()
    assert counts.min() >= 34
    assert counts.max() <= 37


def test_a_source_of_a_package_takes_no_ones_place():
    with pytest.raises(InputError, match=r"data\.name=digits exists already: choose another name for it"):
        data_source("digits")(lambda data, **options: None)


def test_digits_split_is_the_same_for_every_seed_and_shares_no_image(open_data):
    first, second = open_data(name="digits", seed=0), open_data(name="digits", seed=1, with_train=False)
    assert second.train_loader is None
    assert np.array_equal(first.val_loader.targets, second.val_loader.targets)
    assert (first.mean, first.std) == (second.mean, second.std)
    train = {image.tobytes() for image in first.train_source.images}
    assert sum(image.tobytes() in train for image in load_val_images(first)) == 0


def load_val_images(data) -> np.ndarray:
    from ecoformer.data.sources import load_digits

    source = load_digits().val
    assert isinstance(source, ArraySource)
    assert len(source) == data.num_val
    return source.images


def test_digits_statistics_normalise_the_training_split(open_data):
    data = open_data(name="digits", img_size=8, augment={"hflip": 0.0}, train={"batch_size": 1437})
    images, _ = next(iter(data.train_loader))
    assert abs(float(images.mean())) < 1e-4
    assert abs(float(images.std()) - 1) < 1e-3


@pytest.mark.parametrize("path", ["memory", "files"])
def test_folder_classes_are_sorted_and_nested_files_count(open_data, write_image, image_folder: Path, path: str):
    write_image(image_folder / "train" / "bee" / "more" / "x.JPEG", seed=1)
    write_image(image_folder / "train" / "bee" / ".hidden.png", seed=1)
    (image_folder / "train" / "bee" / "notes.txt").write_text("not an image")
    (image_folder / "train" / ".cache").mkdir()
    data = open_data(root=image_folder, in_memory=path == "memory")
    assert (data.class_names, data.num_train, data.num_val) == (["ant", "bee"], 13, 6)
    assert np.bincount(data.train_source.targets).tolist() == [6, 7]
    assert data.train_source.name(11).endswith("bee/5.png")


def test_test_folder_serves_where_val_is_missing(open_data, image_folder: Path):
    val = next(iter(open_data(root=image_folder).val_loader))[0]
    (image_folder / "val").rename(image_folder / "test")
    assert torch.equal(next(iter(open_data(root=image_folder).val_loader))[0], val)


def test_validation_alone_needs_no_train_folder(open_data, image_folder: Path):
    (image_folder / "train").rename(image_folder / "elsewhere")
    data = open_data(root=image_folder, with_train=False)
    assert (data.num_train, data.num_val, data.train_loader) == (0, 6, None)


def test_small_images_are_held_in_memory_unless_told_otherwise(open_data, image_folder: Path):
    assert open_data(root=image_folder, img_size=64).in_memory
    assert not open_data(root=image_folder, img_size=65).in_memory
    assert not open_data(root=image_folder, img_size=8, in_memory=False).in_memory
    assert open_data(root=image_folder, img_size=65, in_memory=True).in_memory


def test_a_part_of_imagenet_keeps_its_class_count_and_says_so(open_data, image_folder: Path, caplog):
    data = open_data(name="imagenet", root=image_folder)
    assert data.num_classes == 2
    assert "holds 2 of ImageNet's 1000 classes" in caplog.text


@pytest.fixture
def cifar_archive(tmp_path: Path, monkeypatch) -> Path:
    """torchvision's unpacked layout with three images per file, and MD5 sums to match."""
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()

    def write(name: str, content: dict) -> list[str]:
        (folder / name).write_bytes(pickle.dumps(content))
        return [name, hashlib.md5((folder / name).read_bytes()).hexdigest()]

    def batch(name: str, seed: int) -> list[str]:
        pixels = np.random.default_rng(seed).integers(0, 256, (3, 3072), dtype=np.uint8)
        return write(name, {"data": pixels, "labels": [0, 9, seed]})

    meta = write("batches.meta", {"label_names": [f"class{index}" for index in range(10)]})
    monkeypatch.setattr(CIFAR10, "train_list", [batch("data_batch_1", 1), batch("data_batch_2", 2)])
    monkeypatch.setattr(CIFAR10, "test_list", [batch("test_batch", 3)])
    monkeypatch.setattr(CIFAR10, "meta", {"filename": meta[0], "key": "label_names", "md5": meta[1]})
    return tmp_path


@pytest.mark.parametrize("in_memory", [True, False])
def test_cifar_is_read_from_torchvisions_layout(open_data, cifar_archive: Path, in_memory: bool):
    keys = {"root": cifar_archive, "img_size": 32, "in_memory": in_memory, "mean": [0.0] * 3, "std": [1.0] * 3}
    data = open_data(name="cifar10", **keys)
    assert (data.num_train, data.num_val, data.num_classes, data.class_names[9]) == (6, 3, 10, "class9")
    images, targets = next(iter(data.val_loader))
    pixels = np.random.default_rng(3).integers(0, 256, (3, 3072), dtype=np.uint8)
    torch.testing.assert_close(images * 255, torch.from_numpy(pixels.reshape(3, 3, 32, 32)).float(), rtol=0, atol=1e-4)
    assert targets.tolist() == [0, 9, 3]


def test_cifar_is_read_from_folders(open_data, write_image, tmp_path: Path):
    for split in ("train", "test"):
        for label in range(10):
            write_image(tmp_path / split / f"c{label}" / "0.png", seed=label, size=(32, 32))
    data = open_data(name="cifar10", root=tmp_path, img_size=32)
    assert (data.num_train, data.num_val, data.num_classes) == (10, 10, 10)
    assert data.mean == (0.4914, 0.4822, 0.4465)


@pytest.mark.parametrize("limit", [1, 5, 7, 10, 100])
def test_subsets_are_balanced_fixed_and_in_order(limit: int):
    targets = np.repeat([2, 0, 1], [5, 2, 9])
    source = ArraySource("x", np.zeros((16, 1, 1), dtype=np.uint8), targets)
    part = take(source, limit)
    counts = np.bincount(part.targets, minlength=3)
    expected = {1: [1], 5: [1, 2, 2], 7: [2, 2, 3], 10: [2, 4, 4], 100: [2, 5, 9]}[limit]
    assert sorted(count for count in counts if count) == expected
    assert np.array_equal(take(source, limit).targets, part.targets)
    if limit < 16:
        assert np.all(np.diff(part.indices) > 0)  # type: ignore[attr-defined]
        assert np.array_equal(targets[part.indices], part.targets)  # type: ignore[attr-defined]


def test_subsets_of_a_data_set(open_data):
    data = open_data(name="digits", max_train_samples=30, max_val_samples=20)
    assert (data.num_train, data.num_val) == (30, 20)
    assert np.bincount(data.train_source.targets).tolist() == [3] * 10
    assert np.bincount(data.val_loader.targets).tolist() == [2] * 10
    assert data.mean == open_data(name="digits").mean


def test_a_development_split_is_cut_off_the_training_images(open_data):
    whole, cut = open_data(name="digits"), open_data(name="digits", dev_samples=200)
    assert (cut.num_train, cut.num_val) == (whole.num_train - 200, 200)
    per_class = np.bincount(cut.val_loader.targets)
    assert per_class.max() - per_class.min() <= 1
    left, dev = cut.train_source.indices, cut.val_loader.samples
    assert len(set(left)) == cut.num_train and len(dev) == 200
    with pytest.raises(InputError, match=r"data\.dev_samples=1437 must be less than the 1437 training images"):
        open_data(name="digits", dev_samples=whole.num_train)

"""Both loaders: determinism, splits between processes, skipped batches, equal validation pixels."""

from __future__ import annotations

import gc
import multiprocessing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ecoformer.data import DataModule
from ecoformer.data.decode import read_image

Batch = tuple[torch.Tensor, torch.Tensor]
PATHS = {"memory": True, "files": False}
AUGMENT: dict[str, dict[str, Any]] = {
    "memory": {"crop_padding": 2, "random_erase": 0.5, "mixup": 0.8, "cutmix": 1.0},
    "files": {
        "scale": [0.3, 1.0],
        "auto_augment": "rand-m9-mstd0.5-inc1",
        "random_erase": 0.5,
        "mixup": 0.8,
        "cutmix": 1.0,
    },
}


def epoch(data: DataModule, number: int, first_batch: int = 0) -> list[Batch]:
    assert data.train_loader is not None
    data.train_loader.set_epoch(number, first_batch)
    return list(data.train_loader)


def same(left: list[Batch], right: list[Batch]) -> bool:
    return len(left) == len(right) and all(
        torch.equal(mine, other) for a, b in zip(left, right, strict=True) for mine, other in zip(a, b, strict=True)
    )


@pytest.mark.parametrize("path", PATHS)
def test_an_epoch_depends_on_seed_and_number_alone(open_data, image_folder: Path, path: str):
    def fresh(seed: int = 0, num_workers: int = 0) -> DataModule:
        keys = {"root": image_folder, "in_memory": PATHS[path], "num_workers": num_workers}
        return open_data(**keys, augment=AUGMENT[path], train={"batch_size": 5}, seed=seed)

    data = fresh()
    epochs = [epoch(data, number) for number in range(3)]
    torch.manual_seed(123)
    np.random.seed(5)
    assert same(epoch(fresh(), 1), epochs[1])
    assert same(epoch(data, 1), epochs[1])
    assert same(epoch(fresh(num_workers=2), 1), epochs[1])
    assert same(epoch(fresh(), 1, first_batch=1), epochs[1][1:])
    assert same(epoch(data, 1, first_batch=1), epochs[1][1:])
    assert data.train_loader is not None
    assert same(list(data.train_loader), epochs[1])  # skipping holds for one pass only
    assert not same(epochs[0], epochs[1])
    assert not same(epoch(fresh(seed=1), 1), epochs[1])


def test_workers_live_through_passes_even_abandoned_ones(open_data, image_folder: Path):
    keys = {"root": image_folder, "in_memory": False, "augment": AUGMENT["files"], "train": {"batch_size": 2}}
    data, alone = (open_data(**keys, num_workers=number) for number in (2, 0))
    others = set(multiprocessing.active_children())
    first = epoch(data, 0)
    workers = set(multiprocessing.active_children()) - others
    assert len(workers) == 2
    for number in (0, 1):
        data.train_loader.set_epoch(number)
        next(iter(data.train_loader))  # the rest of the pass is under way in the workers, and is not wanted
        assert same(epoch(data, 2, first_batch=number), epoch(alone, 2, first_batch=number))
    assert same(epoch(data, 0), first)
    assert set(multiprocessing.active_children()) - others == workers
    del data
    gc.collect()
    assert set(multiprocessing.active_children()) - others == set()


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("path", PATHS)
def test_loading_moves_no_global_generator(open_data, image_folder: Path, path: str, num_workers: int):
    import random

    data = open_data(root=image_folder, in_memory=PATHS[path], num_workers=num_workers, augment=AUGMENT[path])
    before = torch.random.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[index]
    epoch(data, 0)
    list(data.val_loader)
    after = torch.random.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[index]
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]


@pytest.mark.parametrize("img_size", [8, 13])
@pytest.mark.parametrize("crop_pct", [1.0, 0.8])
def test_validation_pixels_are_equal_on_both_paths(open_data, image_folder: Path, crop_pct: float, img_size: int):
    memory, files = (
        open_data(root=image_folder, img_size=img_size, crop_pct=crop_pct, in_memory=flag) for flag in (True, False)
    )
    assert (memory.in_memory, files.in_memory) == (True, False)
    assert same(list(memory.val_loader), list(files.val_loader))
    images, targets = next(iter(memory.val_loader))
    assert images.shape == (4, 3, img_size, img_size)
    assert images.dtype == torch.float32
    assert targets.tolist() == [0, 0, 0, 1]
    assert targets.dtype == torch.int64


@pytest.mark.parametrize("path", PATHS)
def test_training_batches_are_full_and_hold_every_image_at_most_once(open_data, image_folder: Path, path: str):
    plain = {"hflip": 0.0, **({"scale": [1.0, 1.0], "ratio": [1.0, 1.0]} if path == "files" else {})}
    data = open_data(root=image_folder, in_memory=PATHS[path], augment=plain, train={"batch_size": 5})
    batches = epoch(data, 0)
    assert [len(images) for images, _ in batches] == [5, 5]
    assert len(data.train_loader) == 2
    pixels = torch.cat([images for images, _ in batches]).flatten(1)
    assert len(pixels.unique(dim=0)) == 10
    assert sum(int((targets == 0).sum()) for _, targets in batches) in (4, 5, 6)


@pytest.mark.parametrize("path", PATHS)
def test_processes_share_an_epoch(open_data, image_folder: Path, path: str):
    def of(rank: int, world_size: int, batch_size: int) -> DataModule:
        return open_data(
            root=image_folder,
            in_memory=PATHS[path],
            augment={key: value for key, value in AUGMENT[path].items() if key in ("crop_padding", "scale")},
            train={"batch_size": batch_size},
            rank=rank,
            world_size=world_size,
        )

    whole = epoch(of(0, 1, 6), 4)
    parts = [epoch(of(rank, 2, 3), 4) for rank in range(2)]
    for batch, (images, targets) in enumerate(whole):
        for rank in range(2):
            assert torch.equal(parts[rank][batch][0], images[rank::2])
            assert torch.equal(parts[rank][batch][1], targets[rank::2])


@pytest.mark.parametrize("world_size", [1, 2, 4, 5])
@pytest.mark.parametrize("path", PATHS)
def test_validation_is_complete_and_free_of_duplicates(open_data, image_folder: Path, path: str, world_size: int):
    whole = torch.cat([images for images, _ in open_data(root=image_folder).val_loader])
    loaders = [
        open_data(
            root=image_folder,
            in_memory=PATHS[path],
            rank=rank,
            world_size=world_size,
            with_train=False,
            train={"eval_batch_size": 1},
        ).val_loader
        for rank in range(world_size)
    ]
    parts = [torch.cat([images for images, _ in loader]) for loader in loaders]
    assert [len(loader) for loader in loaders] == [len(part) for part in parts]
    for rank, part in enumerate(parts):
        assert torch.equal(part, whole[rank::world_size])


def test_normalisation_is_exact(open_data, image_folder: Path):
    data = open_data(root=image_folder, mean=[0.5, 0.25, 0.75], std=[0.5, 1.0, 0.25])
    images, _ = next(iter(data.val_loader))
    raw = open_data(root=image_folder, mean=[0.0, 0.0, 0.0], std=[1.0, 1.0, 1.0])
    pixels = next(iter(raw.val_loader))[0]
    torch.testing.assert_close(pixels * 255, (pixels * 255).round(), rtol=0, atol=1e-4)
    expected = torch.stack([(pixels[:, 0] - 0.5) * 2, pixels[:, 1] - 0.25, (pixels[:, 2] - 0.75) * 4], 1)
    torch.testing.assert_close(images, expected, rtol=0, atol=1e-5)
    first = read_image(data.train_source, 2, Image.Image.copy)
    assert first.size == (8, 8)  # neither resized nor cropped, so the batch holds it as it is
    plain = {"mean": [0.0] * 3, "std": [1.0] * 3, "augment": {"hflip": 0.0}, "train": {"batch_size": 12}}
    ((train, _),) = epoch(open_data(root=image_folder, **plain), 0)
    matches = [np.allclose(image.permute(1, 2, 0) * 255, np.asarray(first), atol=1e-4) for image in train]
    assert sum(matches) == 1


def test_repeated_augmentation_shows_fewer_images_more_often(open_data):
    def images(augment: dict[str, Any]) -> torch.Tensor:
        keys = {"name": "digits", "max_train_samples": 12, "in_memory": False, "train": {"batch_size": 12}}
        ((batch, _),) = epoch(open_data(**keys, augment={"hflip": 0.0, "repeats": 3, **augment}), 0)
        return batch.flatten(1)

    _, counts = images({"scale": [1.0, 1.0], "ratio": [1.0, 1.0]}).unique(dim=0, return_counts=True)
    assert counts.tolist() == [3, 3, 3, 3]
    assert len(images({"scale": [0.2, 0.5]}).unique(dim=0)) == 12  # each repeat has its own crop


def test_calibration_depends_on_its_seed_alone(open_data, image_folder: Path):
    reference = open_data(root=image_folder)
    images = reference.calibration_images(5, seed=7)
    assert images.shape == (5, 3, 8, 8)
    assert images.dtype == torch.float32
    epoch(reference, 3)
    torch.manual_seed(99)
    assert torch.equal(reference.calibration_images(5, seed=7), images)
    others = [
        {"in_memory": False, "num_workers": 2, "augment": {"scale": [0.2, 0.3]}},
        {"rank": 1, "world_size": 2, "train": {"batch_size": 2}},
        {"seed": 5, "augment": {"mixup": 1.0}},
    ]
    for keys in others:
        assert torch.equal(open_data(root=image_folder, **keys).calibration_images(5, seed=7), images)
    assert torch.equal(reference.calibration_images(8, seed=7)[:5], images)
    assert not torch.equal(reference.calibration_images(5, seed=8), images)


def test_calibration_images_are_training_images_under_the_evaluation_transform(open_data, image_folder: Path):
    data = open_data(root=image_folder, crop_pct=0.7)
    everything = data.calibration_images(12, seed=0)
    expected = torch.stack([read_image(data.train_source, index, data.reader.transform) for index in range(12)])
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in (data.mean, data.std))
    distances = ((expected / 255 - mean) / std)[:, None] - everything
    order = [int((row.abs().amax((1, 2, 3)) < 1e-5).nonzero()) for row in distances]
    assert sorted(order) == list(range(12))
    assert order != list(range(12))


@pytest.mark.gpu
@pytest.mark.parametrize("path", PATHS)
def test_batches_on_a_gpu_equal_those_on_the_cpu(open_data, image_folder: Path, path: str):
    augment = {key: value for key, value in AUGMENT[path].items() if key != "random_erase"}  # its noise is the device's
    cpu, gpu = (
        open_data(root=image_folder, in_memory=PATHS[path], num_workers=1, augment=augment, device=device)
        for device in ("cpu", "cuda")
    )
    for left, right in zip(epoch(cpu, 0) + list(cpu.val_loader), epoch(gpu, 0) + list(gpu.val_loader), strict=True):
        assert right[0].device.type == right[1].device.type == "cuda"
        torch.testing.assert_close(right[0].cpu(), left[0], rtol=0, atol=1e-5)
        torch.testing.assert_close(right[1].cpu(), left[1])
    erased = open_data(root=image_folder, augment={"random_erase": 1.0}, device="cuda")
    assert same(epoch(erased, 0), epoch(erased, 0))

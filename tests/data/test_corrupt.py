"""Broken images: named, passed over up to a limit, and then the end of the run."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from ecoformer.data.decode import read_image
from ecoformer.errors import InputError


def breaks(*paths: Path) -> None:
    for path in paths:
        path.write_bytes(path.read_bytes()[:60])


def targets(loader) -> list[int]:
    return torch.cat([targets for _, targets in loader]).tolist()


@pytest.mark.parametrize(("in_memory", "num_workers"), [(True, 0), (False, 0), (False, 2)])
def test_up_to_the_limit_they_are_passed_over(open_data, image_folder: Path, caplog, in_memory, num_workers):
    broken = [image_folder / "train" / "ant" / "5.png", image_folder / "val" / "bee" / "0.png"]
    breaks(*broken)
    caplog.set_level(logging.WARNING)
    keys = {"in_memory": in_memory, "num_workers": num_workers, "train": {"batch_size": 11}}
    data = open_data(root=image_folder, max_corrupt=2, **keys)
    for epoch in range(3):
        data.train_loader.set_epoch(epoch)
        images, labels = next(iter(data.train_loader))
        assert images.shape[0] == 11  # a training batch stays full
        assert sorted(labels.unique().tolist()) == [0, 1]
    assert targets(data.val_loader) == [0, 0, 0, 1, 1]
    assert len(data.calibration_images(11, seed=0)) == 11
    assert data.reader.corrupt.names == {str(path) for path in broken}
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 2  # once an image, however often it is met
    for path in broken:
        assert sum(line.startswith(f"{path} cannot be decoded (") for line in lines) == 1
    assert lines[0].endswith("repair or remove the file; skipped, 1 of at most data.max_corrupt=2")
    with pytest.raises(InputError, match=r"12 calibration images > 1[12] (readable )?training images of folder"):
        data.calibration_images(12, seed=0)


def _workers(loader) -> bool:
    return getattr(loader, "_decoded", None) is not None and loader._decoded._iterator is not None


@pytest.mark.parametrize(("in_memory", "num_workers"), [(True, 0), (False, 0), (False, 2)])
@pytest.mark.parametrize("split", ["train", "val"])
def test_above_the_limit_the_run_ends(open_data, image_folder: Path, split, in_memory, num_workers):
    breaks(*(image_folder / split / "ant" / f"{index}.png" for index in range(3)))
    data = None
    with pytest.raises(InputError) as caught:
        data = open_data(root=image_folder, max_corrupt=2, in_memory=in_memory, num_workers=num_workers)
        for loader in (data.train_loader, data.val_loader):
            list(loader)
    message = str(caught.value)
    assert data is None or not _workers(data.val_loader if split == "val" else data.train_loader)
    del caught  # whose traceback would hold the loaders until they are collected as garbage
    assert "cannot be decoded (" in message and "\n" not in message
    assert message.endswith("; 3 such images are more than data.max_corrupt=2")


def test_the_stand_in_of_a_broken_image_is_the_next_one(open_data, image_folder: Path):
    breaks(image_folder / "train" / "bee" / "5.png")  # the last: the first stands in
    keys = {"in_memory": False, "augment": {"hflip": 0.0, "scale": [1.0, 1.0], "ratio": [1.0, 1.0]}, "seed": 3}
    data = open_data(root=image_folder, max_corrupt=1, train={"batch_size": 12}, **keys)
    images, labels = next(iter(data.train_loader))
    ((indices, _),) = data.train_loader._positions(0, 0)
    last, first = indices.tolist().index(11), indices.tolist().index(0)
    assert torch.equal(images[last], images[first]) and int(labels[last]) == 0


def test_an_image_that_cannot_be_read_is_not_called_broken(open_data, image_folder: Path):
    source = open_data(root=image_folder).train_source
    Path(source.name(0)).unlink()  # the system says so, as where permission is denied
    with pytest.raises(InputError, match=r"cannot be read \(No such file or directory\): correct its permissions"):
        read_image(source, 0, lambda image: image)


def test_nothing_but_broken_images(open_data, image_folder: Path):
    breaks(*(image_folder / "val").glob("*/*.png"))
    with pytest.raises(InputError, match="folder: none of the 6 val images can be decoded"):
        open_data(root=image_folder, max_corrupt=100, in_memory=True)
    data = open_data(root=image_folder, max_corrupt=100, in_memory=False)
    assert list(data.val_loader) == []
    breaks(*(image_folder / "train").glob("*/*.png"))
    with pytest.raises(InputError, match="a whole training batch cannot be decoded, the last image is"):
        list(data.train_loader)

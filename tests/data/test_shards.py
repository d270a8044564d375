"""WebDataset shards: the same images as from a folder, whole on any number of processes, and every fault named."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from archive_helpers import add

from ecoformer.data.tar_index import DamagedTar, tar_files


def batches(loader) -> tuple[torch.Tensor, torch.Tensor]:
    images, targets = zip(*loader, strict=True)
    return torch.cat(images), torch.cat(targets)


@pytest.mark.parametrize("in_memory", [True, False])
def test_shards_hold_the_images_of_the_folder(open_data, shards: Path, image_folder: Path, in_memory: bool):
    keys = {"in_memory": in_memory, "train": {"batch_size": 5}}
    ours = open_data(name="webdataset", root=shards, num_classes=2, **keys)
    theirs = open_data(name="folder", root=image_folder, **keys)
    assert (ours.class_names, ours.num_train, ours.num_val) == (["0", "1"], 13, 7)
    for loader in ("train_loader", "val_loader"):
        mine, other = batches(getattr(ours, loader)), batches(getattr(theirs, loader))
        assert torch.equal(mine[0], other[0]) and torch.equal(mine[1], other[1])
    assert torch.equal(ours.calibration_images(4, seed=0), theirs.calibration_images(4, seed=0))
    assert ours.train_source.name(0) == f"{shards}/train-0.tar: ant_0.png"


def test_timms_stream_holds_the_same_samples(shards: Path, open_data):
    pytest.importorskip("webdataset")
    from timm.data.readers import create_reader

    reader = create_reader("wds/", root=str(shards), split="val-{0..1}.tar")
    files = open_data(name="webdataset", root=shards, num_classes=2, with_train=False, in_memory=False)
    ours = [(np.asarray(files.val_loader.source.open(i)), int(files.val_loader.targets[i])) for i in range(7)]
    for (image, label), (theirs, target) in zip(ours, reader, strict=True):
        assert label == target and np.array_equal(image, np.asarray(theirs))


@pytest.mark.parametrize(("world_size", "num_workers"), [(2, 0), (3, 2), (4, 0)])
def test_validation_is_whole_on_any_number_of_processes(open_data, shards: Path, world_size: int, num_workers: int):
    def images(rank: int, count: int) -> torch.Tensor:
        data = open_data(
            name="webdataset",
            root=shards,
            num_classes=2,
            in_memory=False,
            num_workers=num_workers,
            rank=rank,
            world_size=count,
            with_train=False,
            train={"eval_batch_size": 2},
        )
        return batches(data.val_loader)[0]

    whole = images(0, 1)
    for rank in range(world_size):
        assert torch.equal(images(rank, world_size), whole[rank::world_size])


def test_an_epoch_depends_on_seed_and_number_and_goes_on_in_the_middle(open_data, shards: Path):
    def epoch(number: int, *, seed: int = 0, first: int = 0, workers: int = 0) -> list[torch.Tensor]:
        data = open_data(
            name="webdataset",
            root=shards,
            num_classes=2,
            in_memory=False,
            num_workers=workers,
            augment={"scale": [0.3, 1.0]},
            seed=seed,
        )
        data.train_loader.set_epoch(number, first)
        return [images for images, _ in data.train_loader]

    first = epoch(1)
    assert len(first) == 3
    assert all(map(torch.equal, epoch(1, workers=2), first))
    assert all(map(torch.equal, epoch(1, first=1), first[1:]))
    assert not torch.equal(epoch(2)[0], first[0])
    assert not torch.equal(epoch(1, seed=1)[0], first[0])


def test_repeated_augmentation(open_data, shards: Path):
    augment = {"repeats": 3, "hflip": 0.0, "scale": [0.2, 0.9]}
    data = open_data(name="webdataset", root=shards, num_classes=2, in_memory=False, augment=augment)
    positions = np.concatenate([indices for indices, _ in data.train_loader._positions(0, 0)])
    assert len(positions) == 12
    # Every image three times, on neighbouring places, which several processes share among them.
    assert np.array_equal(positions, np.repeat(positions[::3], 3)) and len(set(positions)) == 4
    images, _ = batches(data.train_loader)
    assert not torch.equal(images[0], images[1])  # each time augmented anew


def test_splits_by_pattern_glob_and_info_file(open_data, shards: Path):
    def counts(**keys) -> tuple[int, int]:
        data = open_data(name="webdataset", root=shards, num_classes=2, **keys)
        return data.num_train, data.num_val

    assert counts() == (13, 7)
    assert counts(val_split="val-*.tar") == (13, 7)
    (shards / "val").mkdir()
    for path in shards.glob("val-*.tar"):
        path.rename(shards / "val" / path.name)
    assert counts() == (13, 7)
    pytest.importorskip("webdataset")
    assert counts(train_split="train-{0..2}.tar") == (13, 7)
    splits = {
        split: {"name": split, "filenames": names, "shard_lengths": [1] * len(names), "num_samples": len(names)}
        for split, names in {
            "train": ["train-0.tar", "train-1.tar", "train-2.tar"],
            "validation": ["val/val-0.tar", "val/val-1.tar"],
        }.items()
    }
    (shards / "_info.json").write_text(json.dumps({"splits": splits}))
    assert counts() == (13, 7)
    assert counts(train_split="validation") == (7, 7)


def test_class_names_from_a_file(open_data, shards: Path):
    (shards / "classes.txt").write_text("ant\nbee\n")
    assert open_data(name="webdataset", root=shards).class_names == ["ant", "bee"]
    (shards / "classes.txt").write_bytes("ämse\r\nbee\r\n".encode("utf-8-sig"))  # a Windows editor's
    assert open_data(name="webdataset", root=shards).class_names == ["ämse", "bee"]
    (shards / "latin.txt").write_text("formica\napis\n")
    assert open_data(name="webdataset", root=shards, class_names="latin.txt").class_names == ["formica", "apis"]


def test_labels_from_json_and_the_image_by_key(open_data, tmp_path: Path, write_image):
    write_image(tmp_path / "a.png", seed=1)
    content = (tmp_path / "a.png").read_bytes()
    for split in ("train", "val"):
        with tarfile.open(tmp_path / f"{split}.tar", "w") as archive:
            for label in range(2):
                add(archive, f"x/{label}.seg.png", b"not the image")
                add(archive, f"x/{label}.photo", content)
                add(archive, f"x/{label}.json", json.dumps({"class": label}).encode())
            add(archive, "__meta__.json", b"{}")
            add(archive, "README", b"no sample")
    keys = {"num_classes": 2, "image_key": "photo", "label_key": "json:class", "train": {"batch_size": 2}}
    data = open_data(name="webdataset", root=tmp_path, **keys)
    assert (data.num_train, data.val_loader.targets.tolist()) == (2, [0, 1])


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_kind_of_tar_header(tmp_path: Path, format: int):
    names = ["a.png", "ä.png", f"{'d' * 80}/{'e' * 90}.png", "x/y.cls"]
    if format != tarfile.USTAR_FORMAT:
        names.append(f"{'d' * 150}/{'e' * 150}.png")
    with tarfile.open(tmp_path / "t.tar", "w", format=format) as archive:
        folder = tarfile.TarInfo("x")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        for index, name in enumerate(names):
            add(archive, name, bytes([index]) * (511 + index))
    found = [(file.name, bytes(content)) for file, content in tar_files(tmp_path / "t.tar")]
    assert found == [(name, bytes([index]) * (511 + index)) for index, name in enumerate(names)]
    (tmp_path / "t.tar").write_bytes((tmp_path / "t.tar").read_bytes()[:1024])
    with pytest.raises(DamagedTar):
        list(tar_files(tmp_path / "t.tar"))

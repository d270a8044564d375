"""WebDataset shards: the same images as from a folder, whole on any number of processes, and every fault named."""

from __future__ import annotations

import json
import os
import re
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from archive_helpers import add, write_shards

from ecoformer.data.tar_index import DamagedTar, tar_files
from ecoformer.errors import InputError


@pytest.fixture
def shards(image_folder: Path, tmp_path: Path, write_image) -> Path:
    """Three training shards of 13 images and two validation shards of 7, in two classes."""
    write_image(image_folder / "train" / "bee" / "6.png", seed=77)
    write_image(image_folder / "val" / "ant" / "3.png", seed=78)
    root = tmp_path / "shards"
    write_shards(image_folder / "train", root, "train", 3)
    write_shards(image_folder / "val", root, "val", 2)
    return root


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


def refusal(open_data, root: Path, **keys) -> str:
    with pytest.raises(InputError) as caught:
        open_data(name="webdataset", root=root, **{"num_classes": 2, **keys})
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_pattern_that_matches_nothing_is_an_error(open_data, shards: Path, tmp_path: Path):
    assert refusal(open_data, shards, val_split="test-*.tar") == (
        f"data.val_split=test-*.tar matches no file in {shards}: correct the pattern"
    )
    assert refusal(open_data, tmp_path / "images") == (
        f"data.root={tmp_path}/images holds no shards called validation*.tar or val*.tar or test*.tar: set "
        "data.val_split to a pattern of theirs, such as 'shard-{0000..0009}.tar'"
    )
    pytest.importorskip("webdataset")
    assert refusal(open_data, shards, val_split="val-{1..3}.tar") == (
        f"data.val_split=val-{{1..3}}.tar names 3 shards, 2 of them do not exist (first {shards}/val-2.tar): "
        "correct the pattern"
    )
    assert refusal(open_data, shards, val_split="nope") == (
        f"data.val_split=nope is no pattern of shards (NAME.tar) and no split of {shards}/_info.json (there: none): "
        "correct it"
    )
    assert refusal(open_data, shards, val_split="https://host/val.tar") == (
        "data.val_split=https://host/val.tar is not on local disk: copy the shards there and give their pattern"
    )


def test_shards_without_samples_are_an_error(open_data, shards: Path):
    for path in shards.glob("val-*.tar"):
        with tarfile.open(path, "w") as archive:
            add(archive, "README", b"")
    assert refusal(open_data, shards) == (
        f"data.val_split=val-0.tar in {shards}: 2 shards hold no samples: give shards with images and class numbers"
    )


def test_classes_that_do_not_fit(open_data, shards: Path):
    assert refusal(open_data, shards, num_classes=None) == (
        "data=webdataset does not say how many classes there are: set data.num_classes, or list their names in "
        f"{shards}/classes.txt, one a line"
    )
    assert refusal(open_data, shards, num_classes=1) == (
        f"data.root={shards}: the training split has a label 1, the classes are 0 to 0: correct data.num_classes"
    )
    assert refusal(open_data, shards, num_classes=4) == (
        f"data.root={shards}: the training split has classes without images (2, 3): add images, or remove the class"
    )
    (shards / "classes.txt").write_text("ant\nant\n")
    assert refusal(open_data, shards) == f"{shards}/classes.txt names a class twice: correct it"
    (shards / "classes.txt").write_text("ant\nbee\n")
    assert refusal(open_data, shards, num_classes=3) == (
        "data.num_classes=3, but 2 classes are named: make them the same"
    )
    assert refusal(open_data, shards, class_names="no.txt") == (
        f"{shards}/no.txt cannot be read: give a text file, one class name a line"
    )
    assert refusal(open_data, shards / "nowhere").startswith(f"data.root={shards}/nowhere is not a folder")
    with pytest.raises(InputError, match=r"needs data.root: set it to the folder that holds the shards"):
        open_data(name="webdataset")


def test_faults_of_samples_and_shards_are_named(open_data, shards: Path, write_image):
    path, more = shards / "val-1.tar", ": python scripts/check_data.py lists them all"
    whole = path.read_bytes()
    with tarfile.open(path, "a") as archive:
        add(archive, "zz.cls", b"0")
        add(archive, "zzz.png", b"x")
    assert refusal(open_data, shards) == (
        f"{path}: sample zz has no image (.jpg .jpeg .png .webp) (and 1 more faults){more}"
    )
    with tarfile.open(path, "w") as archive:
        add(archive, "a.png", b"x")
        add(archive, "a.cls", b"cat")
    assert refusal(open_data, shards) == f"{path}: sample a has no class number in .cls{more}"
    with tarfile.open(path, "w") as archive:
        for _ in range(2):
            add(archive, "a.png", b"x")
            add(archive, "a.cls", b"0")
    assert refusal(open_data, shards).startswith(f"{path}: sample a has two files .png: keys must differ")
    damages = {
        "it was cut short in the file at byte [0-9]+": whole[:700],
        "it was cut short: tar's end mark is missing at byte [0-9]+": whole[: whole.index(b"\0" * 1024)],
        "its header at byte [0-9]+ is damaged": whole.replace(b"bee_2.cls", b"bee_X.cls"),
        "it is no tar": b"<html>" * 200,
        "it is compressed: unpack it to a plain .tar": b"\x1f\x8b" + b"1" * 600,
        "it is empty": b"",
    }
    for reason, content in damages.items():
        path.write_bytes(content)
        message = refusal(open_data, shards)
        assert re.fullmatch(rf"{re.escape(str(path))}: damaged shard: {reason}{re.escape(more)}", message), message


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


@pytest.mark.parametrize(
    "records", [b"junk", b"0 a=b\n", b"-5 size=3\n", b"9 size=-3\n", b"11 size=abc\n", b"6 \xff=\xff\n"]
)
def test_a_damaged_extended_header_is_named(tmp_path: Path, records: bytes):
    header = tarfile.TarInfo("pax")
    header.type, header.size = tarfile.XHDTYPE, len(records)
    path = tmp_path / "t.tar"
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        add(archive, "a.png", b"x")
    path.write_bytes(header.tobuf(tarfile.USTAR_FORMAT) + records.ljust(512, b"\0") + path.read_bytes())
    with pytest.raises(DamagedTar, match="its extended header at byte 0 is damaged"):
        list(tar_files(path))


@pytest.mark.parametrize("label", [b"99999999999999999999", b"1" * 5000, b"[" * 100000, b"2147483648"])
def test_a_number_that_is_no_class_is_named(open_data, shards: Path, label: bytes):
    with tarfile.open(shards / "val-1.tar", "w") as archive:
        add(archive, "a.png", b"x")
        add(archive, "a.cls", label)
    assert "val-1.tar: sample a has no class number in .cls" in refusal(open_data, shards)


def test_a_list_of_splits_of_another_shape_is_named(open_data, shards: Path):
    pytest.importorskip("webdataset")
    for content, message in (
        ("[]", "_info.json is no JSON object with splits: correct or remove it"),
        ('{"splits": []}', "_info.json is no JSON object with splits: correct or remove it"),
        ('{"splits": {"val": {"name": "val", "filenames": [3], "shard_lengths": [3]}}}', "_info.json: val lacks what"),
        ('{"splits": {"val": {}}}', "_info.json: val lacks what timm's reader takes"),
    ):
        (shards / "_info.json").write_text(content)
        assert message in refusal(open_data, shards)


def test_shards_lie_under_any_name_and_are_files(open_data, shards: Path):
    strange = shards.rename(shards.with_name("br[1]*?"))
    assert len(open_data(name="webdataset", root=strange, num_classes=2).train_source) == 13
    os.mkfifo(strange / "train-0000.tar")
    assert "train-0000.tar: damaged shard: it is no file" in refusal(open_data, strange)


def test_a_broken_image_in_a_shard_is_named(open_data, shards: Path):
    path = shards / "val-0.tar"
    content = bytearray(path.read_bytes())
    start = content.index(b"IDAT")
    content[start : start + 40] = bytes(40)
    path.write_bytes(content)
    data = open_data(name="webdataset", root=shards, num_classes=2, in_memory=False)
    with pytest.raises(InputError, match=rf"{re.escape(str(path))}: ant_\d.png cannot be decoded"):
        list(data.val_loader)


def test_a_missing_package_is_named(open_data, shards: Path, monkeypatch):
    from timm.data.readers import reader_wds

    monkeypatch.setattr(reader_wds, "wds", None)
    assert refusal(open_data, shards, val_split="val-{0..1}.tar") == (
        "data.val_split=val-{0..1}.tar needs the webdataset package: pip install 'ecoformer[data]', or give a glob "
        "pattern"
    )
    assert open_data(name="webdataset", root=shards, num_classes=2).num_val == 7  # names alone need no package

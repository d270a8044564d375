"""What is wrong with shards, patterns and labels is said in one line."""

from __future__ import annotations

import os
import re
import tarfile
from pathlib import Path

import pytest
from archive_helpers import add

from ecoformer.data.tar_index import DamagedTar, tar_files
from ecoformer.errors import InputError


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


def test_what_would_be_left_out_without_a_word_is_named(open_data, shards: Path):
    path = shards / "train-0.tar"
    whole, more = path.read_bytes(), (shards / "train-1.tar").read_bytes()
    for content in (whole + more, whole + bytes(2**21) + more):  # cat a.tar b.tar; a hole in a copy
        path.write_bytes(content)
        assert re.search(r"train-0.tar: damaged shard: more lies behind its end at byte", refusal(open_data, shards))
    path.write_bytes(whole[:1536] + bytes(len(whole) + 20480 - 1536))  # a download that was broken off
    assert re.search(
        r"train-0.tar: damaged shard: it ends with [0-9,]+ zeros, tar with at most", refusal(open_data, shards)
    )
    for kind in (tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.GNUTYPE_SPARSE):
        with tarfile.open(path, "w") as archive:
            add(archive, "a.png", b"x")
            add(archive, "a.cls", b"0")
            for ending in ("png", "cls"):
                link = tarfile.TarInfo(f"b.{ending}")
                link.type, link.linkname = kind, f"a.{ending}"
                archive.addfile(link)
        assert "train-0.tar: damaged shard: its b.png is a link or a sparse file: pack the file itself" in refusal(
            open_data, shards
        )
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        described = tarfile.TarInfo("GNUSparseFile.1/b.png")
        described.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "b.png"}
        archive.addfile(described)
    assert "its b.png is a link or a sparse file" in refusal(open_data, shards)


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


@pytest.mark.parametrize("record", [20, 64, 2048])
def test_the_longest_end_that_tar_writes_is_no_hole(tmp_path: Path, monkeypatch, record: int):
    """One block too few for a second record (of tar -b 64, say), so that all but one of the next are zeros."""
    monkeypatch.setattr(tarfile, "RECORDSIZE", 512 * record)
    path = tmp_path / "t.tar"
    for blocks in range(record - 4, record + 2):
        with tarfile.open(path, "w") as archive:
            add(archive, "a.png", bytes([1]) * 512 * (blocks - 1))
        assert [file.name for file, _ in tar_files(path)] == ["a.png"]
        zeros = path.stat().st_size - 512 * blocks
        assert (zeros == 512 * (record + 1)) == (blocks == record - 1)
    with open(path, "ab") as file:
        file.write(bytes(2**20 + 512))
    with pytest.raises(DamagedTar, match="files are missing"):
        list(tar_files(path))

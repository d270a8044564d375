"""Data as people have it: what their systems leave beside images, odd layouts, labels of other tools."""

from __future__ import annotations

import os
import tarfile
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest
from archive_helpers import add, write_shards

from ecoformer.cli import check_data
from ecoformer.errors import InputError


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(InputError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_systems_leave_is_passed_over_and_counted(open_data, image_folder: Path, write_image) -> None:
    (image_folder / "train" / "ant" / "Thumbs.db").write_bytes(b"x")
    (image_folder / "train" / "ant" / ".DS_Store").write_bytes(b"x")
    write_image(image_folder / "train" / "ant" / "@eaDir" / "thumb.png", seed=0)
    write_image(image_folder / "train" / "__MACOSX" / "thumb.png", seed=0)
    data = open_data(root=image_folder)
    assert (data.class_names, data.num_train) == (["ant", "bee"], 12)
    assert any("4" in note and "train" in note for note in data.notes), data.notes


def test_a_pipe_among_the_images_is_passed_over(open_data, image_folder: Path) -> None:
    """It would be waited for, for ever."""
    os.mkfifo(image_folder / "train" / "ant" / "pipe.png")
    data = open_data(root=image_folder)
    assert data.num_train == 12 and any("1 hidden or system files" in note for note in data.notes), data.notes


def test_other_endings_are_read_or_counted(open_data, image_folder: Path, write_image) -> None:
    for number, ending in enumerate((".jfif", ".gif")):
        write_image(image_folder / "train" / "ant" / f"more{number}.png", seed=number)
        source = image_folder / "train" / "ant" / f"more{number}.png"
        if ending == ".gif":
            write_image(source.with_suffix(ending), seed=number, mode="P")
        else:
            write_image(source.with_suffix(".jpeg"), seed=number)
            source.with_suffix(".jpeg").rename(source.with_suffix(ending))
        source.unlink()
    (image_folder / "train" / "bee" / "notes.txt").write_text("x")
    data = open_data(root=image_folder)
    assert data.num_train == 14
    assert any("1 files of other endings are not read as images (.txt 1)" in note for note in data.notes), data.notes


def test_a_class_is_the_same_in_both_unicode_forms(open_data, image_folder: Path) -> None:
    """macOS writes the letter and its accent as two signs, Linux as it was typed."""
    for split, form in (("train", "NFD"), ("val", "NFC")):
        (image_folder / split / "ant").rename(image_folder / split / unicodedata.normalize(form, "zébu"))
    data = open_data(root=image_folder)
    assert (data.class_names, data.num_train) == (["bee", "zébu"], 12)
    assert check_data.main([str(image_folder), "--workers", "1"]) == 0
    (image_folder / "train" / "zébu").mkdir()
    message = refusal(lambda: open_data(root=image_folder))
    assert message.endswith("train holds zébu twice, in two Unicode forms (NFC, NFD): move the images into one")


def test_classes_one_level_too_deep(open_data, image_folder: Path) -> None:
    for split in ("train", "val"):
        (image_folder / split).rename(image_folder / "moved")
        (image_folder / split).mkdir()
        (image_folder / "moved").rename(image_folder / split / "images")
    message = refusal(lambda: open_data(root=image_folder))
    assert "holds the folder images alone, and in it ant, bee: the classes lie one level too deep" in message


def test_links_are_followed_once_by_training_and_check_alike(
    open_data, image_folder: Path, tmp_path: Path, write_image, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(3):
        write_image(tmp_path / "elsewhere" / f"{number}.png", seed=number)
    os.symlink(tmp_path / "elsewhere", image_folder / "train" / "ant" / "more")
    os.symlink(tmp_path / "elsewhere", image_folder / "train" / "ant" / "again")
    os.symlink(image_folder / "train" / "ant", image_folder / "train" / "ant" / "more" / "cycle")
    assert open_data(root=image_folder).num_train == 15
    check_data.main([str(image_folder), "--workers", "1"])
    assert "15" in capsys.readouterr().out


def test_class_numbers_as_other_tools_write_them(open_data, image_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "shards"
    for split in ("train", "val"):
        (path,) = write_shards(image_folder / split, out, split, 1)
        padded = path.with_suffix(".new")
        with tarfile.open(path) as old, tarfile.open(padded, "w") as new:
            for entry in old:
                content = old.extractfile(entry).read()  # type: ignore[union-attr]
                add(new, entry.name, content.zfill(4) + b"\n" if entry.name.endswith(".cls") else content)
        padded.rename(path)
    data = open_data(name="webdataset", root=out, num_classes=2)
    assert data.num_train == 12 and data.train_loader.targets.tolist() == [0] * 6 + [1] * 6


def test_a_split_without_labels_is_named(open_data, image_folder: Path, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    from PIL import Image

    datasets.disable_progress_bars()
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["ant", "bee"])})
    paths = sorted((image_folder / "train").rglob("*.png"))

    def rows(labels: list[int]) -> object:
        images = [Image.open(path) for path in paths[: len(labels)]]
        return datasets.Dataset.from_dict({"image": images, "label": labels}, features=features)

    splits = datasets.DatasetDict(train=rows([0, 1] * 4), test=rows([-1] * 4))
    splits.save_to_disk(str(tmp_path / "hf"))
    message = refusal(lambda: open_data(name="hfds", root=tmp_path / "hf"))
    assert "split test has no labels (label is -1 in every row): set data.val_split to a split that has" in message


@pytest.mark.parametrize(
    "name", ["folder", "imagenet", "imagenet_v2", "cifar10", "webdataset", "hfds", "listops", "text_bytes"]
)
def test_a_root_in_nobodys_home_is_refused(open_data, name: str) -> None:
    root, of = "~nobody.of.this.name/data", {"seq_len": 64} if name in ("listops", "text_bytes") else {}
    message = f"{root} lies in nobody's home: write the path in full"
    with_train = name != "imagenet_v2"
    assert refusal(lambda: open_data(name=name, root=root, with_train=with_train, **of)) == message

"""scripts/check_data.py: counts, every kind of fault, exit codes, in all three layouts."""

from __future__ import annotations

import importlib
import json
import signal
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from archive_helpers import add, write_shards

from ecoformer.data import audit

SCRIPT = Path(__file__).parents[2] / "scripts" / "check_data.py"


@pytest.fixture
def check(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, dict[str, Any]]]:
    """check(root, *options): exit code and the JSON that was printed."""
    module = importlib.import_module("ecoformer.cli.check_data")

    def run(root: Path, *options: str) -> tuple[int, Any]:
        capsys.readouterr()
        code = module.main(
            [str(root), "--workers=1", *options, *([] if "--format=table" in options else ["--format=json"])]
        )
        out = capsys.readouterr()
        if code == 2:
            assert out.err.count("\n") == 1 and out.err.startswith("error: ")
            return code, out.err.removeprefix("error: ").strip()
        return code, out.out if "--format=table" in options else json.loads(out.out)

    return run


def kinds(found: dict[str, Any]) -> dict[str, list[str]]:
    out: dict[str, list[str]] = {}
    for fault in found["faults"]:
        out.setdefault(fault["kind"], []).append(fault["where"])
    return out


def test_a_whole_folder(check, image_folder: Path):
    code, found = check(image_folder, "--workers=2")
    assert (code, found["ok"], found["faults"], found["layout"]) == (0, True, [], "folder")
    assert found["splits"] == [
        {"name": "train", "images": 12, "per_class": {"ant": 6, "bee": 6}},
        {"name": "val", "images": 6, "per_class": {"ant": 3, "bee": 3}},
    ]
    code, text = check(image_folder, "--format=table")
    assert code == 0
    assert text.splitlines()[1:] == [
        "train: 12 images in 2 classes, 6 (ant) to 6 (bee) a class",
        "val: 6 images in 2 classes, 3 (ant) to 3 (bee) a class",
        "nothing is wrong",
    ]


def test_ctrl_c_is_answered_by_the_first_process_alone() -> None:
    """A terminal sends it to the workers too, each of which said so."""
    with ProcessPoolExecutor(1, initializer=audit._take, initargs=(None,)) as pool:
        assert pool.submit(signal.getsignal, signal.SIGINT).result() == signal.SIG_IGN


@pytest.mark.parametrize("workers", [1, 2])
def test_every_fault_of_a_folder(check, image_folder: Path, write_image, workers: int):
    train = image_folder / "train"
    cut, empty = train / "ant" / "1.png", train / "ant" / "2.png"
    cut.write_bytes(cut.read_bytes()[:70])
    empty.write_bytes(b"")
    (train / "ant" / "notes.txt").write_text("no image")
    (train / "ant" / "3.PNG").write_bytes((train / "ant" / "3.png").read_bytes())
    (train / "cat").mkdir()
    (image_folder / "val" / "dog").mkdir()
    write_image(image_folder / "val" / "Ant" / "0.png", seed=1)
    code, found = check(image_folder, f"--workers={workers}")
    assert code == 1 and not found["ok"]
    assert kinds(found) == {
        "class in one split only": [str(train / "cat"), str(image_folder / "val/Ant"), str(image_folder / "val/dog")],
        "same name in another case": [str(train / "ant/3.png"), str(image_folder / "val" / "ant")],
        "not an image": [str(train / "ant" / "notes.txt")],
        "empty class": [str(train / "cat"), str(image_folder / "val" / "dog")],
        "corrupt image": [str(cut)],
        "empty file": [str(empty)],
    }
    assert found["splits"][0]["per_class"] == {"ant": 7, "bee": 6, "cat": 0}
    code, text = check(image_folder, "--format=table")
    assert code == 1
    assert f"corrupt image: {cut} (" in text and text.endswith("10 faults\n") and "; empty: cat" in text


def test_archives_beside_class_folders_are_no_shards(check, image_folder: Path):
    for name in ("images.tar", "train/ant.tar", "rows.parquet"):
        (image_folder / name).write_bytes(b"of the images")
    code, found = check(image_folder)
    assert (code, found["layout"], found["faults"]) == (0, "folder", [])


def test_missing_splits(check, image_folder: Path):
    (image_folder / "train").rename(image_folder / "elsewhere")
    code, found = check(image_folder)
    assert (code, kinds(found)) == (1, {"missing split": [str(image_folder / "train")]})
    assert check(image_folder, "--val-only")[0] == 0
    (image_folder / "elsewhere").rename(image_folder / "train")
    (image_folder / "val").rename(image_folder / "elsewhere")
    assert kinds(check(image_folder)[1]) == {"missing split": [str(image_folder / "val")]}


def test_what_is_no_data_set_exits_with_2(check, tmp_path: Path):
    code, message = check(tmp_path / "nowhere")
    assert (code, message) == (
        2,
        f"{tmp_path}/nowhere is not a folder: give the folder that holds train/ and val/, shards, or a dataset",
    )
    assert check(tmp_path)[1].startswith(f"{tmp_path} holds no data set: it has no train/, val/ or test/ folder")
    assert "--workers: '0' must be a whole number of at least 1" in check(tmp_path, "--workers=0")[1]


def test_shards(check, image_folder: Path, tmp_path: Path):
    import tarfile

    root = tmp_path / "shards"
    write_shards(image_folder / "train", root, "train", 2)
    paths = write_shards(image_folder / "val", root, "val", 2)
    code, found = check(root)
    assert (code, kinds(found)) == (1, {"classes": [str(root)]})
    assert found["splits"][0] == {"name": "train", "images": 12, "per_class": {"0": 6, "1": 6}}
    assert check(root, "--num-classes=2")[0] == 0
    with tarfile.open(paths[0], "a") as archive:
        add(archive, "x.png", b"no image")
        add(archive, "x.cls", b"5")
        add(archive, "ant_0.png", (image_folder / "val" / "ant" / "0.png").read_bytes())
        add(archive, "ant_0.cls", b"0")
        add(archive, "y.cls", b"0")
    paths[1].write_bytes(paths[1].read_bytes()[:600])
    code, found = check(root, "--num-classes=2")
    assert code == 1
    assert kinds(found) == {
        "shard": [str(paths[0]), str(paths[1])],
        "key used twice": ["val split"],
        "labels": ["val split", "val split"],
        "corrupt image": [f"{paths[0]}: x.png"],
    }
    for path in paths:
        path.unlink()
    assert kinds(check(root, "--num-classes=2")[1]) == {"missing split": ["val"]}


def test_hugging_face_dataset(check, tmp_path: Path):
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["ant", "bee"])})
    good = {"bytes": b"P5 2 2 255\n0123", "path": None}
    rows = {"image": [good, good, {"bytes": b"broken", "path": None}, None], "label": [0, 1, 1, 0]}
    split = datasets.Dataset.from_dict(rows, features=features)
    datasets.DatasetDict(train=split.select([0, 1]), test=split).save_to_disk(str(tmp_path / "hf"))
    code, found = check(tmp_path / "hf")
    assert (code, found["layout"]) == (1, "hfds")
    assert kinds(found) == {"corrupt image": [f"{tmp_path}/hf [test]: row {row}" for row in (2, 3)]}
    assert found["splits"][0]["per_class"] == {"ant": 1, "bee": 1}
    split.select([0, 1]).save_to_disk(str(tmp_path / "one"))
    assert check(tmp_path / "one")[0] == 0


def test_sequences(check, tmp_path: Path):
    rows = [
        ("label", "text"),
        *((str(number % 2), f"text number {number}") for number in range(20)),
        ("0", "longer " * 9),
    ]
    for split, lines in (("train", rows), ("val", [rows[0], rows[1], rows[2], ("1", "alone")])):
        (tmp_path / f"{split}.tsv").write_text("\n".join("\t".join(row) for row in lines) + "\n")
    code, found = check(tmp_path, "--layout=text_bytes", "--seq-len=14")
    assert (code, found["layout"], found["faults"]) == (0, "text_bytes", [])
    assert found["splits"][0] == {
        "name": "train",
        "samples": 21,
        "per_class": {"0": 11, "1": 10},
        "lengths": {"min": 13, "median": 14, "max": 63},
        "cut": 1 / 21,
        "example": "0: text number 0",
    }
    code, text = check(tmp_path, "--layout=text_bytes", "--format=table")
    assert text.splitlines()[1:] == [
        "train: 21 samples in 2 classes, 10 (1) to 11 (0) a class; 13 to 63 tokens, median 14",
        "  0: text number 0",
        "val: 3 samples in 2 classes, 1 (0) to 2 (1) a class; 5 to 13 tokens, median 13",
        "  0: text number 0",
        "2 of 3 val samples are in the train split too",
        "nothing is wrong",
    ]
    assert check(tmp_path, "--layout=text_bytes", "--text-key=body")[0] == 2
    assert check(tmp_path, "--layout=text_bytes", "--seq-len=0") == (2, "data.seq_len=0 must be at least 1, or null")


def test_generated_sequences(capsys: pytest.CaptureFixture[str]):
    from ecoformer.cli import check_data

    assert check_data.main(["--layout", "listops", "--seq-len", "12", "--max-depth", "3"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("generated: listops\ntrain: 96000 samples in 10 classes, ") and "; 4 to 12 tokens, " in out
    assert check_data.main([]) == 2
    assert capsys.readouterr().err.startswith(
        "error: ROOT is missing: give the folder of the data, or --layout listops"
    )

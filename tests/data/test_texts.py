"""Texts at byte level in every layout: the same batches, real development splits, and one line for what is wrong."""

from __future__ import annotations

import csv
import gzip
import lzma
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from ecoformer.errors import InputError


def samples(split: str) -> list[tuple[str, str]]:
    """(class, text): quotes, tabs' neighbours, letters of several bytes."""
    words = {"train": ("good", "bad", "fair"), "test": ("fine", "awful", "poor")}[split]
    return [
        (label, f'{label}: a "{word}", naïve film {number}\r')
        for label in ("neg", "pos")
        for number, word in enumerate(words * 4)
    ]


def folder(root: Path) -> Path:
    for split in ("train", "test"):
        for number, (label, text) in enumerate(samples(split)):
            path = root / split / label / f"{number:02}_1.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(text.encode())
    (root / "train" / "unsup").mkdir()
    (root / "train" / "unsup" / "0_0.txt").write_text("no class")
    return root


def tables(root: Path) -> Path:
    root.mkdir()
    with gzip.open(root / "train.csv.gz", "wt", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(
            [("text", "stars", "label"), *((text, 3, label) for label, text in samples("train"))]
        )
    lines = ["label\ttext", *(f"{label}\t{text.rstrip()}" for label, text in samples("test"))]
    (root / "test.tsv").write_text("\ufeff" + "\n".join(lines) + "\n", newline="\n")
    return root


def by_path(root: Path) -> Path:
    path = root.with_suffix(".tsv.xz")
    with lzma.open(path, "wt", newline="\n", encoding="utf-8") as file:
        for split in ("test", "train"):
            file.writelines(f"corpus/{split}/{label}/7.txt\t{text}\n" for label, text in samples(split))
        file.write("corpus/train/unsup/7.txt\tno class\n")
    return path


def saved(root: Path) -> Path:
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])})
    splits = {}
    for split in ("train", "test"):
        labels, texts = zip(*samples(split), strict=True)
        splits[split] = datasets.Dataset.from_dict({"text": list(texts), "label": list(labels)}, features=features)
    splits["unsupervised"] = splits["test"]
    datasets.DatasetDict(splits).save_to_disk(str(root))
    return root


@pytest.mark.parametrize("layout", [folder, tables, by_path, saved])
def test_every_layout_gives_the_same_samples(open_data, tmp_path: Path, layout):
    root = layout(tmp_path / "texts")
    keys: dict[str, Any] = {"name": "text_bytes", "seq_len": 40, "val_share": 0.25}
    data = open_data(root=root, **keys)
    assert (data.vocab_size, data.seq_len, data.class_names) == (257, 40, ["neg", "pos"])
    assert (data.num_train, data.num_val, data.in_memory) == (18, 6, True)
    test = open_data(root=root, val_split="test", **keys)
    assert (test.num_train, test.num_val) == (18, 24)
    for loader, split in ((data.train_loader, "train"), (data.val_loader, "train"), (test.val_loader, "test")):
        known = {text.encode().strip(): label for label, text in samples(split)}
        for ids, targets in loader:
            assert ids.shape[1:] == (40,) and ids.dtype == targets.dtype == torch.int64
            for row, target in zip(ids, targets, strict=True):
                text = bytes(token - 1 for token in row.tolist() if token).strip()
                assert known.pop(text) == data.class_names[target]
                assert (row[int((row != 0).sum()) :] == 0).all()  # padding stands at the end
        assert loader is not test.val_loader or not known  # the test data are seen once and whole


def test_the_development_split_is_the_same_in_every_run_and_balanced(open_data, tmp_path: Path):
    keys: dict[str, Any] = {"name": "text_bytes", "seq_len": 64, "root": folder(tmp_path / "texts")}

    def rows(**more: Any) -> list[list[int]]:
        data = open_data(**keys, **more)
        return sorted(row for ids, _ in data.val_loader for row in ids.tolist())

    assert rows(seed=1) == rows(seed=2) == rows(with_train=False)
    assert len(rows(dev_samples=8)) == 8
    validated = open_data(**keys, dev_samples=8)
    assert sorted(validated.val_loader.targets.tolist()) == [0] * 4 + [1] * 4
    train = {tuple(row) for ids, _ in open_data(**keys, train={"batch_size": 1}).train_loader for row in ids.tolist()}
    assert len(train) == 22 and not train & set(map(tuple, rows()))
    (tmp_path / "texts" / "test").rename(tmp_path / "texts" / "dev")
    assert open_data(**keys).num_val == 24  # a split of its own


def test_order_processes_resume_and_calibration_are_those_of_images(open_data, tmp_path: Path):
    keys: dict[str, Any] = {"name": "text_bytes", "seq_len": 32, "root": folder(tmp_path / "texts")}

    def epoch(number: int, first: int = 0, **more: Any) -> list[torch.Tensor]:
        loader = open_data(**keys, **more).train_loader
        loader.set_epoch(number, first)
        return [ids for ids, _ in loader]

    whole = epoch(3, train={"batch_size": 6})
    assert len(whole) == 3 and not torch.equal(whole[0], epoch(2, train={"batch_size": 6})[0])
    assert torch.equal(epoch(3, 1, train={"batch_size": 6})[0], whole[1])
    parts = [epoch(3, train={"batch_size": 3}, rank=rank, world_size=2) for rank in range(2)]
    assert all(torch.equal(parts[rank][0], whole[0][rank::2]) for rank in range(2))
    ids = open_data(**keys).calibration_images(5, seed=7)
    assert ids.shape == (5, 32) and ids.dtype == torch.int64 and (ids[:, 0] != 0).all()
    assert torch.equal(open_data(**keys, seed=3).calibration_images(7, seed=7)[:5], ids)
    with pytest.raises(InputError, match="99 calibration samples > 22 training samples of text_bytes: lower callbacks"):
        open_data(**keys).calibration_images(99, seed=7)


def test_limits_of_memory_and_samples(open_data, tmp_path: Path):
    keys: dict[str, Any] = {"name": "text_bytes", "root": folder(tmp_path / "texts"), "train": {"smoothing": 0.1}}
    data = open_data(seq_len=9, max_train_samples=6, max_val_samples=1, **keys)
    assert (data.num_train, data.num_val, sorted(data.train_loader.targets)) == (6, 1, [0, 0, 0, 1, 1, 1])
    assert data.notes[1:] == [
        "data.seq_len=9 cuts 6 of 6 training samples",
        "data.seq_len=9 cuts 1 of 1 validation samples",
    ]
    with pytest.raises(InputError) as caught:
        open_data(seq_len=2**27, **keys)
    assert str(caught.value) == (
        "data.seq_len=134217728 needs 6.0 GiB for 24 samples, the limit is 2 GiB: lower it, or data.max_train_samples"
    )


def test_bytes_that_are_no_text_keep_their_value(open_data, tmp_path: Path):
    for name in ("train.tsv", "val.csv"):
        separator = b"\t" if name.endswith("tsv") else b","
        rows = [b"text", b"label"], *([bytes([255, 0x80, number]), b"1" * (number % 2 + 1)] for number in range(40, 44))
        (tmp_path / name).write_bytes(b"".join(separator.join(row) + b"\n" for row in rows))
    data = open_data(name="text_bytes", root=tmp_path, seq_len=4)
    assert data.class_names == ["1", "11"]
    ids, _ = next(iter(data.val_loader))
    assert sorted(ids.tolist()) == [[256, 129, number + 1, 0] for number in (40, 41, 42, 43)]


def table(root: Path, content: str, name: str = "train.tsv") -> Path:
    (root / name).write_text(content)
    return root


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "{0}/train.tsv is empty: give a table whose first line names its columns"),
        ("text\tlabel\n", "{0}/train.tsv has no rows below its first line: give a table of samples"),
        ("text\tstars\na\t1\n", "{0}/train.tsv has no column 'label' (there: text, stars): set data.label_key"),
        ("words\tlabel\na\t1\n", "{0}/train.tsv has no column 'text' (there: words, label): set data.text_key"),
        ("text\tlabel\na\tb\t1\n", "{0}/train.tsv line 2 has 3 fields, the first line names 2: correct it"),
        ("text\tlabel\na\t1\n\t2\n", "{0}/train.tsv line 3 has no text: a sample needs at least one byte; remove it"),
        ("text\tlabel\na\t1\nb\t\n", "{0}/train.tsv line 3 has no label: give it the name of a class, or remove it"),
        ("text\tlabel\na\t1\nb\t1\n", "data.root={0} has one class (1): a classifier needs at least two"),
    ],
)
def test_tables_that_are_none(open_data, tmp_path: Path, content: str, message: str):
    with pytest.raises(InputError) as caught:
        open_data(name="text_bytes", root=table(tmp_path, content), seq_len=8)
    assert str(caught.value) == message.format(tmp_path)


def test_refusals(open_data, tmp_path: Path):
    def refusal(root: Path | None = None, **keys: Any) -> str:
        with pytest.raises(InputError) as caught:
            open_data(name="text_bytes", **{"seq_len": 8, **keys}, **({} if root is None else {"root": root}))
        assert "\n" not in str(caught.value)
        return str(caught.value)

    needs = "data=text_bytes needs data.root: set it to a folder of texts, a table, or a saved dataset"
    assert refusal() == needs
    assert refusal(tmp_path / "x").startswith(f"data.root={tmp_path}/x does not exist: set data.root to a folder of")
    assert refusal(tmp_path).startswith(
        f"data.root={tmp_path} holds no texts: it has no train/CLASS/*.txt, no train.tsv"
    )
    root = folder(tmp_path / "texts")
    assert refusal(root, pixels_of="digits") == (
        "data.pixels_of=digits belongs to data=pixels, not to data=text_bytes: leave it out"
    )
    (root / "test" / "odd").mkdir()
    assert refusal(root) == f"{root}/test/odd holds no texts (*.txt): add some, or remove the class"
    (root / "test" / "odd" / "a.txt").write_text("a")
    assert refusal(root) == f"data.root={root}: class 'odd' is in the test split and not in train: both need the same"
    (root / "test" / "odd" / "a.txt").write_text("")
    assert refusal(root) == f"{root}/test/odd/a.txt has no text: a sample needs at least one byte; remove it"
    path = by_path(tmp_path / "whole")
    path.write_bytes(path.read_bytes()[:-40])
    assert refusal(path).startswith(f"{path} cannot be read (")
    path = tmp_path / "flipped.csv.gz"
    whole = bytearray(gzip.compress(b"text,label\na,1\nb,2\n"))
    whole[10] = 255  # a block of no known kind
    path.write_bytes(whole)
    assert refusal(path).startswith(f"{path} cannot be read (")
    path = tmp_path / "one.tsv"
    path.write_text("corpus/train/pos/1.txt\tgood\nnot a path\tbad\n")
    assert refusal(path) == (f"{path} line 2 is not PATH TAB TEXT with a path .../train/CLASS/FILE: correct it")
    for name, content, message in (
        ("one.tsv", "", "one.tsv is empty"),
        ("one.csv", "", "one.csv is empty"),
        ("one.csv", "\ntext,label\n", "one.csv is empty"),
        ("one.tsv", "corpus/train/pos/1.txt\tgood\n\nx\n", "one.tsv line 3 is not PATH TAB TEXT"),
        ("one.csv", "corpus/train/pos/1.txt,good\n\nx\n", "one.csv line 3 is not PATH TAB TEXT"),
    ):
        (tmp_path / name).write_text(content)
        assert message in refusal(tmp_path / name)
    path.write_text("text\tlabel\na\t1\nb\t2\nc\t1\nd\t2\n")
    assert refusal(path, val_split="test") == (
        f"data.root={path} has no test split (there: train, val): set data.val_split"
    )


def test_what_is_not_read_is_said(open_data, tmp_path: Path, caplog):
    root = folder(tmp_path / "texts")
    (root / "train" / "neg" / "more.TXT").write_text("x")
    (root / "train" / "pos" / "deeper").mkdir()
    assert (
        f"{root}/train: 2 files and folders are not read as texts (*.txt)"
        in open_data(name="text_bytes", root=root, seq_len=8).notes
    )
    for name in ("train.tsv", "train.csv"):
        table(tmp_path, "text\tlabel\n" + "a\t1\nb\t2\n" * 4, name)
    open_data(name="text_bytes", root=tmp_path, seq_len=8)
    assert f"{tmp_path}/train.tsv is read, and not train.csv" in caplog.text


def test_names_are_those_of_the_whole(open_data, tmp_path: Path):
    rows = "".join(f"row{number}\t{number % 2}\n" for number in range(20))
    path = table(tmp_path, f"text\tlabel\n{rows}") / "train.tsv"
    source = open_data(name="text_bytes", root=path, seq_len=8, max_val_samples=2).val_source
    for index in range(2):
        assert source.name(index).split()[-1] == source.decode(source.sample(index)).removeprefix("row")


def test_a_test_split_alone_can_be_evaluated_and_not_trained_on(open_data, tmp_path: Path):
    keys: dict[str, Any] = {"name": "text_bytes", "seq_len": 8, "root": folder(tmp_path / "texts"), "val_split": "test"}
    shutil.rmtree(tmp_path / "texts" / "train")
    assert open_data(**keys, with_train=False).num_val == 24
    with pytest.raises(InputError, match=r"^data\.root=.*texts has no training split: add one$"):
        open_data(**keys)


def test_columns_of_a_saved_dataset_that_do_not_fit(open_data, tmp_path: Path):
    root = saved(tmp_path / "hf")
    for keys, message in (
        ({"text_key": "label"}, f"data.root={root}: column 'label' holds no text: set data.text_key"),
        ({"text_key": "body"}, f"data.root={root} has no column 'body' (there: text, label): set data.text_key"),
        ({"label_key": "text"}, f"data.root={root}: column 'text' holds Value('string'), not class numbers: set data."),
    ):
        with pytest.raises(InputError) as caught:
            open_data(name="text_bytes", root=root, seq_len=8, **keys)
        assert str(caught.value).startswith(message)

"""Pickled sequences of others: what is read of them, what it becomes, and what is refused."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ecoformer.cli import import_sequences
from ecoformer.errors import InputError


def samples(count: int = 8, largest: int = 16) -> list[dict[str, Any]]:
    """As the pickled Long Range Arena has them: int32 arrays padded with 0, and NumPy's labels."""
    rng = np.random.default_rng(0)
    found = []
    for number in range(count):
        ids = np.zeros(12, np.int32)
        ids[: 4 + number % 8] = rng.integers(1, largest, 4 + number % 8)
        found.append({"input_ids_0": ids, "label": np.int64(number % 2)})
    return found


@pytest.fixture
def convert(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """convert(content, protocol): the exit code, what was printed, and the file."""

    def run(content: Any, protocol: int = 4, out: str = "ids/train.npz") -> tuple[int, str, Path]:
        path = tmp_path / "split.pickle"
        path.write_bytes(content if isinstance(content, bytes) else pickle.dumps(content, protocol))
        code = import_sequences.main([str(path), "--out", str(tmp_path / out)])
        printed = capsys.readouterr()
        return code, printed.out + printed.err, tmp_path / out

    return run


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_training_reads_what_was_pickled(open_data, convert, protocol: int):
    rows = samples()
    code, printed, path = convert(rows, protocol)
    assert code == 0 and printed.startswith(f"{path}: 8 samples of up to 11 tokens, ids to 15, labels 0 to 1")
    for name, vocab_size, classes in (("listops", 16, 10), ("text_bytes", 257, 2)):
        keys = {
            "name": name,
            "root": path.parent,
            "train": {"batch_size": 1},
            "val_share": 0.25,
        }
        data = open_data(seq_len=12, **keys)
        assert (data.vocab_size, data.num_classes, data.num_train, data.num_val) == (vocab_size, classes, 6, 2)
        read = [batch for loader in (data.train_loader, data.val_loader) for batch in loader]
        assert all(ids.dtype == torch.int64 for ids, _ in read)
        found = sorted((*ids[0].tolist(), int(target)) for ids, target in read)
        assert found == sorted((*row["input_ids_0"].tolist(), int(row["label"])) for row in rows)


def test_a_larger_vocabulary_than_ours(open_data, convert):
    path = convert(samples(largest=400))[2]
    data = open_data(name="listops", root=path.parent, seq_len=12)
    assert 300 < data.vocab_size <= 400


def rows(*ids: list[Any]) -> list[dict[str, Any]]:
    return [{"input_ids_0": row, "label": 0} for row in ids]


class Runs:
    def __reduce__(self):
        return os.mkdir, ("made",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([Runs()], "split.pickle names posix.mkdir: NumPy arrays, lists and dictionaries alone are read"),
        (torch.nn.Linear, "split.pickle names torch.nn.modules.linear.Linear: NumPy arrays, lists and"),
        (b"none", "split.pickle cannot be unpickled ("),
        ([], "ids are float64 of shape (0,): give whole numbers in 2 dimensions"),
        ([{"words": [1], "label": 0}], "split.pickle must hold a list of samples with input_ids_0 and label, padded"),
        (
            {"input_ids_0": [1], "label": 0},
            "split.pickle must hold a list of samples with input_ids_0 and label, padded",
        ),
        (7, "split.pickle must hold a list of samples with input_ids_0 and label, padded to one length ("),
        (
            rows([1, 2], [1]),
            "split.pickle must hold a list of samples with input_ids_0 and label, padded to one length (setting",
        ),
        (
            [{"input_ids_0": [1], "input_ids_1": [1], "label": 0}],
            "has pairs of sequences (input_ids_1): give a task of",
        ),
        (rows([1.5]), "ids are float64 of shape (1, 1): give whole numbers in 2 dimensions"),
        (rows([1, 0, 2]), "sample 0 is empty or has a 0 inside: 0 is padding, at the end"),
        (rows([1], [0]), "sample 1 is empty or has a 0 inside"),
        (rows([-1]), "holds 1 samples with ids -1 to -1, and 1 labels from 0: as many are needed, ids"),
        (rows([{}]), "ids are object of shape (1, 1): give whole numbers in 2"),
    ],
)
def test_refusals(convert, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: Any, message: str):
    monkeypatch.chdir(tmp_path)
    code, printed, out = convert(content)
    assert code == 2 and message in printed and printed.startswith("error: ") and printed.count("\n") == 1
    assert not out.exists() and not Path("made").exists()


def test_damaged_files_and_labels_beyond_the_classes(open_data, convert, tmp_path: Path):
    def refusal(name: str = "listops") -> str:
        with pytest.raises(InputError) as caught:
            open_data(name=name, root=tmp_path / "ids", seq_len=12)
        return str(caught.value)

    assert convert([{"input_ids_0": [1], "label": 12}] * 4)[0] == 0
    assert refusal() == f"data.root={tmp_path}/ids has a label 12, the classes are 0 to 9: correct it"
    path = tmp_path / "ids" / "train.npz"
    path.write_bytes(path.read_bytes()[:50])
    assert refusal("text_bytes").startswith(f"{path} cannot be read (")
    np.savez(path, ids=np.array([[1, 0, 1]]), labels=np.array([0]))
    assert refusal() == f"{path}: sample 0 is empty or has a 0 inside: 0 is padding, at the end"
    assert convert(samples(), out="train.pt")[:2] == (
        2,
        f"error: --out {tmp_path}/train.pt must end in .npz, as train.npz does\n",
    )

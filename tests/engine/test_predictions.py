"""The files of every guess, of one process and of several."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch

from ecoformer.engine import distributed
from ecoformer.engine.predictions import Predictions

NAMES = ["ant", "bee, a", "cat"]
LOGITS = torch.tensor([[2.0, 1, 0], [0, 3, 0], [5, 0, 1], [0, 0, 1], [1, 0, 0]])
LABELS = torch.tensor([0, 1, 2, 2, 0])


def read(path: Path) -> list[list[str]]:
    with open(path) as file:
        return list(csv.reader(file))


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_the_images_of_all_processes_in_their_order(
    tmp_path: Path, ranks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    shares = [Predictions() for _ in range(ranks)]
    for rank, share in enumerate(shares):
        for batch in range(rank, 5, ranks):  # batches of one image
            share.add(LOGITS[batch : batch + 1], LABELS[batch : batch + 1])
    monkeypatch.setattr(distributed, "gather_objects", lambda rows: [share.rows for share in shares])
    shares[0].write(tmp_path / "new", NAMES, "image {}".format)
    predictions = read(tmp_path / "new" / "predictions.csv")
    assert predictions[0] == ["image", "class", "prediction", "probability", "in_top5"]
    probabilities = LOGITS.softmax(1).max(1).values.tolist()
    expected = [("ant", "ant"), ("bee, a", "bee, a"), ("cat", "ant"), ("cat", "cat"), ("ant", "ant")]
    for number, (row, (label, guess)) in enumerate(zip(predictions[1:], expected, strict=True)):
        assert row == [f"image {number}", label, guess, f"{probabilities[number]:.6f}", "1"]
    assert read(tmp_path / "new" / "per_class.csv")[1:] == [
        ["ant", "2", "100.00", "100.00"],
        ["bee, a", "1", "100.00", "100.00"],
        ["cat", "2", "50.00", "100.00"],
    ]
    assert read(tmp_path / "new" / "confusion.csv") == [
        ["true class", *NAMES],
        ["ant", "2", "0", "0"],
        ["bee, a", "0", "1", "0"],
        ["cat", "1", "0", "1"],
    ]


def test_a_class_without_images_has_no_accuracy(tmp_path: Path) -> None:
    predictions = Predictions()
    predictions.add(torch.eye(6), torch.tensor([0, 1, 2, 3, 4, 4]))
    predictions.write(tmp_path, list("abcdef"), str)
    per_class = read(tmp_path / "per_class.csv")[1:]
    assert per_class[5] == ["f", "0", "", ""] and per_class[4] == ["e", "2", "50.00", "100.00"]

"""What a model says of every image: as files, and counted where an image has several right classes or none.

Shape legend: B batch, K classes.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ecoformer.engine import distributed
from ecoformer.engine.batches import top5
from ecoformer.files import write_text
from ecoformer.files.table import to_csv


class Predictions:
    """Collects an evaluation's guesses for predictions.csv, per_class.csv and confusion.csv.

    The process of rank r sees every world-size-th image from the r-th on.
    """

    def __init__(self) -> None:
        self.rows: list[tuple[int, int, float, bool]] = []  # class, guess, its probability, whether in the top five

    def add(self, logits_BK: Tensor, labels_B: Tensor) -> None:
        """A batch; to be called by `evaluate`."""
        probability, guess = logits_BK.softmax(dim=1).max(dim=1)
        in_top5 = (top5(logits_BK) == labels_B[:, None]).any(dim=1)
        columns = (labels_B.tolist(), guess.tolist(), probability.tolist(), in_top5.tolist())
        self.rows += zip(*columns, strict=True)

    def write(self, folder: Path, names: Sequence[str], image: Callable[[int], str]) -> None:
        """Write the three files; rank 0 does, but every rank must call it.

        Args:
            names: of the classes.
            image: what the n-th image of the validation set is called.
        Raises:
            InputError: a file cannot be written.
        """
        shares = distributed.gather_objects(self.rows)
        if not distributed.is_main():
            return
        number = sum(map(len, shares))
        rows = [shares[index % len(shares)][index // len(shares)] for index in range(number)]
        counts = np.zeros((len(names), len(names)), np.int64)
        in_top5 = np.zeros(len(names), np.int64)
        table: list[dict[str, Any]] = []
        for index, (label, guess, probability, is_in_top5) in enumerate(rows):
            counts[label, guess] += 1
            in_top5[label] += is_in_top5
            what = {"image": image(index), "class": names[label], "prediction": names[guess]}
            table.append({**what, "probability": f"{probability:.6f}", "in_top5": int(is_in_top5)})
        per_class: list[dict[str, Any]] = []
        for name, hits1, hits5, images in zip(names, counts.diagonal(), in_top5, counts.sum(1), strict=True):
            rates = (f"{100 * hits / images:.2f}" if images else "" for hits in (hits1, hits5))
            per_class.append({"class": name, "images": images, **dict(zip(("top1", "top5"), rates, strict=True))})
        confusion = [
            {"true class": name, **dict(zip(names, line, strict=True))}
            for name, line in zip(names, counts, strict=True)
        ]
        for file, lines in (("predictions", table), ("per_class", per_class), ("confusion", confusion)):
            write_text(folder / f"{file}.csv", to_csv(lines) + "\n")


class RealLabels:
    """Counts hits among the right classes (ImageNet ReaL, Beyer et al., 2020); processes share images as there.

    Args:
        labels: the right classes of every image of the validation set; images without any do not count.
    """

    def __init__(self, labels: Sequence[Sequence[int]]) -> None:
        self.own = iter(labels[distributed.rank() :: distributed.world_size()])
        self.counts = torch.zeros(3, dtype=torch.float64)  # top-1 hits, top-5 hits, images

    def add(self, logits_BK: Tensor, labels_B: Tensor) -> None:
        """A batch; to be called by `evaluate`."""
        for guesses in top5(logits_BK).tolist():
            if right := next(self.own):
                hits = [guess in right for guess in guesses]
                self.counts += torch.tensor([hits[0], any(hits), 1])

    def figures(self, device: torch.device) -> dict[str, Any]:
        """top1 and top5 in percent, and `num_images`, over all ranks; every rank must call it."""
        hits1, hits5, images = distributed.all_reduce_sum(self.counts.to(device)).tolist()
        scale = 100 / images if images else 0.0
        return {"top1": scale * hits1, "top5": scale * hits5, "num_images": int(images)}

"""Accuracy where an image may have several right classes, or none (ImageNet ReaL, Beyer et al., 2020)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ecoformer.engine import distributed
from ecoformer.engine.batches import top5


class RealLabels:
    """Counts hits among the right classes; the process of rank r sees every world-size-th image from the r-th on.

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

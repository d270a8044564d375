"""Exact counts, and a throughput that leaves the first batch out."""

from __future__ import annotations

import time

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ecoformer.engine.evaluation import evaluate
from ecoformer.errors import InputError

CPU = torch.device("cpu")


class Lookup(nn.Module):
    """Returns the logits that the images hold."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1)


def batches(logits: torch.Tensor, labels: torch.Tensor, size: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    images = logits[:, None, None, :]
    return list(zip(images.split(size), labels.split(size), strict=True))


@pytest.mark.parametrize("classes", [3, 10])
def test_counts_are_exact_with_a_smaller_last_batch(classes: int) -> None:
    logits, labels = torch.randn(23, classes), torch.randint(classes, (23,))
    ranks = (logits > logits.gather(1, labels[:, None])).sum(1)
    result = evaluate(Lookup(), batches(logits, labels, 8), CPU)
    assert result.num_images == 23
    assert result.top1 == pytest.approx(100 * (ranks < 1).sum().item() / 23)
    assert result.top5 == pytest.approx(100 * (ranks < min(5, classes)).sum().item() / 23)
    assert result.loss == pytest.approx(F.cross_entropy(logits.double(), labels).item(), rel=1e-9)


def test_mode_is_restored_and_eval_mode_is_used() -> None:
    class Checks(Lookup):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            assert not self.training and not torch.is_grad_enabled()
            return super().forward(images)

    model = Checks().train()
    evaluate(model, batches(torch.randn(4, 3), torch.zeros(4, dtype=torch.int64), 2), CPU)
    assert model.training


@pytest.mark.parametrize("num_batches", [1, 4])
def test_throughput_leaves_out_the_first_batch(num_batches: int) -> None:
    class Slow(Lookup):
        calls = 0

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            time.sleep(0.5 if self.calls == 0 else 0.02)
            self.calls += 1
            return super().forward(images)

    labels = torch.zeros(10 * num_batches, dtype=torch.int64)
    result = evaluate(Slow(), batches(torch.randn(len(labels), 3), labels, 10), CPU)
    assert 100 < result.images_per_second <= 10 / 0.02
    assert result.num_images == 10 * num_batches


def test_no_images() -> None:
    with pytest.raises(InputError, match="the validation set has no images"):
        evaluate(Lookup(), [], CPU)

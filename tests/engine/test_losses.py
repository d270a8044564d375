"""Losses beside cross entropy: timm's, and runs under them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from fakes import FakeData, make_trainer
from timm.loss import BinaryCrossEntropy, JsdCrossEntropy

from ecoformer.config.schema import TrainConfig
from ecoformer.engine.optim import build_loss


def test_binary_cross_entropy_of_labels_and_of_soft_targets() -> None:
    logits, labels = torch.randn(4, 5), torch.tensor([0, 4, 2, 2])
    soft = torch.rand(4, 5)
    one_hot = F.one_hot(labels, 5).float()
    plain = build_loss(TrainConfig(bce_loss=True))
    torch.testing.assert_close(plain(logits, labels), F.binary_cross_entropy_with_logits(logits, one_hot))
    torch.testing.assert_close(plain(logits, soft), F.binary_cross_entropy_with_logits(logits, soft))
    summed = build_loss(TrainConfig(bce_loss=True, bce_sum=True, bce_target_thresh=0.2, smoothing=0.1))
    binary = (soft > 0.2).float()
    expected = F.binary_cross_entropy_with_logits(logits, binary, reduction="none").sum(-1).mean()
    torch.testing.assert_close(summed(logits, soft), expected)
    weighted = build_loss(TrainConfig(bce_loss=True, bce_pos_weight=2.0, smoothing=0.1))
    torch.testing.assert_close(weighted(logits, labels), BinaryCrossEntropy(0.1, pos_weight=2.0)(logits, labels))
    assert weighted(logits.bfloat16(), labels).dtype == torch.float32


def test_jensen_shannon_divergence_of_splits() -> None:
    logits, labels = torch.randn(6, 5), torch.tensor([0, 4]).repeat(3)
    loss = build_loss(TrainConfig(jsd_loss=True, aug_splits=3, smoothing=0.1))
    torch.testing.assert_close(loss(logits, labels), JsdCrossEntropy(3, smoothing=0.1)(logits, labels))
    same = logits[:2].repeat(3, 1)
    expected = F.cross_entropy(same[:2], labels[:2], label_smoothing=0.1)
    torch.testing.assert_close(loss(same, labels), expected)  # splits that agree add nothing


class SplitData(FakeData):
    """Every batch twice, as two splits."""

    def __init__(self) -> None:
        super().__init__()
        plain = type(self.train_loader)

        class Loader(plain):  # type: ignore[valid-type, misc]
            def __iter__(self) -> Any:
                for images, labels in super().__iter__():
                    yield torch.cat([images, images.flip(3)]), labels.repeat(2)

        self.train_loader.__class__ = Loader


@pytest.mark.parametrize("changes", [{"bce_loss": True, "bce_sum": True}, {"jsd_loss": True, "aug_splits": 2}])
def test_a_run_learns(tmp_path: Path, changes: dict[str, Any]) -> None:
    data = SplitData() if "aug_splits" in changes else FakeData()
    trainer = make_trainer(tmp_path, data, epochs=8, grad_accum=2, **changes)
    assert trainer.fit()["top1"] > 60

"""When random features are drawn anew, that every rank and the EMA model get them, and that a resume repeats it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from fakes import FakeModel, make_trainer
from torch import Tensor

from ecoformer.config.schema import FeatureRedrawConfig
from ecoformer.engine.callbacks import FeatureRedraw, redraw_due, redraw_seed
from ecoformer.nn.random_features import RedrawnAttention, redraw_features


class Features(RedrawnAttention):
    drawn: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("drawn", torch.zeros(3))

    def redraw(self, generator: torch.Generator) -> None:
        self.drawn.copy_(torch.randn(3, generator=generator))

    def forward(self, x_BND: Tensor) -> Tensor:
        return x_BND + self.drawn.mean()


class RedrawnModel(FakeModel):
    def __init__(self) -> None:
        super().__init__(hashed=False)
        self.attn = Features()


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (FeatureRedrawConfig(), [1, 2, 3, 4, 5]),
        (FeatureRedrawConfig(every=2), [2, 4]),
        (FeatureRedrawConfig(enabled=False), []),
    ],
)
def test_due(config: FeatureRedrawConfig, expected: list[int]) -> None:
    assert [epoch for epoch in range(6) if redraw_due(config, epoch)] == expected


def test_the_draw_depends_on_seed_and_epoch_alone() -> None:
    assert len({redraw_seed(seed, epoch) for seed in range(20) for epoch in range(50)}) == 1000
    one, other = RedrawnModel(), RedrawnModel()
    kept = one.attn.drawn
    assert redraw_features(one, 3) == redraw_features(other, 3) == 1
    assert kept is one.attn.drawn and torch.equal(kept, other.attn.drawn)
    redraw_features(other, 4)
    assert not torch.equal(kept, other.attn.drawn)
    assert redraw_features(FakeModel(hashed=False), 3) == 0


def redrawing_trainer(folder: Path, epochs: int = 3):
    torch.manual_seed(7)
    trainer = make_trainer(folder, model=RedrawnModel(), epochs=epochs)
    trainer.callbacks.append(FeatureRedraw(FeatureRedrawConfig(every=2)))
    return trainer


def test_features_change_before_the_epochs_that_are_due_and_a_resume_agrees(tmp_path: Path) -> None:
    straight = redrawing_trainer(tmp_path / "straight")
    straight.fit()
    expected = RedrawnModel()
    redraw_features(expected, redraw_seed(straight.seed, 2))
    assert torch.equal(straight.model.attn.drawn, expected.attn.drawn)
    assert straight.state.ema is not None and torch.equal(straight.state.ema.module.attn.drawn, expected.attn.drawn)
    records = [json.loads(line) for line in (tmp_path / "straight" / "metrics.jsonl").read_text().splitlines()]
    redraws = [record for record in records if record["event"] == "feature_redraw"]
    assert [(record["epoch"], record["layers"]) for record in redraws] == [(2, 1)]

    redrawing_trainer(tmp_path / "cut").fit(stop_after=2)
    resumed = redrawing_trainer(tmp_path / "cut")
    resumed.fit(resume=tmp_path / "cut" / "last.pt")
    state, again = straight.model.state_dict(), resumed.model.state_dict()
    assert all(torch.equal(state[key], again[key]) for key in state)

"""When hashes are fitted, on what, and who gets them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from fakes import FakeData, FakeModel, make_trainer

from ecoformer.config import HashUpdateConfig
from ecoformer.engine.hash_update import due, fit_seed


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (HashUpdateConfig(), [0]),
        (HashUpdateConfig(at_epochs=[2, 5]), [2, 5]),
        (HashUpdateConfig(at_epochs=[], every=3), [0, 3, 6]),
        (HashUpdateConfig(at_epochs=[1], every=4), [0, 1, 4]),
        (HashUpdateConfig(at_epochs=[]), []),
        (HashUpdateConfig(enabled=False, at_epochs=[0, 1], every=1), []),
    ],
)
def test_due(config: HashUpdateConfig, expected: list[int]) -> None:
    assert [epoch for epoch in range(8) if due(config, epoch)] == expected


def test_seeds_differ_between_epochs_and_runs() -> None:
    assert len({fit_seed(seed, epoch) for seed in range(20) for epoch in range(50)}) == 1000


def test_fit_comes_before_the_steps_and_reaches_the_ema(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []

    class Recording(FakeData):
        def calibration_images(self, num_images: int, seed: int) -> torch.Tensor:
            calls.append((num_images, seed))
            assert trainer.step == 6 * len([call for call in calls[:-1]]) * 2  # epochs 0 and 2, 6 steps each
            return super().calibration_images(num_images, seed)

    config = HashUpdateConfig(at_epochs=[0, 2], num_images=5)
    trainer = make_trainer(tmp_path, Recording(), hash_update=config, epochs=3, max_steps=None)
    trainer.fit()
    assert calls == [(5, fit_seed(5, 0)), (5, fit_seed(5, 2))]
    assert trainer.ema is not None
    assert torch.equal(trainer.ema.module.attn.projection, trainer.model.attn.projection)
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    fits = [record for record in records if record["event"] == "hash_fit"]
    assert [(record["epoch"], record["step"], record["block"]) for record in fits] == [(0, 0, "attn"), (2, 12, "attn")]
    assert fits[0]["objective_before"] == -1.0 and fits[0]["accepted_bits"] == 3
    assert "attention_error" not in fits[0]  # unknown to this kind
    order = [record["event"] for record in records if record["epoch"] == 0]
    assert order[0] == "hash_fit" and order[-1] == "epoch"


def test_changed_buffers_reach_the_ema(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    assert trainer.ema is not None
    trainer.model.attn.projection.fill_(7.0)
    kept = trainer.ema.module.attn.projection
    assert not torch.equal(kept, trainer.model.attn.projection)
    trainer.sync_buffers()
    assert kept is trainer.ema.module.attn.projection  # in place
    assert torch.equal(kept, trainer.model.attn.projection)


def test_a_model_without_hashes_needs_no_images(tmp_path: Path) -> None:
    class NoImages(FakeData):
        def calibration_images(self, num_images: int, seed: int) -> torch.Tensor:
            raise AssertionError("nothing to fit")

    assert make_trainer(tmp_path, NoImages(), FakeModel(hashed=False)).fit()["epochs"] == 2


def test_table_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_trainer(tmp_path, epochs=1, progress=True).fit()
    out = capsys.readouterr().out
    assert "hash fit before epoch 1: 8 images" in out and "attn" in out and "3/4" in out
    assert "epoch 1/1" in out and "top-1" in out

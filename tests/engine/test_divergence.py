"""Steps with a non-finite loss or gradient: left out up to a limit, as if they had not been; then the run stops."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import FakeData, FakeLoader, make_model, make_trainer
from test_resume import assert_same

from ecoformer.config.schema import OptimConfig, ScheduleConfig
from ecoformer.engine.callbacks import Callback
from ecoformer.engine.divergence import Diverged
from ecoformer.engine.trainer import Trainer
from ecoformer.model.checkpoint import load_checkpoint


class BadBatches(FakeData):
    """Training batches of the given numbers in the first epoch hold a NaN."""

    def __init__(self, *numbers: int) -> None:
        super().__init__()

        class Loader(FakeLoader):
            def __iter__(self):
                for number, (images, labels) in enumerate(super().__iter__(), start=self.first_batch):
                    bad = self.epoch == 0 and number in numbers
                    yield images.where(torch.tensor(not bad), torch.nan), labels

        self.train_loader.__class__ = Loader


class BadGradient(Callback):
    """Makes the head's gradient infinite in the given steps; the loss stays finite."""

    name = "bad_gradient"

    def __init__(self, *steps: int) -> None:
        self.steps, self.now = steps, -1

    def on_fit_start(self, trainer: Trainer) -> None:
        trainer.model.head.weight.register_hook(lambda g: g * math.inf if self.now in self.steps else g)

    def on_step_start(self, trainer: Trainer, step: int) -> None:
        self.now = step


def records(run_dir: Path, event: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["event"] == event]


def state(trainer: Trainer) -> dict[str, Any]:
    assert trainer.state.ema is not None
    return {
        "model": dict(trainer.model.state_dict()),
        "ema": dict(trainer.state.ema.module.state_dict()),
        "optimizer": trainer.state.optimizer.state_dict()["state"],
    }


def test_a_skipped_batch_leaves_no_trace(tmp_path: Path) -> None:
    """Weights, optimiser, EMA and batch norm after the bad step are those before it; the schedule goes on."""
    before: dict[str, Any] = {}

    class Compare(Callback):
        def on_step_start(self, trainer: Trainer, step: int) -> None:
            if step == 2:
                before.update(copy.deepcopy(state(trainer)))
            elif step == 3:
                assert_same(before, state(trainer))

    trainer = make_trainer(tmp_path, BadBatches(2), max_skipped_batches=1, epochs=1, callbacks=[Compare()])
    figures = trainer.fit()
    assert trainer.step == 6 and trainer.state.skipped_batches == 1 and math.isfinite(figures["loss"])
    assert trainer.state.optimizer.state_dict()["state"][0]["step"] == 5
    (skipped,) = records(tmp_path, "skipped_batch")
    assert (skipped["step"], skipped["reason"], skipped["ranks"]) == (2, "loss", [0]) and skipped["lr"] > 0
    (epoch,) = records(tmp_path, "epoch")
    assert math.isfinite(epoch["train_loss"])


def test_one_more_than_the_limit_stops_with_the_last_good_checkpoint(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, BadBatches(1, 2, 4), max_skipped_batches=2, checkpoint={"every_steps": 1})
    with pytest.raises(Diverged) as caught:
        trainer.fit()
    message = str(caught.value)
    assert "loss is nan at step 4 of epoch 1 on rank 0, learning rate" in message and "\n" not in message
    assert "2 batches were skipped before (train.max_skipped_batches=2): lower optim.lr" in message
    saved = load_checkpoint(tmp_path / "last.pt")
    assert saved["step"] == 4 and all(value.isfinite().all() for value in saved["model"].values())


def test_the_count_goes_on_after_a_resume(tmp_path: Path) -> None:
    limits = {"max_skipped_batches": 1, "checkpoint": {"every_steps": 1}}
    with pytest.raises(Diverged):
        make_trainer(tmp_path, BadBatches(1, 3), **limits).fit()
    with pytest.raises(Diverged, match="1 batches were skipped before"):
        make_trainer(tmp_path, BadBatches(3), **limits).fit(resume=tmp_path / "last.pt")
    raised = {**limits, "max_skipped_batches": 2}
    assert make_trainer(tmp_path, BadBatches(3), **raised).fit(resume=tmp_path / "last.pt")["epochs"] == 2


@pytest.mark.parametrize("clip_grad", [None, 1.0])
def test_a_bad_gradient_under_a_finite_loss_never_reaches_the_weights(tmp_path: Path, clip_grad: float | None) -> None:
    optim = OptimConfig(lr=1e-2, clip_grad=clip_grad)
    trainer = make_trainer(tmp_path / "stops", optim=optim, callbacks=[BadGradient(3)], checkpoint={"every_steps": 1})
    with pytest.raises(Diverged, match=r"gradient norm is (nan|inf) at step 3 of epoch 1 on rank 0, learning rate"):
        trainer.fit()
    saved = load_checkpoint(tmp_path / "stops" / "last.pt")
    assert saved["step"] == 3 and all(value.isfinite().all() for value in saved["model"].values())
    options = {"optim": optim, "max_skipped_batches": 1, "callbacks": [BadGradient(3)]}
    assert make_trainer(tmp_path / "skips", **options).fit()["epochs"] == 2
    assert records(tmp_path / "skips", "skipped_batch")[0]["reason"] == "gradient norm"


def test_an_overflow_under_a_loss_scale_is_the_scalers(tmp_path: Path) -> None:
    """fp16's scaler leaves the step out by itself and halves its scale, which costs nothing of the limit ..."""
    trainer = make_trainer(tmp_path / "scaled", callbacks=[BadGradient(1)], epochs=1)
    trainer.state.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    trainer.fit()
    assert trainer.state.skipped_batches == 0 and trainer.state.scaler.get_scale() == 512
    assert trainer.state.optimizer.state_dict()["state"][0]["step"] == 5
    # ... until the scale is no explanation any more.
    trainer = make_trainer(tmp_path / "unscaled", callbacks=[BadGradient(*range(6))], epochs=1)
    trainer.state.scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    with pytest.raises(Diverged, match=r"gradient norm is (nan|inf) at step 2 of epoch 1"):
        trainer.fit()


def test_an_epoch_of_nothing_but_skipped_batches(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, BadBatches(*range(6)), make_model(), max_skipped_batches=6)
    assert trainer.fit()["epochs"] == 2
    first, second = records(tmp_path, "epoch")
    assert first["train_loss"] is None and math.isfinite(second["train_loss"])


def test_an_evaluation_that_is_no_number_is_no_result(tmp_path: Path) -> None:
    """A step so long that the weights stay finite and nothing computed from them does."""
    far = OptimConfig(name="sgd", lr=1e38, momentum=0.5, weight_decay=0.0)
    trainer = make_trainer(tmp_path, optim=far, schedule=ScheduleConfig(name="none"), ema_decay=0.0, max_steps=1)
    with pytest.raises(
        Diverged, match=r"evaluation of epoch 1: \d+ of 20 validation images get logits that are no num"
    ):
        trainer.fit()
    assert not (tmp_path / "best.pt").exists()
    for line in (tmp_path / "metrics.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))

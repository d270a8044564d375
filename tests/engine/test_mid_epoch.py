"""A run stopped after any step goes on as if nothing had happened: bit for bit, each record and each fit once."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fakes import FakeData, FakeLoader, FakeModel, make_model, make_trainer
from PIL import Image
from test_resume import assert_same_run, metrics

from ecoformer.config.schema import AugmentConfig, DataConfig, OptimConfig, ScheduleConfig, TrainConfig
from ecoformer.data import build_data
from ecoformer.engine.batches import Position
from ecoformer.engine.callbacks import Callback
from ecoformer.engine.trainer import Trainer
from ecoformer.errors import Interrupted
from ecoformer.fit.hashes import fit_hashes
from ecoformer.model.checkpoint import load_checkpoint


class Crash(BaseException):
    """What a kill looks like from within: nothing may catch it."""


class CrashAfter(Callback):
    """Ends the run before the step with this number, after all that comes before it."""

    name = "crash"

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_start(self, trainer: Trainer, step: int) -> None:
        if step == self.step:
            raise Crash


class StepFits(Callback):
    """Hash fits before given steps, as a schedule in steps makes them."""

    name = "step_fits"

    def __init__(self, steps: set[int]) -> None:
        self.steps, self.done = steps, 0

    def on_step_start(self, trainer: Trainer, step: int) -> None:
        if step in self.steps:
            images = trainer.data.calibration_images(4, seed=step)
            fit_hashes(trainer.model, images, seed=step)
            self.done += 1
            trainer.log("step_fit", number=self.done)
            trainer.sync_buffers()

    def state_dict(self) -> dict[str, Any]:
        return {"done": self.done}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.done = state["done"]


def crash_and_resume(run_dir: Path, at: int, **options: Any) -> None:
    callbacks = options.pop("callbacks", list)
    with pytest.raises(Crash):
        make_trainer(run_dir, callbacks=[*callbacks(), CrashAfter(at)], **options).fit()
    torch.rand(3)  # whatever happens before a resume must not matter
    resumed = run_dir / "last.pt"
    make_trainer(run_dir, callbacks=callbacks(), **options).fit(resume=resumed if resumed.exists() else None)


@pytest.mark.parametrize("at", [1, 4, 5, 8, 11])
def test_every_third_step_is_saved_and_resumed_exactly(tmp_path: Path, at: int) -> None:
    options: dict[str, Any] = {"log_every": 1, "checkpoint": {"every_steps": 3}, "callbacks": lambda: []}
    make_trainer(tmp_path / "straight", **{**options, "callbacks": []}).fit()
    crash_and_resume(tmp_path / "parts", at, **options)
    assert_same_run(tmp_path / "straight", tmp_path / "parts")


def test_checkpoints_within_epochs_change_nothing(tmp_path: Path) -> None:
    make_trainer(tmp_path / "with", checkpoint={"every_steps": 1}).fit()
    make_trainer(tmp_path / "without").fit()
    assert_same_run(tmp_path / "with", tmp_path / "without")


@pytest.mark.parametrize(("at", "every_steps"), [(2, 0), (4, 0), (5, 0), (4, 2), (5, 1), (9, 0)])
def test_evaluations_within_epochs_go_on_exactly(tmp_path: Path, at: int, every_steps: int) -> None:
    """Steps 4 and 8 of twelve are evaluated within an epoch, the 12th with its epoch; a crash comes at any moment."""
    options: dict[str, Any] = {"val_interval_steps": 4, "checkpoint": {"every_steps": every_steps}, "log_every": 1}
    make_trainer(tmp_path / "straight", **options).fit()
    crash_and_resume(tmp_path / "parts", at, **options)
    assert_same_run(tmp_path / "straight", tmp_path / "parts")
    within = [record for record in metrics(tmp_path / "parts") if record["event"] == "evaluation"]
    assert [(record["epoch"], record["step"]) for record in within] == [(0, 4), (1, 8)]
    make_trainer(tmp_path / "without", log_every=1).fit()
    first, second = (load_checkpoint(tmp_path / name / "last.pt")["model"] for name in ("straight", "without"))
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_the_best_weights_may_be_those_of_a_step(tmp_path: Path) -> None:
    options: dict[str, Any] = {"val_interval_steps": 4, "val_interval": 2, "checkpoint": {"keep_top_k": 9}}
    trainer = make_trainer(tmp_path, **options)
    original, tops, weights = trainer._validate, {4: 70.0, 8: 90.0, 12: 80.0}, {}

    def scored() -> dict[str, Any]:
        weights[trainer.step] = trainer.state.evaluated.state_dict()["head.weight"].clone()
        return original() | {"val_top1": tops[trainer.step]}

    trainer._validate = scored  # type: ignore[method-assign]
    figures = trainer.fit()
    assert sorted(weights) == [4, 8, 12]
    assert (figures["top1"], figures["best_epoch"], figures["last_top1"]) == (90.0, 2, 80.0)
    best = load_checkpoint(tmp_path / "best.pt")
    assert (best["step"], best["epoch"], best["metrics"]["val_top1"]) == (8, 1, 90.0)
    assert torch.equal(best["model"]["head.weight"], weights[8])
    assert [path.name for path in (tmp_path / "top").iterdir()] == ["epoch-2.pt"]


def test_a_signal_in_an_evaluation_within_an_epoch_repeats_it(tmp_path: Path) -> None:
    make_trainer(tmp_path / "straight", val_interval_steps=4).fit()
    data = FakeData()
    data.val_loader.__class__ = Signalled
    with pytest.raises(Interrupted, match="0 of 2 epochs and 4 of 6 steps of the next are saved"):
        make_trainer(tmp_path / "stopped", data, val_interval_steps=4).fit()
    make_trainer(tmp_path / "stopped", val_interval_steps=4).fit(resume=tmp_path / "stopped" / "last.pt")
    assert_same_run(tmp_path / "straight", tmp_path / "stopped")


def test_accumulated_steps(tmp_path: Path) -> None:
    options: dict[str, Any] = {"batch_size": 4, "grad_accum": 2, "checkpoint": {"every_steps": 1}}
    make_trainer(tmp_path / "straight", FakeData(batch_size=4), **options).fit()
    crash_and_resume(tmp_path / "parts", 9, data=FakeData(batch_size=4), **options)
    assert_same_run(tmp_path / "straight", tmp_path / "parts")


@pytest.mark.parametrize("at", [4, 5, 9])  # right before a fit, right after it, after the second
def test_fits_scheduled_in_steps_are_neither_repeated_nor_skipped(tmp_path: Path, at: int) -> None:
    options: dict[str, Any] = {"log_every": 1, "checkpoint": {"every_steps": 1}}
    make_trainer(tmp_path / "straight", callbacks=[StepFits({4, 8})], **options).fit()
    crash_and_resume(tmp_path / "parts", at, callbacks=lambda: [StepFits({4, 8})], **options)
    assert_same_run(tmp_path / "straight", tmp_path / "parts")
    fits = [record for record in metrics(tmp_path / "parts") if record["event"] == "step_fit"]
    assert [(fit["step"], fit["number"]) for fit in fits] == [(4, 1), (8, 2)]


class Signalled(FakeLoader):
    """Sends SIGTERM with its second batch."""

    def __iter__(self):
        for number, item in enumerate(super().__iter__()):
            if number == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            yield item


def test_a_signal_in_the_evaluation_of_an_untrained_model_loses_nothing(tmp_path: Path) -> None:
    data = FakeData()
    data.val_loader.__class__ = Signalled
    with pytest.raises(Interrupted, match="nothing is saved yet; start again"):
        make_trainer(tmp_path, data, epochs=0, schedule=ScheduleConfig()).fit()
    assert not (tmp_path / "last.pt").exists()


def test_a_signal_in_the_evaluation_saves_and_stops_there(tmp_path: Path) -> None:
    make_trainer(tmp_path / "straight").fit()
    data = FakeData()
    data.val_loader.__class__ = Signalled
    with pytest.raises(Interrupted, match="0 of 2 epochs and 6 of 6 steps of the next are saved"):
        make_trainer(tmp_path / "stopped", data).fit()
    assert not (tmp_path / "stopped" / "best.pt").exists()
    make_trainer(tmp_path / "stopped").fit(resume=tmp_path / "stopped" / "last.pt")
    assert_same_run(tmp_path / "straight", tmp_path / "stopped")


def test_the_rest_of_an_epoch_may_be_spread_otherwise(tmp_path: Path) -> None:
    """4 x 2 accumulated instead of 8, from the middle of an epoch: the same images in the same steps."""
    finished = []
    for name, spread in (("same", {}), ("other", {"batch_size": 4, "grad_accum": 2})):
        plain = {"optim": OptimConfig(name="momentum", lr=0.1, momentum=0.0), "checkpoint": {"every_steps": 1}}
        with pytest.raises(Crash):
            model = make_model(dropout=0.0, batch_norm=False)
            make_trainer(tmp_path / name, model=model, callbacks=[CrashAfter(3)], **plain).fit()
        data = FakeData(batch_size=spread.get("batch_size", 8))
        trainer = make_trainer(tmp_path / name, data, FakeModel(dropout=0.0, batch_norm=False), **spread, **plain)
        trainer.fit(resume=tmp_path / name / "last.pt")
        finished.append(trainer.model.state_dict())
    for key, value in finished[0].items():
        torch.testing.assert_close(finished[1][key], value, rtol=1e-4, atol=1e-6, msg=key)


def test_processes_that_ran_side_by_side_were_as_fast_together() -> None:
    """An epoch goes on in one process that two had begun: 1000 images each in 10 seconds are 200 a second."""
    meter = {"loss_sum": 500.0, "hits": 250.0, "num_images": 1000, "seconds": 10.0}
    position = Position.restored({"steps": 5, "lr": 0.1, "seconds": 10.0, "meters": [meter, meter]})
    assert (position.meter.loss, position.meter.top1) == (0.5, 25.0)
    assert position.meter.images_per_second == pytest.approx(200, rel=0.05)


@pytest.mark.parametrize("workers", [0, 1])
def test_images_from_files(tmp_path: Path, workers: int) -> None:
    """The real file loader, with augmentation of single images, in this process and in a worker."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 2)):
        for label in "abc":
            (tmp_path / "data" / split / label).mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(256, size=(20, 20, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "data" / split / label / f"{number}.png")
    root = str(tmp_path / "data")
    config = DataConfig(name="folder", root=root, img_size=16, in_memory=False, num_workers=workers)
    augment = AugmentConfig(scale=[0.5, 1.0], random_erase=0.3, mixup=0.2, auto_augment="rand-m9-mstd0.5-inc1")
    train = TrainConfig(batch_size=6, progress=False)

    def options() -> dict[str, Any]:
        data = build_data(config, augment, train, seed=3, device="cpu")
        return {"data": data, "batch_size": 6, "checkpoint": {"every_steps": 1}, "log_every": 1}

    make_trainer(tmp_path / "straight", **options()).fit()
    crash_and_resume(tmp_path / "parts", 6, **options())
    assert load_checkpoint(tmp_path / "parts" / "last.pt")["step"] == 8
    assert_same_run(tmp_path / "straight", tmp_path / "parts")

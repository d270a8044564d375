"""timm's schedules, what they decay by, and runs under each that go on exactly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import make_trainer
from test_resume import assert_same_run

from ecoformer.config.schema import SCHEDULES, Config, ScheduleConfig, TrainConfig
from ecoformer.engine.optim import build_schedule, state_of
from ecoformer.errors import InputError
from ecoformer.model.checkpoint import load_checkpoint
from ecoformer.run.checks import check_config

STEPS = 5  # an epoch


def rates(epochs: int, **options: Any) -> list[float]:
    """The rate at the start of every epoch and after the last; 1 is the base."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0)
    config = ScheduleConfig(**{"min_lr": 0.0, "warmup_lr": 0.0, **options})
    schedule = build_schedule(optimizer, config, TrainConfig(epochs=epochs), STEPS)
    assert schedule is not None
    found = []
    for epoch in range(epochs + 1):
        schedule.step_update(epoch * STEPS)
        found.append(optimizer.param_groups[0]["lr"])
    return found


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"name": "step", "decay_epochs": 2, "decay_rate": 0.5}, [1, 1, 0.5, 0.5, 0.25]),
        ({"name": "multistep", "decay_milestones": [1, 3], "decay_rate": 0.5}, [1, 0.5, 0.5, 0.25, 0.25]),
        ({"name": "poly", "decay_rate": 1.0}, [1, 0.75, 0.5, 0.25, 0]),
        ({"name": "poly", "decay_rate": 2.0, "cooldown_epochs": 2}, [1, 0.25, 0, 0, 0]),
        ({"name": "cosine", "cooldown_epochs": 2}, [1, 0.5, 0, 0, 0]),
        ({"name": "cosine", "cooldown_epochs": 1, "warmup_epochs": 1}, [0, 0.75, 0.25, 0, 0]),
        ({"name": "wsd", "decay_epochs": 2.0, "kwargs": {"decay_fn": "linear"}}, [1, 1, 1, 0.5, 0]),
        ({"name": "constant"}, [1, 1, 1, 1, 1]),
    ],
)
def test_rates(options: dict[str, Any], expected: list[float]) -> None:
    assert rates(4, **options) == pytest.approx(expected, abs=1e-6)


def test_noise_is_the_same_for_the_same_step() -> None:
    noisy = {"name": "constant", "kwargs": {"noise": [0.5, 1.0], "noise_seed": 3}}
    assert rates(4, **noisy) == rates(4, **noisy) != rates(4, name="constant")


@pytest.mark.parametrize("name", SCHEDULES)
def test_one_plus_one_equals_two_under_every_schedule(tmp_path: Path, name: str) -> None:
    def trainer(folder: str) -> Any:
        more: dict[str, Any] = {"decay_epochs": 1.0} if name in ("step", "wsd", "rsqrt") else {}
        if name == "plateau":
            more |= {"patience_epochs": 0, "decay_rate": 0.5, "kwargs": {"noise": [0.1, 1.0]}}
        more |= {"kwargs": {"stable_timescale": 1}} if name == "rsqrt" else {}
        schedule = ScheduleConfig(name=name, **more)
        return make_trainer(tmp_path / folder, epochs=4, schedule=schedule, eval_metric="loss")

    trainer("straight").fit()
    for stop in (1, 3, 4):
        resume = tmp_path / "parts" / "last.pt" if stop > 1 else None
        trainer("parts").fit(resume=resume, stop_after=stop)
    assert_same_run(tmp_path / "straight", tmp_path / "parts")


class Scores:
    """An evaluation that gives these figures, one an epoch."""

    def __init__(self, trainer: Any, **figures: list[float]) -> None:
        self.trainer, self.original, self.figures = trainer, trainer._validate, figures

    def __call__(self) -> dict[str, Any]:
        epoch = self.trainer.state.epoch
        return self.original() | {key: values[epoch] for key, values in self.figures.items()}


def epochs_of(run_dir: Path) -> list[dict[str, Any]]:
    records = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [record for record in records if record["event"] == "epoch"]


def test_plateau_decays_when_the_metric_stops_to_improve(tmp_path: Path) -> None:
    """Patience 1: after the second epoch in a row without a better top-1, over a resume in between."""
    options = {"epochs": 6, "schedule": ScheduleConfig(name="plateau", decay_rate=0.5, patience_epochs=1)}
    tops = [50.0, 60.0, 55.0, 56.0, 57.0, 58.0]
    for stop in (3, 6):
        trainer = make_trainer(tmp_path, **options)
        trainer._validate = Scores(trainer, val_top1=tops)  # type: ignore[method-assign]
        trainer.fit(resume=tmp_path / "last.pt" if stop == 6 else None, stop_after=stop)
    assert [record["lr"] for record in epochs_of(tmp_path)] == [1e-2, 1e-2, 1e-2, 1e-2, 5e-3, 5e-3]
    assert trainer.state.optimizer.param_groups[0]["lr"] == 2.5e-3
    assert state_of(trainer.state.scheduler)["best"] == 60.0  # type: ignore[index]


def test_plateau_warms_up_in_epochs_that_are_not_evaluated_too(tmp_path: Path) -> None:
    schedule = ScheduleConfig(name="plateau", warmup_epochs=2, warmup_lr=0.0)
    make_trainer(tmp_path, epochs=4, val_interval=4, schedule=schedule).fit()
    assert [record["lr"] for record in epochs_of(tmp_path)] == [0.0, 5e-3, 1e-2, 1e-2]


@pytest.mark.parametrize(("metric", "best"), [("top1", 1), ("top5", 2), ("loss", 0)])
def test_the_metric_chooses_the_best_epoch(tmp_path: Path, metric: str, best: int) -> None:
    trainer = make_trainer(tmp_path, epochs=3, eval_metric=metric, checkpoint={"keep_top_k": 1})
    figures = {"val_top1": [50.0, 60.0, 55.0], "val_top5": [80.0, 80.0, 90.0], "val_loss": [0.1, 0.2, 0.1]}
    trainer._validate = Scores(trainer, **figures)  # type: ignore[method-assign]
    assert trainer.fit()["best_epoch"] == best + 1
    assert load_checkpoint(tmp_path / "best.pt")["metrics"]["epoch"] == best
    assert [path.name for path in (tmp_path / "top").iterdir()] == [f"epoch-{best + 1}.pt"]


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ({"name": "cosine", "decay_rate": 0.5}, "schedule.decay_rate=0.5 has no effect under schedule.name=cosine"),
        ({"name": "step", "cooldown_epochs": 1}, "only under cosine, tanh, poly"),
        ({"name": "none", "warmup_epochs": 1}, "schedule.warmup_epochs=1 has no effect under schedule.name=none"),
        ({"name": "none", "kwargs": {"noise": 0.5}}, "schedule.kwargs.noise=0.5 has no effect"),
        ({"name": "step", "kwargs": {"k_decay": 0.5}}, "only under cosine, poly: leave it out"),
        ({"name": "wsd", "kwargs": {"stable_timescale": 2}}, "only under rsqrt"),
        ({"kwargs": {"decay_fn": "linear"}}, "only under wsd, rsqrt"),
        ({"kwargs": {"cycle_limit": 2}}, "a run has one cycle"),
        ({"kwargs": {"min_lr": 2}}, "write schedule.min_lr=2"),
        ({"cooldown_epochs": 2, "warmup_epochs": 2}, "leave nothing of train.epochs=4"),
    ],
)
def test_meaningless_settings_are_refused(schedule: dict[str, Any], message: str) -> None:
    config = Config(schedule=ScheduleConfig(**schedule), train=TrainConfig(epochs=4))
    config.model.name = "pvt_v2_b0"
    with pytest.raises(InputError, match=message):
        check_config(config)


@pytest.mark.parametrize("schedule", [{"kwargs": {"nosie": 1}}, {"name": "wsd", "decay_epochs": 9.0}])
def test_what_timm_refuses_is_one_line(schedule: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"schedule\.name=\w+ cannot be built"):
        rates(4, **schedule)

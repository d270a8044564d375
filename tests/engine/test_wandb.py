"""wandb: what it is told of a run, and that it cannot end one."""

from __future__ import annotations

import contextlib
from pathlib import Path
from types import SimpleNamespace

import pytest
from fakes import make_trainer

from ecoformer.config.schema import EnergyConfig, WandbConfig
from ecoformer.engine.callbacks import EnergyLog
from ecoformer.engine.wandb_logger import WandbLogger


class FakeRun:
    id = "abc"

    def __init__(self, breaks_after: int = 2) -> None:
        self.logged: list[dict] = []
        self.axes: dict[str, str] = {}
        self.summary: dict[str, object] = {}
        self.artifacts: list[tuple[str, str]] = []
        self.breaks_after = breaks_after

    def define_metric(self, name: str, step_metric: str) -> None:
        self.axes[name] = step_metric

    def log(self, values: dict) -> None:
        self.logged.append(values)
        if len(self.logged) > self.breaks_after:
            raise ConnectionError("the network\nis gone")

    def log_artifact(self, path: str, name: str, type: str) -> None:
        self.artifacts.append((Path(path).name, name))

    def finish(self, exit_code: int) -> None:
        self.exit_code = exit_code


def test_wandb_gets_the_numbers_and_may_break(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    runs: list[dict] = []
    run = FakeRun()

    def init(**settings: object) -> FakeRun:
        runs.append(settings)
        return run

    monkeypatch.setattr(wandb, "init", init)
    monkeypatch.setattr(wandb, "api", SimpleNamespace(api_key=None))
    monkeypatch.delenv("WANDB_MODE", raising=False)
    logger = WandbLogger(WandbConfig(enabled=True, project="p"))
    with pytest.warns(UserWarning, match=r"wandb stopped \(the network is gone\); metrics\.jsonl"):
        make_trainer(tmp_path / "run", loggers=[logger]).fit(stop_after=1)
    assert runs[0]["mode"] == "offline" and runs[0]["name"] == "run" and runs[0]["config"] == {"name": "fake"}
    assert run.logged[0]["hash_fit/attn/accepted_bits"] == 3 and run.logged[0]["step"] == 0
    assert run.logged[1]["train/loss"] > 0

    run.logged = []
    monkeypatch.setattr(wandb, "api", SimpleNamespace(api_key="secret"))
    resumed = WandbLogger(WandbConfig(enabled=True))
    with pytest.warns(UserWarning, match="wandb stopped"):
        make_trainer(tmp_path / "run", loggers=[resumed]).fit(resume=tmp_path / "run" / "last.pt")
    assert runs[1]["id"] == "abc" and runs[1]["resume"] == "allow" and runs[1]["mode"] == "online"


def test_wandb_hears_how_a_run_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    for steps, code in ((None, 0), (1, 1)):
        run = FakeRun(breaks_after=1000)
        monkeypatch.setattr(wandb, "init", lambda run=run, **settings: run)
        trainer = make_trainer(tmp_path / str(code), loggers=[WandbLogger(WandbConfig(enabled=True))], epochs=1)
        if steps:
            monkeypatch.setattr(trainer, "_validate", lambda: 1 / 0)
        with contextlib.suppress(ZeroDivisionError):
            trainer.fit()
        assert run.exit_code == code


@pytest.mark.parametrize("uploads", [False, True])
def test_wandb_is_told_axes_and_summary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uploads: bool) -> None:
    import wandb

    runs: list[dict] = []
    run = FakeRun(breaks_after=1000)
    monkeypatch.setattr(wandb, "init", lambda **settings: runs.append(settings) or run)
    told = {"entity": "team", "group": "sweeps/bits", "job_type": "train", "tags": ["a"], "notes": "why"}
    config = WandbConfig(enabled=True, artifacts=uploads, **told)
    energy = {"energy_pj": 11.1, "params": 7}
    monkeypatch.setattr("ecoformer.energy.summarize", lambda *model, **options: energy, raising=False)
    callbacks = [EnergyLog(EnergyConfig())]
    options = {"loggers": [WandbLogger(config)], "callbacks": callbacks, "epochs": 2, "val_interval_steps": 4}
    summary = make_trainer(tmp_path / "3", **options).fit()
    assert {key: runs[0][key] for key in told} == told and runs[0]["name"] == "3"
    assert run.axes["epoch/*"] == "epoch" and run.axes["train/*"] == run.axes["energy/*"] == "step"
    within = [values["step"] for values in run.logged if "evaluation/val_top1" in values]
    assert run.axes["evaluation/*"] == "step" and within == [4, 8]
    epochs = [values for values in run.logged if "epoch/val_top1" in values]
    assert [values["epoch"] for values in epochs] == [1, 2], "counted from 1, as in what a run prints"
    assert run.summary == summary and {"top1", "energy_pj", "params"} <= summary.keys()
    assert run.artifacts == ([("best.pt", "best-abc")] if uploads else [])


def test_wandb_run_is_named_by_the_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    def named(config: WandbConfig, saved: dict) -> str:
        names: list[str] = []
        monkeypatch.setattr(wandb, "init", lambda **settings: names.append(settings["name"]) or FakeRun())
        logger = WandbLogger(config)
        logger.open(tmp_path / "run", None, saved)
        return names[0]

    assert named(WandbConfig(), {"settings": {"name": "digits_msa"}}) == "digits_msa"
    assert named(WandbConfig(group="g"), {"settings": {"name": "digits_msa"}}) == "digits_msa/run"
    assert named(WandbConfig(name="mine", group="g"), {"settings": {"name": "digits_msa"}}) == "mine"
    assert named(WandbConfig(), {}) == "run"


def test_wandb_that_does_not_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    def init(**settings: object) -> None:
        raise RuntimeError("no service")

    monkeypatch.setattr(wandb, "init", init)
    with pytest.warns(UserWarning, match=r"wandb stopped \(no service\)"):
        summary = make_trainer(tmp_path, loggers=[WandbLogger(WandbConfig(enabled=True))], epochs=1).fit()
    assert summary["epochs"] == 1

"""What timm's training script has beside the step: EMA warm-up, evaluation now and then, an early end, batch norm."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import FakeModel, make_model, make_trainer
from test_resume import assert_same_run
from test_schedules import Scores, epochs_of
from timm.utils import ModelEmaV3

from ecoformer.config.schema import Config, TrainConfig
from ecoformer.engine import distributed, parallel
from ecoformer.errors import InputError
from ecoformer.model.checkpoint import load_checkpoint
from ecoformer.run.checks import check_config


def run_in_parts(folder: Path, stops: list[int], **options: Any) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    for number, stop in enumerate(stops):
        figures = make_trainer(folder, **options).fit(resume=folder / "last.pt" if number else None, stop_after=stop)
    return figures


def test_ema_warm_up_is_timms_and_goes_on_exactly(tmp_path: Path) -> None:
    options: dict[str, Any] = {"epochs": 2, "ema_decay": 0.9, "ema_warmup": True}
    trainer = make_trainer(tmp_path / "straight", **options)
    assert trainer.notes() == []
    theirs = ModelEmaV3(trainer.model, 0.9, use_warmup=True, exclude_buffers=True)
    ema = trainer.state.ema
    assert ema is not None
    original = ema.update

    def both(model: torch.nn.Module, step: int | None = None) -> None:
        original(model, step)
        theirs.update(model, step=trainer.step)

    ema.update = both  # type: ignore[method-assign]
    trainer.fit()
    for ours, expected in zip(ema.module.parameters(), theirs.module.parameters(), strict=True):
        assert torch.equal(ours, expected)
    run_in_parts(tmp_path / "parts", [1, 2], **options)
    assert_same_run(tmp_path / "straight", tmp_path / "parts")
    make_trainer(tmp_path / "without", epochs=2, ema_decay=0.9).fit()
    average = load_checkpoint(tmp_path / "without" / "last.pt")["ema"]["head.weight"]
    assert not torch.equal(average, ema.module.state_dict()["head.weight"])


def test_evaluation_every_second_epoch_and_after_the_last(tmp_path: Path) -> None:
    options = {"epochs": 5, "val_interval": 2, "checkpoint": {"keep_top_k": 9}}
    figures = make_trainer(tmp_path / "straight", **options).fit()
    records = epochs_of(tmp_path / "straight")
    assert [record["val_top1"] is not None for record in records] == [False, True, False, True, True]
    assert all(record["train_loss"] > 0 for record in records)
    with open(tmp_path / "straight" / "metrics.csv") as file:
        assert [row["val_loss"] != "" for row in csv.DictReader(file)] == [False, True, False, True, True]
    kept = {path.name for path in (tmp_path / "straight" / "top").iterdir()}
    assert kept == {"epoch-2.pt", "epoch-4.pt", "epoch-5.pt"}
    assert figures["best_epoch"] in (2, 4, 5) and figures["last_top1"] == records[-1]["val_top1"]
    assert run_in_parts(tmp_path / "parts", [1], **options) == {}
    run_in_parts(tmp_path / "parts", [1, 2, 3, 5], **options)
    assert_same_run(tmp_path / "straight", tmp_path / "parts")


@pytest.mark.parametrize("stops", [[9], [2, 5, 9], [5, 6, 9]])
def test_a_run_ends_where_nothing_gets_better(
    tmp_path: Path, stops: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    """Patience 3: the best epoch is the 2nd, so the 5th is the last; a resume of the run that ended adds nothing."""
    for number, stop in enumerate(stops):
        trainer = make_trainer(tmp_path, epochs=9, early_stop=3, progress=True)
        trainer._validate = Scores(trainer, val_top1=[50.0, 60.0, 55.0, 60.0, 58.0, 99.0])  # type: ignore
        figures = trainer.fit(resume=tmp_path / "last.pt" if number else None, stop_after=stop)
    assert (figures["epochs"], figures["best_epoch"], figures["last_top1"]) == (5, 2, 58.0)
    assert len(epochs_of(tmp_path)) == 5
    assert "no better top1 in 3 epochs: the run ends" in capsys.readouterr().out


def test_a_run_that_gets_better_does_not_end_early(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, epochs=4, early_stop=1)
    trainer._validate = Scores(trainer, val_top1=[1.0, 2.0, 3.0, 4.0])  # type: ignore[method-assign]
    assert trainer.fit()["epochs"] == 4


def test_an_evaluation_without_a_number_is_never_the_best_but_the_first(tmp_path: Path) -> None:
    losses = [float("nan"), 2.0, float("nan"), 3.0]
    for epochs, best in ((1, 1), (2, 2), (4, 2)):
        trainer = make_trainer(tmp_path / str(epochs), epochs=epochs, eval_metric="loss")
        trainer._validate = Scores(trainer, val_loss=losses)  # type: ignore[method-assign]
        assert trainer.fit()["best_epoch"] == best


def test_synchronised_batch_norm_keeps_the_state(monkeypatch: pytest.MonkeyPatch) -> None:
    model, cuda = make_model(hashed=False).eval(), torch.device("cuda")
    with pytest.raises(InputError, match=r"train\.sync_bn=true is for several processes"):
        parallel.synchronised(model, cuda)
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    with pytest.raises(InputError, match=r"train\.sync_bn=true needs GPUs, the device is cpu"):
        parallel.synchronised(model, torch.device("cpu"))
    images, state = torch.randn(2, 3, 8, 8), model.state_dict()
    expected = model(images)
    found = parallel.synchronised(model, cuda)
    assert isinstance(found, FakeModel) and isinstance(found.norm, torch.nn.SyncBatchNorm)
    assert list(found.state_dict()) == list(state)
    assert torch.equal(found.eval()(images), expected)


def test_an_average_that_is_off_cannot_warm_up() -> None:
    config = Config(train=TrainConfig(ema_warmup=True))
    config.model.name = "pvt_v2_b0"
    with pytest.raises(InputError, match=r"set train\.ema_decay"):
        check_config(config)


def test_the_compile_mode_reaches_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str | None] = []
    monkeypatch.setattr(torch, "compile", lambda model, mode: asked.append(mode) or model)
    make_trainer(tmp_path / "mode", epochs=1, compile=True, compile_mode="reduce-overhead").fit()
    make_trainer(tmp_path / "default", epochs=1, compile=True).fit()
    assert asked == ["reduce-overhead", None]
    with pytest.raises(InputError, match="compile_mode=max-autotune has no effect"):
        check_config(Config(train=TrainConfig(compile_mode="max-autotune")))

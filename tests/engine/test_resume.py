"""One plus one epochs equal two, bit for bit, also after a kill in the middle of an epoch."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from fakes import SignalData, make_trainer
from fresh import Fresh

from ecoformer.config.schema import OptimConfig
from ecoformer.engine.callbacks import Callback
from ecoformer.engine.signals import StopSignals
from ecoformer.engine.trainer import Trainer
from ecoformer.errors import InputError, Interrupted
from ecoformer.model.checkpoint import load_checkpoint, save_checkpoint

EPOCHS = 4


def assert_same(one: object, two: object, where: str = "") -> None:
    assert type(one) is type(two), where
    if isinstance(one, dict):
        assert one.keys() == two.keys(), where
        for key in one:
            assert_same(one[key], two[key], f"{where}/{key}")
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(two), where
        for index, items in enumerate(zip(one, two, strict=True)):
            assert_same(*items, f"{where}/{index}")
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, two), where
    else:
        assert one == two, where


def assert_same_run(one: Path, two: Path) -> None:
    """Same weights, EMA, buffers, optimiser and random states; same metrics but for the clock."""
    first, second = load_checkpoint(one / "last.pt"), load_checkpoint(two / "last.pt")
    for key in ("model", "ema", "step", "epoch"):
        assert_same(first[key], second[key], key)
    for key in ("optimizer", "rng", "callbacks", "scaler"):
        assert_same(first["training"][key], second["training"][key], key)
    assert_same(load_checkpoint(one / "best.pt")["model"], load_checkpoint(two / "best.pt")["model"], "best")
    assert metrics(one) == metrics(two)


def metrics(run_dir: Path) -> list[dict]:
    clock = ("time", "seconds", "images_per_second", "train_images_per_second")
    records = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in record.items() if key not in clock} for record in records]


def csv_epochs(run_dir: Path) -> list[str]:
    return [line.split(",")[0] for line in (run_dir / "metrics.csv").read_text().splitlines()]


@pytest.mark.parametrize("cut", [1, 2])
def test_two_epochs_equal_one_plus_one(tmp_path: Path, cut: int) -> None:
    straight, parts = tmp_path / "straight", tmp_path / "parts"
    make_trainer(straight, epochs=3).fit()
    make_trainer(parts, epochs=3).fit(stop_after=cut)
    torch.rand(7)  # whatever happens before a resume must not matter
    summary = make_trainer(parts, epochs=3).fit(resume=parts / "last.pt")
    assert_same_run(straight, parts)
    assert csv_epochs(parts) == ["epoch", "0", "1", "2"]
    assert summary["epochs"] == 3


def test_epochs_can_be_added_and_a_finished_run_is_left_alone(tmp_path: Path) -> None:
    done = make_trainer(tmp_path, epochs=1).fit()
    again = make_trainer(tmp_path, epochs=1).fit(resume=tmp_path / "last.pt")
    assert {**again, "duration_s": 0} == {**done, "duration_s": 0}
    assert make_trainer(tmp_path, epochs=2).fit(resume=tmp_path / "last.pt")["epochs"] == 2


def be_killed(run_dir: Path) -> None:
    data = SignalData(signal.SIGKILL, epoch=2, batch=3)
    make_trainer(run_dir, data=data, epochs=4, log_every=1).fit()


def test_killed_in_the_middle_of_an_epoch(fresh: Callable[..., Fresh], tmp_path: Path) -> None:
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    make_trainer(straight, epochs=EPOCHS, log_every=1).fit()
    assert fresh(be_killed, stopped).wait() == -signal.SIGKILL
    assert load_checkpoint(stopped / "last.pt")["epoch"] == 2
    assert any(record["epoch"] == 2 for record in metrics(stopped))  # the cut epoch left lines behind
    with open(stopped / "metrics.jsonl", "a") as file:
        file.write('{"event": "train", "epo')  # as a kill in the middle of a write would
    make_trainer(stopped, epochs=EPOCHS, log_every=1).fit(resume=stopped / "last.pt")
    assert_same_run(straight, stopped)
    assert csv_epochs(stopped) == ["epoch", "0", "1", "2", "3"]


@pytest.mark.parametrize(("signum", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGUSR1, 138)])
def test_asked_to_stop_in_the_middle_of_an_epoch(tmp_path: Path, signum: int, exit_code: int) -> None:
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    make_trainer(straight).fit()
    trainer = make_trainer(stopped, data=SignalData(signum, epoch=1, batch=3))
    saved = r"in epoch 2: 1 of 2 epochs and 4 of 6 steps of the next are saved in .*last\.pt; go on with resume=auto"
    with pytest.raises(Interrupted, match=saved) as caught:
        trainer.fit()
    assert caught.value.exit_code == exit_code
    assert trainer.step == 6 + 4  # the 4th step of the 2nd epoch is finished, the 5th is not begun
    make_trainer(stopped).fit(resume=stopped / "last.pt")
    assert_same_run(straight, stopped)


@pytest.fixture
def pythons_sigint() -> Iterator[None]:
    """Python's own handler of Ctrl-C: a process that is started in the background inherits an ignored one."""
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, inherited)


def test_stopped_before_anything_is_saved(tmp_path: Path, pythons_sigint: None) -> None:
    class AtTheStart(Callback):
        def on_fit_start(self, trainer: Trainer) -> None:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted, match="nothing is saved yet; start again with the same command"):
        make_trainer(tmp_path, callbacks=[AtTheStart()]).fit()
    assert not (tmp_path / "last.pt").exists()
    with pytest.raises(KeyboardInterrupt):  # Python's own handler is back
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)


def test_a_second_ctrl_c_does_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ecoformer.engine.signals.SAME_REQUEST_S", 0.0)
    with pytest.raises(Interrupted, match="SIGINT"), StopSignals():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)


def test_signals_that_torchrun_sends_on_are_one_request() -> None:
    with StopSignals() as signals:
        for signum in (signal.SIGTERM, signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            os.kill(os.getpid(), signum)
        assert signals.received == signal.SIGTERM


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 1}, "2 epochs > train.epochs=1"),
        ({"grad_accum": 2}, "steps_per_epoch=6, now it is 3: keep the data, train.batch_size"),
        ({"batch_size": 16}, "global_batch=8, now it is 16: keep train.batch_size"),
        ({"ema_decay": 0.0}, r"train.ema_decay=0.9, now it is 0.0: keep it, or use resume=off"),
        ({"optim": OptimConfig(name="sgd", lr=1e-2, clip_grad=1.0)}, "optim.name=adamw, now it is sgd"),
    ],
)
def test_a_run_that_cannot_be_continued_is_refused(tmp_path: Path, changes: dict, message: str) -> None:
    make_trainer(tmp_path).fit()
    with pytest.raises(InputError, match=message):
        make_trainer(tmp_path, **changes).fit(resume=tmp_path / "last.pt")


def test_best_cannot_be_resumed(tmp_path: Path) -> None:
    make_trainer(tmp_path, epochs=1).fit()
    with pytest.raises(InputError, match=r"holds weights only: resume from last\.pt"):
        make_trainer(tmp_path, epochs=1).fit(resume=tmp_path / "best.pt")


def test_a_new_run_sets_an_earlier_one_aside(tmp_path: Path) -> None:
    make_trainer(tmp_path, epochs=1).fit()
    first = (tmp_path / "last.pt").read_bytes()
    make_trainer(tmp_path, epochs=1).fit()
    assert (tmp_path / "earlier-1" / "last.pt").read_bytes() == first
    assert csv_epochs(tmp_path) == ["epoch", "0"]


def test_resuming_into_another_folder_takes_metrics_and_best_along(tmp_path: Path) -> None:
    straight, old, new = (tmp_path / name for name in ("straight", "old", "new"))
    make_trainer(straight, epochs=3).fit()
    make_trainer(old, epochs=3).fit(stop_after=2)
    before = {path.name: path.read_bytes() for path in old.iterdir()}
    make_trainer(new, epochs=3).fit(resume=old / "last.pt")
    assert_same_run(straight, new)
    assert before == {path.name: path.read_bytes() for path in old.iterdir()}


def test_a_lone_checkpoint_can_be_resumed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_trainer(tmp_path / "old", epochs=2).fit(stop_after=1)
    (tmp_path / "lone").mkdir()
    (tmp_path / "old" / "last.pt").rename(tmp_path / "lone" / "last.pt")
    trainer = make_trainer(tmp_path / "new", epochs=2, progress=True)
    summary = trainer.fit(resume=tmp_path / "lone" / "last.pt")
    assert "has no metrics.jsonl to go on with: it starts in epoch 2" in capsys.readouterr().out.replace("\n", " ")
    assert csv_epochs(tmp_path / "new") == ["epoch", "1"]
    assert summary["best_epoch"] == 2 and load_checkpoint(tmp_path / "new" / "best.pt")["epoch"] == 2


def test_a_cut_best_is_noticed_and_written_anew(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_trainer(tmp_path, epochs=2).fit(stop_after=1)
    best = tmp_path / "best.pt"
    best.write_bytes(best.read_bytes()[:100])
    make_trainer(tmp_path, epochs=2, progress=True).fit(resume=tmp_path / "last.pt")
    said = " ".join(capsys.readouterr().out.split())
    assert "best.pt is truncated or damaged: the next evaluation writes it anew" in said.replace("/ ", "/")
    assert load_checkpoint(best)["epoch"] == 2


def test_best_that_is_younger_than_the_checkpoint_is_what_the_run_reports(tmp_path: Path) -> None:
    """A kill came between the two, and the epoch, drawn anew on other processes, is no better when it is repeated."""
    make_trainer(tmp_path, epochs=2).fit(stop_after=1)
    best = load_checkpoint(tmp_path / "best.pt")
    lucky = {**best["metrics"], "epoch": 1, "val_top1": 100.0}
    save_checkpoint(tmp_path / "best.pt", {**best, "epoch": 2, "metrics": lucky})
    figures = make_trainer(tmp_path, epochs=2).fit(resume=tmp_path / "last.pt")
    kept = load_checkpoint(tmp_path / "best.pt")["metrics"]
    assert (figures["top1"], figures["best_epoch"]) == (kept["val_top1"], kept["epoch"] + 1) == (100.0, 2)

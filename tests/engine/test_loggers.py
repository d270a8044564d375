"""Metrics files continue without gaps or doubles; wandb may fail, the run may not."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
from fakes import make_trainer
from rich.console import Console

from ecoformer.config.schema import EnergyConfig
from ecoformer.engine import progress
from ecoformer.engine.callbacks import EnergyLog
from ecoformer.engine.loggers import CSV_COLUMNS, CsvLogger, JsonlLogger, Logger
from ecoformer.engine.progress import ProgressDisplay
from ecoformer.engine.tensorboard_logger import TensorBoardLogger
from ecoformer.errors import InputError


def record(event: str, epoch: int, **values: object) -> dict:
    return {"event": event, "epoch": epoch, "step": 10 * epoch, "time": 0.5, **values}


def epoch_record(epoch: int) -> dict:
    return record("epoch", epoch, **{column: float(epoch) for column in CSV_COLUMNS if column != "epoch"})


def write(run_dir: Path, resumed_epoch: int | None, epochs: range, records: int | None = None) -> None:
    jsonl = JsonlLogger()
    jsonl.load_state_dict({} if records is None else {"records": records})
    loggers = [jsonl, CsvLogger()]
    for logger in loggers:
        logger.open(run_dir, resumed_epoch, {})
    for logger in loggers:
        for epoch in epochs:
            logger.log(record("train", epoch, loss=1.0))
            logger.log(epoch_record(epoch))
        logger.close()


def epochs_in(run_dir: Path) -> tuple[list[tuple[str, int]], list[str]]:
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    rows = (run_dir / "metrics.csv").read_text().splitlines()
    return [(line["event"], line["epoch"]) for line in lines], [row.split(",")[0] for row in rows]


@pytest.mark.parametrize("start", [1, 2, 3])
@pytest.mark.parametrize("counted", [True, False])  # whether the checkpoint holds the number of records
def test_resumed_files_have_each_epoch_once(tmp_path: Path, start: int, counted: bool) -> None:
    write(tmp_path, None, range(3))
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"event": "train", "ep')
    write(tmp_path, start, range(start, 4), 2 * start if counted else None)
    lines, rows = epochs_in(tmp_path)
    assert lines == [(event, epoch) for epoch in range(4) for event in ("train", "epoch")]
    assert rows == ["epoch", "0", "1", "2", "3"]
    once = (tmp_path / "metrics.jsonl").read_text(), (tmp_path / "metrics.csv").read_text()
    write(tmp_path, 4, range(0))  # opening again changes nothing
    assert once == ((tmp_path / "metrics.jsonl").read_text(), (tmp_path / "metrics.csv").read_text())


def test_a_row_that_the_kill_kept_from_the_csv_is_restored(tmp_path: Path) -> None:
    write(tmp_path, None, range(3))
    rows = (tmp_path / "metrics.csv").read_text().splitlines()
    (tmp_path / "metrics.csv").write_text("\n".join(rows[:-1]) + "\n2,0.1")
    write(tmp_path, 3, range(0))
    assert (tmp_path / "metrics.csv").read_text().splitlines() == rows


def test_damaged_metrics_are_named(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"epoch": 0}\nnonsense\n{"epoch": 1}\n')
    with pytest.raises(InputError, match=r"metrics\.jsonl line 2 is not a metrics record"):
        JsonlLogger().open(tmp_path, 1, {})


def test_not_a_number_is_valid_json(tmp_path: Path) -> None:
    logger = JsonlLogger()
    logger.open(tmp_path, None, {})
    logger.log(record("train", 0, loss=float("nan"), nested={"a": [float("inf"), 1.0]}))
    logger.close()
    line = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=pytest.fail)
    assert line["loss"] is None and line["nested"] == {"a": [None, 1.0]}


def test_full_disk_is_one_line(tmp_path: Path) -> None:
    logger = JsonlLogger()
    logger.open(tmp_path, None, {})
    assert logger.file is not None
    logger.file.close()
    with open("/dev/full", "w") as logger.file, pytest.raises(InputError, match="No space left on device"):
        try:
            logger.log(record("train", 0))
        finally:
            os.dup2(os.open(os.devnull, os.O_WRONLY), logger.file.fileno())  # so that closing it succeeds


def test_energy_is_logged_once_and_summarised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple] = []

    def summarize(model: object, img_size: int, *, convention: str, profile: str) -> dict:
        asked.append((img_size, convention, profile))
        return {"muls": 3, "energy_pj": 11.1, "uncounted": []}

    monkeypatch.setattr("ecoformer.energy.summarize", summarize, raising=False)
    callback = [EnergyLog(EnergyConfig())]
    make_trainer(tmp_path, callbacks=callback).fit(stop_after=1)
    summary = make_trainer(tmp_path, callbacks=[EnergyLog(EnergyConfig())]).fit(resume=tmp_path / "last.pt")
    assert asked == [(8, "paper", "45nm_fp32")] * 2
    assert summary["muls"] == 3 and summary["energy_pj"] == 11.1
    lines, _ = epochs_in(tmp_path)
    assert lines.count(("energy", 0)) == 1 and not [line for line in lines if line == ("energy", 1)]


class Counting(Logger):
    name = "counting"

    def __init__(self, seen: object) -> None:
        self.seen = seen

    def state_dict(self) -> dict[str, Any]:
        return {"seen": self.seen}


def test_states_that_a_checkpoint_cannot_hold_or_tell_apart_are_refused_at_once(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path / "one", loggers=[Counting(1), Counting(2)])
    with pytest.raises(InputError, match=r"Counting \(counting\) keeps a state under the name of another one"):
        trainer.fit()
    trainer = make_trainer(tmp_path / "two", loggers=[Counting(np.float64(1))])
    with pytest.raises(InputError, match=r"counting\): its state_dict\(\)\['seen'\] is a float64: hand numbers"):
        trainer.fit()
    assert not (tmp_path / "two" / "last.pt").exists()


class FakeWriter:
    made: ClassVar[list[FakeWriter]] = []

    def __init__(self, log_dir: str, purge_step: int | None) -> None:
        self.folder, self.purge_step, self.closed = Path(log_dir), purge_step, False
        self.scalars: list[tuple[str, float, int]] = []
        self.made.append(self)

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self.scalars.append((name, value, step))

    def close(self) -> None:
        self.closed = True


def test_tensorboard_goes_on_after_the_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeWriter, "made", [])
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", SimpleNamespace(SummaryWriter=FakeWriter))
    make_trainer(tmp_path, loggers=[TensorBoardLogger()]).fit(stop_after=1)
    first = FakeWriter.made[0]
    assert first.folder == tmp_path / "tensorboard" and first.purge_step is None and first.closed
    names = {name for name, _, _ in first.scalars}
    assert {"train/loss", "epoch/val_top1", "hash_fit/attn/accepted_bits", "summary/top1"} <= names
    saved = next(step for name, _, step in first.scalars if name == "epoch/val_top1")
    make_trainer(tmp_path, loggers=[TensorBoardLogger()]).fit(resume=tmp_path / "last.pt")
    second = FakeWriter.made[1]
    assert second.purge_step == saved + 1
    assert min(step for name, _, step in second.scalars if name == "epoch/val_top1") > saved


def test_tensorboard_without_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(InputError, match=r"needs TensorBoard: pip install 'ecoformer\[tensorboard\]'"):
        TensorBoardLogger()


def show(console: Console) -> str:
    display = ProgressDisplay(True, total_steps=40, epochs=2, console=console)
    display.last_line -= 60  # long ago
    with display.epoch(0, 20):
        display.step(1, loss=1.25, top1=50.0, images_per_second=1234.0)
        display.step(2, loss=1.25, top1=50.0, images_per_second=1234.0)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_progress_in_a_pipe_is_plain_lines_now_and_then() -> None:
    import io

    text = show(Console(file=io.StringIO(), force_terminal=False, width=120))
    assert text.count("\n") == 1
    assert text.startswith("epoch 1/2  step 1/20  loss 1.250  top-1 50.0 %  1234 images/s  0:0")
    assert text.endswith(" left\n")


def test_progress_on_a_terminal_is_a_bar() -> None:
    import io

    text = show(Console(file=io.StringIO(), force_terminal=True, width=120))
    assert "━" in text and "2/20" in text and "loss 1.250  top-1 50.0 %  1234 images/s" in text


def test_the_time_left_counts_steps_and_the_pauses_between_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    import io

    now = 100.0  # a long hash fit came before
    monkeypatch.setattr(progress, "time", SimpleNamespace(perf_counter=lambda: now))
    monkeypatch.setattr(progress, "PLAIN_INTERVAL_S", 0.0)
    display = ProgressDisplay(True, total_steps=12, epochs=4, console=Console(file=io.StringIO(), width=120))
    for epoch in range(2):
        with display.epoch(epoch, 3):
            for step in range(1, 4):
                now += 2.0
                display.step(3 * epoch + step, loss=1.25, top1=50.0, images_per_second=1234.0)
        now += 10.0
    left = [line.split()[-2] for line in display.console.file.getvalue().splitlines()]  # type: ignore[attr-defined]
    # Of 2 s a step; then, with the pause, of 18 / 4, 20 / 5 and 22 / 6 s.
    assert left == ["0:22", "0:20", "0:18", "0:36", "0:28", "0:22"]

"""Metrics files. A resumed run continues them with no record missing or twice.

Every record is a dict with "event", "epoch", "step" and "time". A checkpoint holds how many there were; on a resume
what was written after it, by a run that was stopped later, is cut off before anything is added.
"""

import csv
import io
import os
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, TextIO

from ecoformer.files import finite, json_text, read_json_lines, write_text, writing
from ecoformer.files.run_names import METRICS, METRICS_TABLE

CSV_COLUMNS = (
    *("epoch", "lr", "train_loss", "train_top1", "val_loss", "val_top1", "val_top5"),
    *("images_per_second", "train_images_per_second", "seconds"),
)


class Stateful:
    """What may have a state of its own in the checkpoint, under its name."""

    name: str

    def state_dict(self) -> dict[str, Any]:
        """Plain containers and tensors only."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` returned."""


class Logger(Stateful):
    """Where records go. `state_dict` travels in the checkpoint and is handed back before `open` on a resume."""

    name = "logger"

    def open(self, run_dir: Path, resumed_epoch: int | None, config: dict[str, Any]) -> None:
        """Called once, before the first record; `resumed_epoch` is None for a new run."""

    def log(self, record: dict[str, Any]) -> None:
        """Take one record."""

    def finish(self, figures: dict[str, Any]) -> None:
        """Called once after the last record of a run that came to its end, with what `Trainer.fit` returns."""

    def close(self) -> None:
        """Called once after all else, also after a failure."""


def series(record: dict[str, Any]) -> dict[str, float]:
    """The numbers of a record, named as curves: epoch/val_top1, hash_fit/BLOCK/recall."""
    prefix = "/".join(str(record[key]) for key in ("event", "block") if key in record)
    return {
        f"{prefix}/{key}": value
        for key, value in record.items()
        if isinstance(value, (int, float)) and key not in ("epoch", "step", "time")
    }


class _FileLogger(Logger, ABC):
    filename: str

    def __init__(self) -> None:
        self.file: TextIO | None = None

    def open(self, run_dir: Path, resumed_epoch: int | None, config: dict[str, Any]) -> None:
        path = run_dir / self.filename
        write_text(path, self._start(run_dir, resumed_epoch))
        self.file = open(path, "a", encoding="utf-8", newline="")  # noqa: SIM115 - closed in close()

    def _write(self, text: str) -> None:
        assert self.file is not None, "open() comes first"
        with writing(Path(self.file.name)):
            # To the disk at once: a record must not be younger than the checkpoint that follows it.
            self.file.write(text)
            self.file.flush()
            os.fsync(self.file.fileno())

    def close(self) -> None:
        if self.file is not None:
            self.file.close()
            self.file = None

    @abstractmethod
    def _start(self, run_dir: Path, resumed_epoch: int | None) -> str:
        """What the file holds before the first record to come."""


class JsonlLogger(_FileLogger):
    """metrics.jsonl: one JSON object a line. Numbers that JSON does not have (NaN, infinity) become null."""

    name = "jsonl"
    filename = METRICS

    def __init__(self) -> None:
        super().__init__()
        self.records: int | None = 0  # in the file; None: the checkpoint does not say (format version 1)

    def log(self, record: dict[str, Any]) -> None:
        self._write(json_text(record) + "\n")
        assert self.records is not None, "open() counts them"
        self.records += 1

    def state_dict(self) -> dict[str, Any]:
        return {"records": self.records}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.records = state.get("records")

    def _start(self, run_dir: Path, resumed_epoch: int | None) -> str:
        records = [] if resumed_epoch is None else read_json_lines(run_dir / self.filename)
        if self.records is None and resumed_epoch is not None:
            records = [record for record in records if record["epoch"] < resumed_epoch]
        else:
            records = records[: self.records]
        self.records = len(records)
        return "".join(json_text(record) + "\n" for record in records)


class CsvLogger(_FileLogger):
    """metrics.csv: the "epoch" records, one row each."""

    name = "csv"
    filename = METRICS_TABLE

    def log(self, record: dict[str, Any]) -> None:
        if record["event"] == "epoch":
            self._write(_csv_line(record))

    def _start(self, run_dir: Path, resumed_epoch: int | None) -> str:
        # Made anew from metrics.jsonl, which is cut and written first, so that the two can never disagree.
        records = [record for record in read_json_lines(run_dir / METRICS) if record["event"] == "epoch"]
        return "".join([",".join(CSV_COLUMNS) + "\n", *map(_csv_line, records)])


def _csv_line(record: dict[str, Any]) -> str:
    """Numbers that are not finite stay blank, as they are null in metrics.jsonl."""
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerow(finite([record[column] for column in CSV_COLUMNS]))
    return buffer.getvalue()

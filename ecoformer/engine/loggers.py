"""Metrics files. A resumed run continues them with no record missing or twice.

Every record is a dict with "event", "epoch", "step" and "time". A checkpoint holds how many there were; on a resume
what was written after it, by a run that was stopped later, is cut off before anything is added.
"""

from __future__ import annotations

import csv
import io
import json
import os
from pathlib import Path
from typing import Any, TextIO

from ecoformer.errors import InputError
from ecoformer.files import json_text, unwritable, write_text

CSV_COLUMNS = (
    "epoch",
    "lr",
    "train_loss",
    "train_top1",
    "val_loss",
    "val_top1",
    "val_top5",
    "images_per_second",
    "train_images_per_second",
    "seconds",
)


class Logger:
    """Where records go. `state_dict` travels in the checkpoint and is handed back before `open` on a resume."""

    name = "logger"

    def open(self, run_dir: Path, resumed_epoch: int | None, config: dict[str, Any]) -> None:
        """Called once, before the first record; `resumed_epoch` is None for a new run."""

    def log(self, record: dict[str, Any]) -> None:
        """Take one record."""

    def close(self) -> None:
        """Called once after the last record, also after a failure."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` returned."""


class _FileLogger(Logger):
    filename: str

    def __init__(self) -> None:
        self.path: Path | None = None
        self.file: TextIO | None = None

    def open(self, run_dir: Path, resumed_epoch: int | None, config: dict[str, Any]) -> None:
        self.path = run_dir / self.filename
        write_text(self.path, self._start() if resumed_epoch is None else self._kept(self.path, resumed_epoch))
        self.file = open(self.path, "a", encoding="utf-8", newline="")  # noqa: SIM115 - closed in close()

    def _write(self, text: str) -> None:
        assert self.file is not None and self.path is not None, "open() comes first"
        try:
            # To the disk at once: a record must not be younger than the checkpoint that follows it.
            self.file.write(text)
            self.file.flush()
            os.fsync(self.file.fileno())
        except OSError as error:
            raise InputError(unwritable(self.path, error)) from error

    def close(self) -> None:
        if self.file is not None:
            self.file.close()
            self.file = None

    def _start(self) -> str:
        return ""

    def _kept(self, path: Path, resumed_epoch: int) -> str:
        raise NotImplementedError


class JsonlLogger(_FileLogger):
    """metrics.jsonl: one JSON object a line. Numbers that JSON does not have (NaN, infinity) become null."""

    name = "jsonl"
    filename = "metrics.jsonl"

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

    def _start(self) -> str:
        self.records = 0
        return ""

    def _kept(self, path: Path, resumed_epoch: int) -> str:
        lines = _jsonl_lines(path)
        if self.records is None:
            kept = [line for line, epoch in lines if epoch < resumed_epoch]
        else:
            kept = [line for line, _ in lines[: self.records]]
        self.records = len(kept)
        return "".join(line + "\n" for line in kept)


class CsvLogger(_FileLogger):
    """metrics.csv: the "epoch" records, one row each."""

    name = "csv"
    filename = "metrics.csv"

    def log(self, record: dict[str, Any]) -> None:
        if record["event"] == "epoch":
            self._write(_csv_line([record[column] for column in CSV_COLUMNS]))

    def _start(self) -> str:
        return _csv_line(list(CSV_COLUMNS))

    def _kept(self, path: Path, resumed_epoch: int) -> str:
        # Made anew from metrics.jsonl, which is cut and written first, so that the two can never disagree.
        rows = [json.loads(line) for line, _ in _jsonl_lines(path.with_name(JsonlLogger.filename))]
        return self._start() + "".join(
            _csv_line([row[column] for column in CSV_COLUMNS]) for row in rows if row["event"] == "epoch"
        )


def _jsonl_lines(path: Path) -> list[tuple[str, int]]:
    """Each whole line and the epoch it belongs to; a killed process may have left the last one unfinished."""
    if not path.is_file():  # `prepare_run_dir` has told the user
        return []
    *lines, _unfinished = path.read_text(encoding="utf-8").split("\n")
    numbered = []
    for number, line in enumerate(lines, start=1):
        try:
            numbered.append((line, int(json.loads(line)["epoch"])))
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path} line {number} is not a metrics record: repair or remove the line") from error
    return numbered


def _csv_line(values: list[Any]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerow(values)
    return buffer.getvalue()

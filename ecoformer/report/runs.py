"""What a run leaves, read whatever state the run is in: summary, settings, metrics, and how far it came."""

import csv
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from ecoformer.config.keys import flat, is_under
from ecoformer.errors import InputError, counted
from ecoformer.files import read_json, read_json_lines, read_lines
from ecoformer.files.run_names import CONFIG, METRICS, METRICS_TABLE, SUMMARY

JOB, LOG = "job.json", "log.txt"  # of a run that a study or a search started
ATTENTION = "attention_energy_pj"  # None where no attention was recognised
FIGURES = ("top1", "energy_pj", ATTENTION, "images_per_second")  # of every finished run
# Where a run lies and how it is watched says nothing about what it computes.
NO_SETTING = ("output_dir", "name", "resume", "overwrite", "logger", "train.progress", "dry_run")


@dataclass(frozen=True)
class RunRecord:
    """One run directory. `summary` is None unless it is finished; `settings` are its config, flattened."""

    path: Path
    summary: dict[str, Any] | None
    settings: dict[str, Any]
    state: str  # "finished", or in words how far it came

    @property
    def finished(self) -> bool:
        return self.summary is not None


def find_runs(folder: Path) -> list[RunRecord]:
    """Every run below a folder, in order of path. Raises InputError if there is no folder, or no run in it."""
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder: give one that holds run directories")
    names = (CONFIG, SUMMARY, JOB)
    paths = {path.parent for name in names for path in folder.rglob(name)}
    kept = sorted(path for path in paths if not any(part.startswith("earlier-") for part in path.parts))
    if not kept:
        raise InputError(f"{folder} holds no run: none of {', '.join(names)} below it")
    return [read_run_dir(path) for path in kept]


def read_run_dir(path: Path) -> RunRecord:
    """One run directory; files that cannot be read make it an unfinished one, never an error."""
    try:
        summary = read_summary(path)
    except InputError:
        return RunRecord(path, None, _settings(path), _how_far(path))
    return RunRecord(path, summary, _settings(path), "finished")


def read_summary(path: Path) -> dict[str, Any]:
    """summary.json of a finished run. Raises InputError if it is missing or holds no figures of a run."""
    summary = read_json(path / SUMMARY)
    if not isinstance(summary, dict) or not all(_is_figure(summary, key) for key in FIGURES):
        raise InputError(f"{path / SUMMARY} holds no figures of a run")
    return summary


def _is_figure(summary: dict[str, Any], key: str) -> bool:
    return isinstance(summary.get(key), int | float) or (key == ATTENTION and summary.get(key, "") is None)


def read_records(path: Path, event: str) -> list[dict[str, Any]]:
    """The records of one event ("epoch", "hash_fit", ...) in a run's metrics.jsonl, in order; none without the file.

    Numbers that were not finite are None. Raises InputError for a damaged line.
    """
    return [record for record in read_json_lines(path / METRICS) if record.get("event") == event]


def read_epochs(path: Path) -> list[dict[str, float]]:
    """The rows of a run's metrics.csv, NaN where a number is missing. Raises InputError if it cannot be read."""
    rows = csv.DictReader(read_lines(path / METRICS_TABLE))
    return [{key: _number(text) for key, text in row.items()} for row in rows]


def _number(text: str | None) -> float:
    try:
        return float(text or "nan")
    except ValueError:
        return math.nan


def has_epochs(path: Path) -> bool:
    """Whether a run's metrics.csv is there and has the figures of an epoch."""
    return (path / METRICS_TABLE).is_file() and bool(read_epochs(path))


def last_line(path: Path) -> str:
    """The last line of a log that is not empty: for a user's error, the one line that states it."""
    try:
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except OSError:
        return "it left no log"
    return lines[-1].strip() if lines else "it printed nothing"


def _how_far(path: Path) -> str:
    try:
        epochs = read_records(path, "epoch")
        job = read_json(path / JOB) if (path / JOB).exists() else {}
    except (InputError, AttributeError) as error:
        return f"unfinished, {error}"
    done = f"{counted(len(epochs), 'epoch')} done" if epochs else "no epoch done"
    if isinstance(job, dict) and job.get("exit_code"):
        return f"failed, {done}: {last_line(path / LOG)}"
    return f"unreadable {SUMMARY}, {done}" if (path / SUMMARY).exists() else f"unfinished, {done}"


def _settings(path: Path) -> dict[str, Any]:
    try:
        tree = OmegaConf.to_container(OmegaConf.load(path / CONFIG))
    except (OSError, YAMLError, OmegaConfBaseException):
        return {}
    found = flat(tree) if isinstance(tree, dict) else {}
    return {name: value for name, value in found.items() if not is_under(name, NO_SETTING)}

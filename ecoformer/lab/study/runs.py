"""Reading run directories, whatever state they are in."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from ecoformer.engine.run_files import CONFIG, SUMMARY
from ecoformer.errors import InputError
from ecoformer.lab.study.runner import JOB, LOG, last_line

METRICS = "metrics.jsonl"
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
    summary = _json(path / SUMMARY)
    if summary is not None and "top1" in summary:
        return RunRecord(path, summary, _settings(path), "finished")
    return RunRecord(path, None, _settings(path), _how_far(path))


def hash_fits(path: Path) -> list[dict[str, Any]]:
    """The `hash_fit` records of a run, one a block and fit, in order."""
    return [record for record in _records(path / METRICS) if record.get("event") == "hash_fit"]


def steps_done(path: Path) -> int | None:
    """Optimiser steps at the end of a run's last epoch, as metrics.jsonl has them; None if it has none."""
    steps = [record.get("step") for record in _records(path / METRICS) if record.get("event") == "epoch"]
    return steps[-1] if steps else None


def _how_far(path: Path) -> str:
    job = _json(path / JOB) or {}
    epochs = [record for record in _records(path / METRICS) if record.get("event") == "epoch"]
    done = f"{len(epochs)} epochs done" if epochs else "no epoch done"
    if job.get("exit_code"):
        return f"failed, {done}: {last_line(path / LOG)}"
    if (path / SUMMARY).exists():
        return f"unreadable {SUMMARY}, {done}"
    return f"unfinished, {done}"


def _settings(path: Path) -> dict[str, Any]:
    try:
        tree = OmegaConf.to_container(OmegaConf.load(path / CONFIG))
    except (OSError, YAMLError, OmegaConfBaseException):
        return {}
    return dict(_flat(tree, "")) if isinstance(tree, dict) else {}


def _flat(tree: dict[Any, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if any(name == other or name.startswith(f"{other}.") for other in NO_SETTING):
            continue
        if isinstance(value, dict):
            yield from _flat(value, f"{name}.")
        else:
            yield name, value


def _records(path: Path) -> Iterator[dict[str, Any]]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:  # a line that a kill cut short
            continue
        if isinstance(record, dict):
            yield record


def _json(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None

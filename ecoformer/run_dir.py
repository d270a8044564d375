"""The run directory: where it is, whether it may be used, whether a run in it is continued, and its config.yaml."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from ecoformer.config import Config
from ecoformer.engine.files import unwritable, write_text
from ecoformer.errors import InputError
from ecoformer.init import read_run

CONFIG, SUMMARY, LAST, BEST = "config.yaml", "summary.json", "last.pt", "best.pt"
RUN_FILES = (CONFIG, SUMMARY, LAST, BEST, "metrics.jsonl", "metrics.csv")

# Settings that may differ when a run is continued: they change where and how it runs, not what it computes.
# The trainer itself compares the global batch, so batch_size and grad_accum may be spread otherwise.
FREE = (
    "name",
    "init",
    "logger",
    "energy",
    "device",
    "threads",
    "deterministic",
    "output_dir",
    "overwrite",
    "resume",
    "dry_run",
    "data.root",
    "data.num_workers",
    "data.download",
    "train.epochs",
    "train.batch_size",
    "train.grad_accum",
    "train.eval_batch_size",
    "train.compile",
    "train.channels_last",
    "train.log_every",
    "train.progress",
    "callbacks.energy_log",
)


@dataclass(frozen=True)
class RunDir:
    """The folder of this run, and the checkpoint that it continues from (None: it starts anew)."""

    path: Path
    resume: Path | None
    notes: list[str]


def choose_run_dir(config: Config) -> RunDir:
    """Decide where the run lives and whether it continues an earlier one. Writes nothing.

    Raises InputError: a folder that holds a run although neither resume nor overwrite is set; resume without a
    folder; a checkpoint whose settings differ, by name; under torchrun, no folder that all ranks would agree on.
    """
    if config.resume not in ("off", "auto"):
        checkpoint = Path(config.resume).expanduser()
        notes = _compare(config, checkpoint)
        return RunDir(_folder(config, default=checkpoint.parent), checkpoint, notes)
    if config.resume == "auto" and config.output_dir is None:
        raise InputError("resume=auto continues the run in output_dir, which is not set: add output_dir=DIR")
    path = _folder(config, default=None)
    if config.resume == "auto":
        if (path / LAST).exists():
            return RunDir(path, path / LAST, _compare(config, path / LAST))
        return RunDir(path, None, [f"resume=auto: {path} holds no {LAST}, starting anew"])
    held = [name for name in (LAST, BEST, SUMMARY) if (path / name).exists()]
    if held and not config.overwrite and not config.dry_run:
        raise InputError(
            f"output_dir={path} already holds a run ({', '.join(held)}): continue it with resume=auto, "
            "set it aside with overwrite=true, or choose another output_dir"
        )
    return RunDir(path, None, [])


def open_run_dir(run: RunDir, config: Config) -> list[str]:
    """Make the folder, set an earlier run aside if asked to, write config.yaml; return notes. Rank 0 calls it."""
    notes = []
    try:
        run.path.mkdir(parents=True, exist_ok=True)
        if run.resume is None and config.overwrite:
            notes += _set_aside(run.path)
    except OSError as error:
        raise InputError(unwritable(run.path, error)) from error
    write_text(run.path / CONFIG, OmegaConf.to_yaml(OmegaConf.structured(config)))
    return notes


def _folder(config: Config, default: Path | None) -> Path:
    if config.output_dir is not None:
        return Path(config.output_dir).expanduser()
    if default is not None:
        return default
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        # The ranks start at different moments, and so does a rank that is started again.
        raise InputError("several processes need one output_dir to share: add output_dir=DIR")
    return Path("outputs") / config.name / f"{datetime.now():%Y-%m-%d_%H-%M-%S}"


def _set_aside(path: Path) -> list[str]:
    present = [name for name in RUN_FILES if (path / name).exists()]
    if not present:
        return []
    number = 1
    while (path / f"earlier-{number}").exists():
        number += 1
    aside = path / f"earlier-{number}"
    aside.mkdir()
    for name in present:
        os.replace(path / name, aside / name)
    return [f"overwrite=true: the earlier run is now in {aside}"]


def _compare(config: Config, checkpoint: Path) -> list[str]:
    saved = read_run(checkpoint).config
    then, now = _flat(asdict(saved)), _flat(asdict(config))
    for key in sorted({*then, *now}):
        free = any(key == name or key.startswith(f"{name}.") for name in FREE)
        if not free and then.get(key) != now.get(key):
            raise InputError(
                f"{checkpoint} was written with {key}={then.get(key)}, now it is {now.get(key)}: "
                "keep it, or start a new run in another output_dir"
            )
    if saved.train.epochs != config.train.epochs:
        return [f"train.epochs was {saved.train.epochs}, now {config.train.epochs}: the schedule is stretched to it"]
    return []


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        nested = isinstance(value, dict)
        flat |= _flat(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
    return flat

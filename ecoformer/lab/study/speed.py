"""Images per second of a study's models, measured in turns on one machine once all are trained."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ecoformer.config.schema import EvalConfig
from ecoformer.files import write_json
from ecoformer.files.run_names import BEST
from ecoformer.lab.speed.throughput import forward_pass, interleaved_seconds
from ecoformer.lab.study.plan import Job, StudyConfig
from ecoformer.run.build import build_evaluation

BATCH_SIZE = 64


def write_speed(study: StudyConfig, planned: Sequence[Job], out: Path) -> None:
    """Write speed.json: of every backbone its finished rows, their first seeds, in turns on one batch of images."""
    measured = {}
    for backbone in study.backbones:
        folders: dict[str, Path] = {}
        for job in planned:
            if job.backbone == backbone and job.row is not None and job.is_finished:
                folders.setdefault(job.row.label, job.folder)
        if folders:
            measured[backbone] = _rates(folders)
    if measured:
        write_json(out / "speed.json", measured)


def _rates(checkpoints: dict[str, Path]) -> dict[str, Any]:
    """Images/s of forward passes, by label the median over the rounds, the slowest ("low") and the fastest ("high")."""
    cpu = torch.device("cpu")
    evaluations = {
        label: build_evaluation(EvalConfig(checkpoint=str(path / BEST), progress=False, batch_size=BATCH_SIZE), cpu)
        for label, path in checkpoints.items()
    }
    images, _ = next(iter(next(iter(evaluations.values())).data.val_loader))
    passes = {label: forward_pass(found.model, images) for label, found in evaluations.items()}
    rates: dict[str, Any] = {}
    for label, seconds in interleaved_seconds(passes, cpu).items():
        seen = [len(images) / each for each in seconds]
        rates[label] = {"median": statistics.median(seen), "low": min(seen), "high": max(seen)}
    return {"batch_size": len(images), "threads": torch.get_num_threads(), "rates": rates}


def with_speed(rows: Sequence[dict[str, Any]], measured: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows with the measured rates where there are any; `measured` is what `write_speed` wrote."""
    return [
        row | {"images_per_second": measured[row["backbone"]]["rates"][row["label"]]["median"]}
        if row["label"] in measured.get(row["backbone"], {}).get("rates", {})
        else row
        for row in rows
    ]


def with_steps(rows: Sequence[dict[str, Any]], measured: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows as a table of tasks: task, accuracy, step_ms and peak_mib beside the rest.

    `measured` are rows of `ecoformer benchmark --mode train`, of which those of a row's model and attention, at default
    settings, give the last two; None: not measured.
    """
    found = {(step["model"], step["attention"]): step for step in measured}
    return [
        row
        | {"task": row["backbone"], "accuracy": row["top1"]}
        | {
            name: None if row["name"] else found.get((row["model"], row["attention"]), {}).get(key)
            for name, key in (("step_ms", "milliseconds"), ("peak_mib", "peak_mib"))
        }
        for row in rows
    ]

"""Images per second of a study's models, measured in turns on one machine once all are trained."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ecoformer.config.schema import EvalConfig
from ecoformer.engine.run_files import BEST
from ecoformer.lab.speed.throughput import interleaved_throughput
from ecoformer.run.build import build_evaluation


def measure_speed(checkpoints: dict[str, Path], batch_size: int) -> dict[str, Any]:
    """Forward passes of models of one backbone in turns, on validation images of the first.

    Args:
        checkpoints: label -> run directory.
    Returns:
        label -> {median, low, high} images/s, and "batch_size" and "threads" beside them.
    """
    cpu = torch.device("cpu")
    evaluations = {
        label: build_evaluation(EvalConfig(checkpoint=str(path / BEST), progress=False, batch_size=batch_size), cpu)
        for label, path in checkpoints.items()
    }
    images, _ = next(iter(next(iter(evaluations.values())).data.val_loader))
    rates = interleaved_throughput({label: found.model.eval() for label, found in evaluations.items()}, images)
    return {"batch_size": len(images), "threads": torch.get_num_threads(), "rates": rates}


def with_speed(rows: Sequence[dict[str, Any]], measured: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows with the measured rates where there are any; `measured` maps a backbone to `measure_speed`'s result."""
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

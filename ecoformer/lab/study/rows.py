"""The rows of a study: one per seed as they were measured, then seeds put together with mean and spread."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from ecoformer.errors import InputError
from ecoformer.files import read_json
from ecoformer.files.run_names import SUMMARY
from ecoformer.lab.study.plan import Job, StudyConfig
from ecoformer.lab.study.prediction import compose_run
from ecoformer.report.runs import JOB, read_records, read_summary

Row = dict[str, Any]
OF_A_RUN = ("model", "attention_options", "epochs", "last_top1", "params", "energy_convention", "duration_s")
BESIDE = ("msa", "stock", "uniform")


def collect(study: StudyConfig, jobs: Sequence[Job]) -> list[Row]:
    """One row for each finished run that is a row of the table, JSON-ready.

    `init` is "scratch", or "converted" from the weights of `source`; `training_seed` that of the model that the row is
    made of; `overrides` the row's own; `epochs_stage2` 0 where it is converted without training; `steps_stage2` are
    optimiser steps, since train.max_steps may cut an epoch short; `top1` is of the last epoch; `images_per_second` of
    the run's own evaluation, until `study.speed` measures all in turns.
    """
    by_id = {job.id: job for job in jobs}
    rows = []
    for job in jobs:
        if job.row is None or not job.is_finished:
            continue
        summary = read_summary(job.folder)
        if lacks := [key for key in OF_A_RUN if key not in summary]:
            raise InputError(f"{job.folder / SUMMARY} lacks {', '.join(lacks)}: remove it, and the run is done again")
        record = read_json(job.folder / JOB) if (job.folder / JOB).is_file() else {}
        steps = [epoch["step"] for epoch in read_records(job.folder, "epoch")]
        rows.append(
            {
                "dataset": summary.get("dataset"),
                "backbone": job.backbone,
                "model": summary["model"],
                "attention": job.row.attention,
                "settings": summary["attention_options"],
                "name": job.row.name,
                "overrides": job.row.overrides,
                "label": job.row.label,
                "init": "scratch" if job.needs is None else "converted",
                "source": job.row.source,
                "seed": job.seed,
                "stage1_seed": job.stage1_seed,
                "training_seed": job.stage1_seed,
                "epochs_stage1": summary["epochs"] if job.needs is None else _epochs(by_id[job.needs]),
                "epochs_stage2": 0 if job.needs is None else summary["epochs"],
                "steps_stage2": steps[-1] if steps and job.needs is not None else 0,
                "top1": summary["last_top1"],
                "best_top1": summary["top1"],
                **{key: summary[key] for key in ("params", "energy_pj", "attention_energy_pj", "energy_convention")},
                "images_per_second": summary["images_per_second"],
                "duration_s": summary["duration_s"],
                "published_top1": job.row.published.get("top1"),
                "published_energy_pj": job.row.published.get("energy_pj"),
                "command": record.get("command", job.command()),
                "commit": record.get("commit", "unknown"),
                "run": job.id,
            }
        )
    return rows


def _epochs(job: Job) -> int:
    """Of a run that others start from: as it ended, or, where it is not at hand, as it is asked for."""
    return int(read_summary(job.folder)["epochs"] if job.is_finished else compose_run(job.arguments).train.epochs)


def over_seeds(rows: Sequence[Mapping[str, Any]]) -> list[Row]:
    """Rows that differ in nothing but their seed as one: top1 is the mean, top1_sd the sample deviation (None for one).

    `seeds` lists them; `vs_msa`, `vs_stock` and `vs_uniform` are the points of the mean above that row of the same
    backbone with the same training; None where there is no such row.
    """
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["backbone"], row["label"]), []).append(row)
    merged: list[Row] = []
    for found in groups.values():
        merged.append(
            {
                **found[0],
                **mean_and_spread("top1", found),
                "seeds": [row["seed"] for row in found],
                "images_per_second": statistics.median(row["images_per_second"] for row in found),
            }
        )
    for row in merged:
        for control in BESIDE:
            other = baseline(row, merged, control)
            row[f"vs_{control}"] = None if other is None else row["top1"] - other["top1"]
    return merged


def of_one_model(rows: Sequence[Row]) -> list[Row]:
    """The rows of the smallest stage-1 seed, and those from scratch that were run with other seeds alone."""
    first = min(row["stage1_seed"] for row in rows)
    found = {(row["backbone"], row["label"]) for row in rows if row["stage1_seed"] == first}
    others = [row for row in rows if row["init"] == "scratch" and (row["backbone"], row["label"]) not in found]
    return [row for row in rows if row["stage1_seed"] == first] + others


def over_stage1_seeds(rows: Sequence[Mapping[str, Any]]) -> list[Row]:
    """Rows with runs from several stage-1 seeds (`stage1_seeds`): means over those, sample deviations as top1_sd etc.

    Each stage-1 seed counts once, as the mean of its runs. Points above a control (`vs_msa`, `vs_msa_sd`, ...) are
    taken between runs from the same stage-1 seed, which share its luck; None where one of them lacks the control.
    """
    groups: dict[tuple[str, str], list[Row]] = {}
    for seed in sorted({row["stage1_seed"] for row in rows}):
        for row in over_seeds([row for row in rows if row["stage1_seed"] == seed]):
            groups.setdefault((row["backbone"], row["label"]), []).append(row)
    keys = ("top1", *(f"vs_{control}" for control in BESIDE))
    return [
        {
            **found[0],
            "stage1_seeds": [row["stage1_seed"] for row in found],
            **{name: value for key in keys for name, value in mean_and_spread(key, found).items()},
        }
        for found in groups.values()
        if len(found) > 1
    ]


def mean_and_spread(key: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """Mean and sample deviation of a figure as KEY and KEY_sd; None where a row has none, the latter of one row too."""
    values = [row[key] for row in rows]
    if None in values:
        return {key: None, f"{key}_sd": None}
    return {key: statistics.fmean(values), f"{key}_sd": statistics.stdev(values) if len(values) > 1 else None}


def baseline(row: Mapping[str, Any], rows: Sequence[Row], attention: str) -> Row | None:
    """The row of `attention` on the same backbone with the same training.

    Of several one that was made of the same `source`, of those the one whose overrides are most like the row's (the
    same optim.lr), of those that of the shortest name.
    """
    same = [
        other
        for other in rows
        if (other["backbone"], other["attention"]) == (row["backbone"], attention)
        and all(other[key] == row[key] for key in ("init", "epochs_stage1", "epochs_stage2", "steps_stage2"))
    ]

    def distance(other: Row) -> tuple[bool, int, int]:
        unlike = {*row.get("overrides", ())} ^ {*other.get("overrides", ())}
        return other.get("source") != row.get("source"), len(unlike), len(other["name"])

    return min(same, key=distance, default=None)

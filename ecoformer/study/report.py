"""The report of a study: table.json, .md, .csv, .tex and the plots, from whatever runs are finished."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from ecoformer.comparison.curves import plot_training_curves
from ecoformer.energy.report import render
from ecoformer.engine.files import write_text
from ecoformer.engine.run_files import SUMMARY
from ecoformer.errors import InputError
from ecoformer.study.plan import Job, StudyConfig
from ecoformer.study.plots import plot_front, plot_hash_quality
from ecoformer.study.rows import collect, over_seeds
from ecoformer.study.runs import hash_fits
from ecoformer.study.speed import with_speed
from ecoformer.study.tables import NOTES, study_table

FILES = {"md": "table.md", "csv": "table.csv", "latex": "table.tex"}


def report(study: StudyConfig, jobs: Sequence[Job], out: Path) -> str:
    """Write the report and return its table for a terminal. Raises InputError if no row is finished."""
    rows = collect(study, jobs)
    if not rows:
        raise InputError(f"{out} holds no finished row of {study.title}: run it without --report")
    speed = out / "speed.json"
    rows_of_first = [row for row in rows if row["stage1_seed"] == 0]
    merged = over_seeds(with_speed(rows_of_first, json.loads(speed.read_text()) if speed.exists() else {}))
    write_text(out / "table.json", json.dumps(rows, indent=2) + "\n")
    table = study_table(merged)
    for format, name in FILES.items():
        write_text(out / name, render(table, format, study.title, NOTES) + "\n")
    by_id = {job.id: job for job in jobs}
    for name, backbone in study.backbones.items():
        of_backbone = [row for row in merged if row["backbone"] == name]
        if of_backbone:
            plot_front(of_backbone, out / f"{name}_energy.png", f"{study.title}, {backbone.title}")
        finished = [job for job in jobs if job.backbone == name and (job.folder / SUMMARY).is_file()]
        # One seed of a row: the others lie on top of it.
        trained = {
            job.id.partition("/")[2] if job.row is None else job.row.label: job
            for job in finished
            if job.row is None or (job.row.finetune and job.stage1_seed == 0 and job.seed == job.row.seeds[0])
        }
        if trained:
            folders = {label: job.folder for label, job in trained.items()}
            before = {label: _epochs(by_id[job.needs]) for label, job in trained.items() if job.needs is not None}
            plot_training_curves(folders, out / f"{name}_curves.png", before)
        fits = {job.row.label: hash_fits(job.folder) for job in finished if job.row is not None and job.seed == 0}
        plot_hash_quality(fits, out / f"{name}_hash_quality.png")
    return render(table, "table", study.title, NOTES)


def _epochs(job: Job) -> int:
    found = json.loads((job.folder / SUMMARY).read_text())["epochs"]
    assert isinstance(found, int)
    return found

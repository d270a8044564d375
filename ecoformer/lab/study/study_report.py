"""The report of a study, from whatever runs are finished: table.json, .md, .csv, .tex, the plots, and stage1_seeds.*
where rows start from models trained with several seeds. steps.json, if it is there, is what `ecoformer benchmark --mode
train --out` wrote, and gives rows the time and memory of a training step."""

from collections.abc import Sequence
from pathlib import Path

from ecoformer.engine.run_files import SUMMARY
from ecoformer.errors import InputError
from ecoformer.files import read_json, write_json
from ecoformer.files.table import write_table
from ecoformer.lab.study.plan import Job, StudyConfig
from ecoformer.lab.study.plots import plot_front, plot_hash_quality
from ecoformer.lab.study.rows import Row, collect, over_seeds, over_stage1_seeds
from ecoformer.lab.study.speed import with_speed, with_steps
from ecoformer.lab.study.tables import NOTES, STAGE1_SEED_NOTES, stage1_seed_table, study_table
from ecoformer.report.curves import plot_training_curves
from ecoformer.report.runs import read_records, read_summary


def report(study: StudyConfig, jobs: Sequence[Job], out: Path) -> str:
    """Write the report and return its tables for a terminal. Raises InputError if no row is finished."""
    merged, printed = write_tables(study, jobs, out)
    first = min(row["stage1_seed"] for row in merged)
    _plot(study, [job for job in jobs if job.stage1_seed == first], merged, out)
    return "\n".join(printed)


def write_tables(study: StudyConfig, jobs: Sequence[Job], out: Path) -> tuple[list[Row], list[str]]:
    """Write the report without its plots; return the rows of the table and both tables for a terminal."""
    rows = collect(study, jobs)
    if not rows:
        raise InputError(f"{out} holds no finished row of {study.title}: run it without --report")
    speed, steps = out / "speed.json", out / "steps.json"
    if steps.exists():
        rows = with_steps(rows, read_json(steps))
    first = min(row["stage1_seed"] for row in rows)
    of_one_model = [row for row in rows if row["stage1_seed"] == first]
    merged = over_seeds(with_speed(of_one_model, read_json(speed) if speed.exists() else {}))
    write_json(out / "table.json", rows)
    printed = [write_table(study_table(merged), out / "table", study.title, NOTES)]
    if of_seeds := over_stage1_seeds(rows):
        table = stage1_seed_table(of_seeds)
        printed.append(write_table(table, out / "stage1_seeds", f"{study.title}, stage-1 seeds", STAGE1_SEED_NOTES))
    return merged, printed


def _plot(study: StudyConfig, jobs: Sequence[Job], merged: Sequence[Row], out: Path) -> None:
    by_id = {job.id: job for job in jobs}
    for name, backbone in study.backbones.items():
        of_backbone = [row for row in merged if row["backbone"] == name]
        if of_backbone:
            plot_front(of_backbone, out / f"{name}_energy.png", f"{study.title}, {backbone.title}")
        finished = [job for job in jobs if job.backbone == name and (job.folder / SUMMARY).is_file()]
        # One seed of a row: the others lie on top of it.
        shown: dict[str, Job] = {}
        for job in finished:
            shown.setdefault(job.id.partition("/")[2] if job.row is None else job.row.label, job)
        trained = {label: job for label, job in shown.items() if job.row is None or job.row.finetune}
        if trained:
            folders = {label: job.folder for label, job in trained.items()}
            sources = {label: by_id[job.needs] for label, job in trained.items() if job.needs is not None}
            before = {label: read_summary(source.folder)["epochs"] for label, source in sources.items()}
            plot_training_curves(folders, out / f"{name}_curves.png", before)
        fits = {label: read_records(job.folder, "hash_fit") for label, job in shown.items() if job.row is not None}
        plot_hash_quality(fits, out / f"{name}_hash_quality.png")

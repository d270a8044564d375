"""The reports of this room: of a study from whatever runs are finished, of any folder of runs, of energy alone.

A study's is table.json, .md, .csv, .tex, the plots, and stage1_seeds.* where rows start from models trained with
several seeds. steps.json, if it is there, is what `ecoformer benchmark --mode train --out` wrote, and gives rows the
time and memory of a training step.
"""

from collections.abc import Sequence
from pathlib import Path

from ecoformer.energy import load_profile
from ecoformer.errors import InputError, counted
from ecoformer.files import read_json, write_json
from ecoformer.files.table import render, write_table
from ecoformer.lab.energy.cases import cases
from ecoformer.lab.energy.energy_tables import BASELINES, published_table, summary_table
from ecoformer.lab.energy.published import PUBLISHED, TITLE, compare_published, faults
from ecoformer.lab.study.plan import Job, StudyConfig
from ecoformer.lab.study.plots import plot_front, plot_hash_quality
from ecoformer.lab.study.rows import Row, collect, of_one_model, over_seeds, over_stage1_seeds
from ecoformer.lab.study.speed import with_speed, with_steps
from ecoformer.lab.study.tables import NOTES, STAGE1_SEED_NOTES, stage1_seed_table, study_table, sweep_table, swept_keys
from ecoformer.report.runs import RunRecord, find_runs, read_records, read_summary
from ecoformer.report.training import plot_gap, plot_training_curves

SWEEP_NOTE = "top-1 of each run's best epoch; energy: modelled, a sample, attention: the cores between the projections"
ENOUGH_EPOCHS = 5  # for a curve
LONGEST_LABEL = 96  # characters of the settings of a run in a legend; beyond, its folder tells it from others
# Top-1 on ImageNet-1K that others measured: EcoFormer as published, stock as timm reports for its weights.
TOP1 = {
    ("pvt_v2_b0", "ecoformer"): 70.44,
    ("pvt_v2_b1", "ecoformer"): 78.38,
    ("pvt_v2_b2", "ecoformer"): 81.28,
    ("pvt_v2_b3", "ecoformer"): 81.96,
    ("pvt_v2_b4", "ecoformer"): 81.90,
    ("twins_svt_small", "ecoformer"): 80.22,
    ("pvt_v2_b0", "stock"): 70.65,
    ("pvt_v2_b1", "stock"): 78.70,
    ("pvt_v2_b2", "stock"): 82.06,
    ("pvt_v2_b3", "stock"): 83.12,
    ("pvt_v2_b4", "stock"): 83.71,
    ("twins_svt_small", "stock"): 81.69,
}


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
    merged = over_seeds(with_speed(of_one_model(rows), read_json(speed) if speed.exists() else {}))
    # The command says the overrides too.
    write_json(out / "table.json", [{key: row[key] for key in row if key != "overrides"} for row in rows])
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
        finished = [job for job in jobs if job.backbone == name and job.is_finished]
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
            _plot_gap([job for job in trained.values() if job.needs is not None], out / f"{name}_gap.png")
        fits = {label: read_records(job.folder, "hash_fit") for label, job in shown.items() if job.row is not None}
        plot_hash_quality(fits, out / f"{name}_hash_quality.png")


def _plot_gap(tuned: Sequence[Job], out: Path) -> None:
    rows = [(job.row, job.folder) for job in tuned if job.row is not None]
    softmax = [(row.label, folder) for row, folder in rows if row.attention == "msa"]
    if softmax and read_summary(softmax[0][1])["epochs"] >= ENOUGH_EPOCHS:
        plot_gap({row.label: folder for row, folder in rows}, softmax[0][0], out)


def sweep_report(folder: Path, out: Path) -> str:
    """Write sweep.json, .md, .csv, .tex and front.png (where a run is finished); return the text for a terminal.

    Raises InputError if there is no run below the folder.
    """
    runs = find_runs(folder)
    finished = [run for run in runs if run.finished]
    keys = swept_keys(finished)
    unfinished = [f"{run.path.relative_to(folder)}: {run.state}" for run in runs if not run.finished]
    rows = [_sweep_row(run, folder, keys) for run in finished]
    write_json(out / "sweep.json", {"rows": rows, "unfinished": unfinished})
    table = sweep_table(runs, folder)
    notes = [SWEEP_NOTE, *([f"not finished, {line}" for line in unfinished])]
    if not finished:
        return "\n".join([f"{folder}: {counted(len(runs), 'run')}, none finished", *notes[1:]])
    done = f"{len(finished)} of {counted(len(runs), 'run')}"
    write_table(table, out / "sweep", done, notes)
    plot_front([{**row, "top1_sd": None} for row in rows], out / "front.png", f"{done} of {folder.name}")
    return render(table, "table", f"{done} finished", notes)


def _sweep_row(run: RunRecord, folder: Path, keys: list[str]) -> dict[str, object]:
    assert run.summary is not None
    settings, name = {key: run.settings.get(key) for key in keys}, str(run.path.relative_to(folder))
    last = [key.rpartition(".")[2] for key in keys]
    swept = ", ".join(
        f"{short if last.count(short) == 1 else key}={settings[key]}"
        for key, short in zip(keys, last, strict=True)
        if key != "seed" and settings[key] is not None
    )
    label = swept if 0 < len(swept) <= LONGEST_LABEL else name
    return {**run.summary, "run": name, "settings": settings, "label": label}


def report_energy(out: Path) -> int:
    """Published energies beside ours, and beside stock and MSA of every model: needs no data.

    Write the tables and the plot, print them, and return 1 if a published figure is not met, else 0.
    """
    comparisons = compare_published()
    profile = load_profile("45nm_fp32")
    rows = [case.row("paper", profile) for case in cases(list(PUBLISHED))]
    table, compared = summary_table(rows), published_table(comparisons)
    write_json(out / "table.json", {"published": compared.texts, "rows": rows})
    write_table(compared, out / "published", TITLE, [BASELINES])
    write_table(table, out / "models", "Energy, paper convention", [BASELINES])
    points = [
        {**row, "label": f"{row['model']} {row['attention']}", "top1": top1}
        for row in rows
        if (top1 := TOP1.get((row["model"], row["attention"]))) is not None
    ]
    plot_front(
        points, out / "energy.png", "ImageNet-1K: published top-1 (EcoFormer: the paper; stock: timm), our energy"
    )
    print(render(compared, "table", TITLE))
    print(render(table, "table", "Energy, paper convention", [BASELINES, f"{out} holds the tables and energy.png"]))
    return 1 if faults(comparisons) else 0

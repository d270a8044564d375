"""Any folder of runs as one table and one Pareto plot."""

from pathlib import Path

from ecoformer.files import write_json
from ecoformer.files.table import render, write_table
from ecoformer.lab.study.plots import plot_front
from ecoformer.lab.study.tables import sweep_table, swept_keys
from ecoformer.report.runs import RunRecord, find_runs

NOTE = "top-1 of each run's best epoch; energy: modelled, one image, attention: the cores between the projections"


def sweep_report(folder: Path, out: Path) -> str:
    """Write sweep.json, .md, .csv, .tex and front.png (where a run is finished); return the text for a terminal.

    Raises InputError if there is no run below the folder.
    """
    runs = find_runs(folder)
    finished = [run for run in runs if run.finished]
    keys = swept_keys(finished)
    unfinished = [f"{run.path.relative_to(folder)}: {run.state}" for run in runs if not run.finished]
    rows = [_row(run, folder, keys) for run in finished]
    write_json(out / "sweep.json", {"rows": rows, "unfinished": unfinished})
    table = sweep_table(runs, folder)
    notes = [NOTE, *([f"not finished, {line}" for line in unfinished])]
    if not finished:
        return "\n".join([f"{folder}: {len(runs)} runs, none finished", *notes[1:]])
    write_table(table, out / "sweep", f"{len(finished)} of {len(runs)} runs", notes)
    plot_front([{**row, "top1_sd": None} for row in rows], out / "front.png", f"{len(finished)} runs of {folder.name}")
    return render(table, "table", f"{len(finished)} of {len(runs)} runs finished", notes)


def _row(run: RunRecord, folder: Path, keys: list[str]) -> dict[str, object]:
    assert run.summary is not None
    settings = {key: run.settings.get(key) for key in keys}
    swept = ", ".join(
        f"{key.rpartition('.')[2]}={value}" for key, value in settings.items() if key != "seed" and value is not None
    )
    return {
        **run.summary,
        "run": str(run.path.relative_to(folder)),
        "settings": settings,
        "label": swept or run.path.name,
    }

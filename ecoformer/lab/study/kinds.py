"""Runs that differ in their attention alone, side by side: accuracy, and energy in both conventions."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ecoformer.energy import summarize
from ecoformer.energy.conventions import CONVENTIONS
from ecoformer.errors import InputError, counted
from ecoformer.files import write_json, write_text
from ecoformer.files.run_names import BEST
from ecoformer.files.table import Column, Table, render, saves
from ecoformer.lab.study.plots import plot_front
from ecoformer.lab.subject import CONTROLS
from ecoformer.nn.base import given
from ecoformer.nn.inputs import input_size
from ecoformer.report.runs import find_runs
from ecoformer.run.start import model_of_run, read_run

FIRST = ("stock", "msa")  # what the others are set beside
EARLIER = {"compress": {"name": "none"}}  # what summaries without the key were made with
ALIKE = ("model", "dataset", "img_size", "seq_len", "patch_stride", "compress", "epochs")
OF_A_RUN = ("model", "dataset", "img_size", "epochs", "seed", "top1", "last_top1", "best_epoch", "params")
OF_A_LEDGER = ("energy_pj", "attention_energy_pj", "attention_muls", "attention_adds", "uncounted")
NOTE = (
    "top-1 of the best epoch; energy of one sample, modelled, 45nm_fp32; attention: what lies between the projections, "
    "the last stage's MSA included, and for distilled_hash the projections, which it has folded in; saved: against "
    "stock and against MSA, negative where it costs more"
)


def kinds_report(folder: Path, out: Path) -> str:
    """Write table.json, table.md and energy.png of the runs below a folder; return the table for a terminal.

    Raises InputError: no finished run, two of the same attention, or runs that differ in more than that.
    """
    rows = kind_rows(folder)
    first = rows[0]
    size = f"{first['seq_len']} tokens" if "seq_len" in first else f"{first['img_size']} px"
    title = f"{first['model']} on {first['dataset']}, {size}, {counted(first['epochs'], 'epoch')}"
    table = kinds_table(rows)
    write_json(out / "table.json", rows)
    write_text(out / "table.md", render(table, "md", title, [NOTE]) + "\n")
    points = [{**row, "label": row["attention"], **row["paper"]} for row in rows]
    plot_front(points, out / "energy.png", f"{title}: paper convention")
    return render(table, "table", title, [NOTE])


def kind_rows(folder: Path) -> list[dict[str, Any]]:
    """One JSON-ready row a run: settings, top1, params, and under "paper" and "audited" energies and `uncounted`."""
    rows: dict[str, dict[str, Any]] = {}
    finished = [(run, run.summary) for run in find_runs(folder) if run.summary is not None]
    for run, summary in finished:
        first, like = finished[0]
        for key in ALIKE:
            here, there = (read.get(key, EARLIER.get(key)) for read in (summary, like))
            if here != there:
                raise InputError(f"{run.path.name} has {key}={here}, {first.path.name} {there}: compare like runs")
        saved = read_run(run.path / BEST)
        kind = saved.config.attention["name"]
        if kind in rows:
            raise InputError(f"{folder} holds two runs of attention={kind}: {rows[kind]['run']} and {run.path.name}")
        model = model_of_run(saved)
        size = input_size(model, saved.config.data.img_size)
        counted = {convention: summarize(model, size, convention) for convention in CONVENTIONS}
        rows[kind] = {
            "attention": kind,
            "options": summary["attention_options"],
            "control": kind in CONTROLS,
            **{key: summary[key] for key in OF_A_RUN},
            **given(seq_len=summary.get("seq_len")),  # not of images
            **{name: {key: figures[key] for key in OF_A_LEDGER} for name, figures in counted.items()},
            "run": run.path.name,
        }
    if not rows:
        raise InputError(f"{folder} holds no finished run: train some with train.py attention=KIND output_dir=...")
    return sorted(rows.values(), key=lambda row: (row["attention"] not in FIRST, row["control"], row["attention"]))


def kinds_table(rows: Sequence[dict[str, Any]]) -> Table:
    """Runs side by side, energies in µJ."""
    flat = [{**row, **row["paper"]} for row in rows]
    columns = [
        Column("attention", lambda row: row["attention"] + (" (control)" if row["control"] else ""), left=True),
        Column("top-1 %", "top1", "{:.2f}"),
        Column("parameters", "params", "{:,}"),
        Column("µJ, paper", "energy_pj", "{:.2f}", 1e6),
        saves("saved/stock", flat, "stock", "energy_pj"),
        saves("saved/MSA", flat, "msa", "energy_pj"),
        Column("attention µJ, paper", "attention_energy_pj", "{:.3f}", 1e6, wide=True),
        saves("attn saved/stock", flat, "stock", "attention_energy_pj", wide=True),
        saves("attn saved/MSA", flat, "msa", "attention_energy_pj", wide=True),
        Column("µJ, audited", lambda row: row["audited"]["energy_pj"], "{:.2f}", 1e6),
        Column("attention µJ, audited", lambda row: row["audited"]["attention_energy_pj"], "{:.3f}", 1e6, wide=True),
    ]
    return Table(columns, flat)

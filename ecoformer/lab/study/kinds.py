"""Runs that differ in their attention alone, side by side: accuracy, and energy in both conventions."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ecoformer.energy import summarize
from ecoformer.energy.conventions import CONVENTIONS
from ecoformer.engine.run_files import BEST
from ecoformer.errors import InputError
from ecoformer.files import write_text
from ecoformer.lab.energy.report import render
from ecoformer.lab.study.plots import plot_front
from ecoformer.lab.study.runs import find_runs
from ecoformer.run.start import model_of_run, read_run

CONTROLS = ("uniform", "none", "random_hash", "msa_shared_qk")
FIRST = ("stock", "msa")  # what the others are set beside
OF_A_RUN = ("model", "dataset", "img_size", "epochs", "seed", "top1", "last_top1", "best_epoch", "params")
OF_A_LEDGER = ("energy_pj", "attention_energy_pj", "attention_muls", "attention_adds", "uncounted")
NOTE = (
    "top-1 of the best epoch; energy of one image, modelled, 45nm_fp32; attention: what lies between the projections, "
    "the last stage's MSA included, and for distilled_hash the projections, which it has folded in; saved: against "
    "stock and against MSA, negative where it costs more"
)


def kinds_report(folder: Path, out: Path) -> str:
    """Write table.json, table.md and energy.png of the runs below a folder; return the table for a terminal.

    Raises InputError: no finished run, two of the same attention, or runs that differ in more than that.
    """
    rows = kind_rows(folder)
    title = f"{rows[0]['model']} on {rows[0]['dataset']}, {rows[0]['img_size']} px, {rows[0]['epochs']} epochs"
    table = kinds_table(rows)
    write_text(out / "table.json", json.dumps(rows, indent=2) + "\n")
    write_text(out / "table.md", render(table, "md", title, [NOTE]) + "\n")
    points = [{**row, "label": row["attention"], **row["paper"]} for row in rows]
    plot_front(points, out / "energy.png", f"{title}: paper convention")
    return render(table, "table", title, [NOTE])


def kind_rows(folder: Path) -> list[dict[str, Any]]:
    """One JSON-ready row a run: settings, top1, params, and under "paper" and "audited" energies and `uncounted`."""
    rows: dict[str, dict[str, Any]] = {}
    for run in find_runs(folder):
        if run.summary is None:
            continue
        saved = read_run(run.path / BEST)
        kind = saved.config.attention["name"]
        if kind in rows:
            raise InputError(f"{folder} holds two runs of attention={kind}: {rows[kind]['run']} and {run.path.name}")
        model, img_size = model_of_run(saved), saved.config.data.img_size
        rows[kind] = {
            "attention": kind,
            "options": run.summary["attention_options"],
            "control": kind in CONTROLS,
            **{key: run.summary[key] for key in OF_A_RUN},
            **{convention: _energy(summarize(model, img_size, convention)) for convention in CONVENTIONS},
            "run": run.path.name,
        }
    if not rows:
        raise InputError(f"{folder} holds no finished run: train some with train.py attention=KIND output_dir=...")
    first = next(iter(rows.values()))
    for row in rows.values():
        for key in ("model", "dataset", "img_size", "epochs"):
            if row[key] != first[key]:
                raise InputError(f"{row['run']} has {key}={row[key]}, {first['run']} {first[key]}: compare like runs")
    return sorted(rows.values(), key=lambda row: (row["attention"] not in FIRST, row["control"], row["attention"]))


def _energy(figures: dict[str, Any]) -> dict[str, Any]:
    return {key: figures[key] for key in OF_A_LEDGER}


def kinds_table(rows: Sequence[dict[str, Any]]) -> list[dict[str, str]]:
    """The rows as texts, energies in µJ."""
    by_kind = {row["attention"]: row for row in rows}

    def saved(row: dict[str, Any], against: str, key: str) -> str:
        other = by_kind.get(against)
        if other is None or other is row:
            return "-"
        return f"{100 * (1 - row['paper'][key] / other['paper'][key]):.1f} %"

    return [
        {
            "attention": row["attention"] + (" (control)" if row["control"] else ""),
            "top-1 %": f"{row['top1']:.2f}",
            "parameters": f"{row['params']:,}",
            "µJ, paper": f"{row['paper']['energy_pj'] / 1e6:.2f}",
            "saved/stock": saved(row, "stock", "energy_pj"),
            "saved/MSA": saved(row, "msa", "energy_pj"),
            "attention µJ, paper": f"{row['paper']['attention_energy_pj'] / 1e6:.3f}",
            "attn saved/stock": saved(row, "stock", "attention_energy_pj"),
            "attn saved/MSA": saved(row, "msa", "attention_energy_pj"),
            "µJ, audited": f"{row['audited']['energy_pj'] / 1e6:.2f}",
            "attention µJ, audited": f"{row['audited']['attention_energy_pj'] / 1e6:.3f}",
        }
        for row in rows
    ]

"""Studies and sweeps as tables of text; `ecoformer.lab.energy.report.render` writes them as Markdown, CSV or LaTeX."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from ecoformer.kinds import SPECS
from ecoformer.lab.study.rows import Row, saving
from ecoformer.lab.study.runs import RunRecord

UNITS = ((1e12, "J"), (1e9, "mJ"), (1e6, "µJ"), (1e3, "nJ"), (1.0, "pJ"))
NOTES = (
    "top-1: of the last epoch, mean ± sample deviation over the seeds. vs MSA, vs stock, vs uniform: points of top-1 "
    "above that row of the same backbone with the same training. steps: optimiser steps of stage 2, where "
    "train.max_steps may cut an epoch short. Energy: modelled, one image; savings against stock and against MSA of the "
    "same backbone; attention: the cores between the projections, which distilled_hash has folded into its core: "
    "compare it by whole models.",
)
STAGE1_SEED_NOTES = (
    "Over models trained with different seeds, each counted once. vs MSA, vs stock, vs uniform: between rows from the "
    "same trained model.",
)


def study_table(rows: Sequence[Row]) -> list[dict[str, str]]:
    """Rows of `over_seeds` for reading, published figures (blank where nothing was published) beside ours."""
    unit = energy_unit([row["energy_pj"] for row in rows])
    return [
        {
            **_first_columns(row, "seeds"),
            "published": _figure(row["published_top1"], "{:.2f}"),
            **_above_controls(row),
            unit[1]: f"{row['energy_pj'] / unit[0]:.4g}",
            f"published {unit[1]}": _figure(row["published_energy_pj"], "{:.4g}", unit[0]),
            "saves vs stock": _percent(saving(row, rows, "stock", "energy_pj")),
            "saves vs MSA": _percent(saving(row, rows, "msa", "energy_pj")),
            f"attention {unit[1]}": f"{row['attention_energy_pj'] / unit[0]:.4g}",
            "attn vs stock": _percent(saving(row, rows, "stock", "attention_energy_pj")),
            "attn vs MSA": _percent(saving(row, rows, "msa", "attention_energy_pj")),
            "images/s": f"{row['images_per_second']:.0f}",
        }
        for row in rows
    ]


def stage1_seed_table(rows: Sequence[Row]) -> list[dict[str, str]]:
    """Rows of `over_stage1_seeds` for reading."""
    unit = energy_unit([row["energy_pj"] for row in rows])
    return [
        {
            **_first_columns(row, "stage1_seeds"),
            **_above_controls(row),
            unit[1]: f"{row['energy_pj'] / unit[0]:.4g}",
        }
        for row in rows
    ]


def _first_columns(row: Row, seeds: str) -> dict[str, str]:
    return {
        "model": row["backbone"],
        "attention": row["label"],
        "from": row["source"],
        "epochs": f"{row['epochs_stage1']}+{row['epochs_stage2']}",
        "steps": f"+{row['steps_stage2']}",
        seeds.replace("stage1_", "stage-1 "): str(len(row[seeds])),
        "top-1 %": with_spread(row["top1"], row["top1_sd"]),
    }


def _above_controls(row: Row) -> dict[str, str]:
    return {
        name: "" if row[key] is None else with_spread(row[key], row.get(f"{key}_sd"), "+.2f")
        for name, key in (("vs MSA", "vs_msa"), ("vs stock", "vs_stock"), ("vs uniform", "vs_uniform"))
    }


def sweep_table(runs: Sequence[RunRecord], root: Any) -> list[dict[str, str]]:
    """Finished runs with the settings in which they differ, best top-1 first."""
    finished = sorted(
        (run for run in runs if run.summary is not None), key=lambda run: -run.summary["top1"] if run.summary else 0
    )
    swept = swept_keys(finished)
    energies = [run.summary["energy_pj"] for run in finished if run.summary]
    unit = energy_unit(energies)
    table = []
    for run in finished:
        figures = run.summary
        assert figures is not None
        table.append(
            {
                "run": str(run.path.relative_to(root)),
                **{key: _setting(run, key) for key in swept},
                "top-1 %": f"{figures['top1']:.2f}",
                unit[1]: f"{figures['energy_pj'] / unit[0]:.4g}",
                f"attention {unit[1]}": f"{figures['attention_energy_pj'] / unit[0]:.4g}",
                "images/s": f"{figures['images_per_second']:.0f}",
            }
        )
    return table


def swept_keys(runs: Sequence[RunRecord]) -> list[str]:
    """The settings that are not the same in all runs.

    Options of attention kinds count only where a run changed them: the defaults differ with the kind, which is named.
    """
    keys = dict.fromkeys(key for run in runs for key in run.settings)
    return [key for key in keys if len({_chosen(run, key) for run in runs}) > 1]


def _chosen(run: RunRecord, key: str) -> str:
    group, _, option = key.partition(".")
    spec = SPECS.get(run.settings.get("attention.name", ""))
    if group == "attention" and spec is not None and option in {field.name for field in fields(spec)}:
        default = next(field.default for field in fields(spec) if field.name == option)
        return "-" if run.settings.get(key) == default else _setting(run, key)
    return _setting(run, key)


def energy_unit(energies_pj: Sequence[float]) -> tuple[float, str]:
    """(picojoules in the unit, its name) in which the largest of the energies is at least 1."""
    most = max(energies_pj, default=1.0)
    return next(((scale, name) for scale, name in UNITS if most >= scale), UNITS[-1])


def with_spread(mean: float, deviation: float | None, form: str = ".2f") -> str:
    return f"{mean:{form}}" if deviation is None else f"{mean:{form}} ± {deviation:.2f}"


def _setting(run: RunRecord, key: str) -> str:
    value = run.settings.get(key)
    return "-" if value is None else str(value)


def _figure(value: float | None, form: str, scale: float = 1.0) -> str:
    return "" if value is None else form.format(value / scale)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"

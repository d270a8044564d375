"""Studies and sweeps as tables."""

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from ecoformer.files.table import Column, Table, energy_unit, saves
from ecoformer.kinds import SPECS
from ecoformer.lab.study.rows import Row
from ecoformer.report.runs import RunRecord

NOTES = (
    "top-1: of the last epoch, mean ± sample deviation over the seeds. vs MSA, vs stock, vs uniform: points of top-1 "
    "above that row of the same backbone with the same training. steps: optimiser steps of stage 2, where "
    "train.max_steps may cut an epoch short. Energy: modelled, one sample; savings against stock and against MSA of "
    "the same backbone; attention: the cores between the projections, which distilled_hash has folded into its core: "
    "compare it by whole models.",
)
STAGE1_SEED_NOTES = (
    "Over models trained with different seeds, each counted once. vs MSA, vs stock, vs uniform: between rows from the "
    "same trained model.",
)
SAME = ("backbone",)  # rows that savings compare


def study_table(rows: Sequence[Row]) -> Table:
    """Rows of `over_seeds` for reading, published figures, where there are any, beside ours."""
    scale, unit = energy_unit([row["energy_pj"] for row in rows])
    published = {
        "top1": Column("published", "published_top1", "{:.2f}", none=""),
        "energy_pj": Column(f"published {unit}", "published_energy_pj", "{:.4g}", scale, none="", wide=True),
    }
    known = {key: [column] for key, column in published.items() if any(row[f"published_{key}"] for row in rows)}
    columns = [
        *_first_columns("seeds", "seeds"),
        *known.get("top1", []),
        *ABOVE_CONTROLS,
        Column(unit, "energy_pj", "{:.4g}", scale),
        *known.get("energy_pj", []),
        saves("saves vs stock", rows, "stock", "energy_pj", SAME, wide=True),
        saves("saves vs MSA", rows, "msa", "energy_pj", SAME, wide=True),
        Column(f"attention {unit}", "attention_energy_pj", "{:.4g}", scale, wide=True),
        saves("attn vs stock", rows, "stock", "attention_energy_pj", SAME, wide=True),
        saves("attn vs MSA", rows, "msa", "attention_energy_pj", SAME, wide=True),
        Column("images/s", "images_per_second", "{:.0f}"),
    ]
    return Table(columns, rows)


def stage1_seed_table(rows: Sequence[Row]) -> Table:
    """Rows of `over_stage1_seeds` for reading."""
    scale, unit = energy_unit([row["energy_pj"] for row in rows])
    energy = Column(unit, "energy_pj", "{:.4g}", scale)
    return Table([*_first_columns("stage-1 seeds", "stage1_seeds"), *ABOVE_CONTROLS, energy], rows)


def _first_columns(heading: str, seeds: str) -> list[Column]:
    return [
        Column("model", "backbone", left=True),
        Column("attention", "label", left=True),
        Column("from", "source", wide=True),
        Column("epochs", lambda row: f"{row['epochs_stage1']}+{row['epochs_stage2']}", wide=True),
        Column("steps", "steps_stage2", "+{}", wide=True),
        Column(heading, lambda row: len(row[seeds]), wide=True),
        Column("top-1 %", lambda row: with_spread(row["top1"], row["top1_sd"])),
    ]


def _above(heading: str, key: str, wide: bool = False) -> Column:
    def text(row: Row) -> str | None:
        return None if row[key] is None else with_spread(row[key], row.get(f"{key}_sd"), "+.2f")

    return Column(heading, text, none="", wide=wide)


ABOVE_CONTROLS = (_above("vs MSA", "vs_msa"), _above("vs stock", "vs_stock", True), _above("vs uniform", "vs_uniform"))


def sweep_table(runs: Sequence[RunRecord], root: Path) -> Table:
    """Finished runs with the settings in which they differ, best top-1 first."""
    finished = [(run, run.summary) for run in runs if run.summary is not None]
    finished.sort(key=lambda pair: -pair[1]["top1"])
    scale, unit = energy_unit([figures["energy_pj"] for _, figures in finished])

    def setting(key: str) -> Column:
        return Column(key, lambda row: row[0].settings.get(key))

    def figure(heading: str, key: str, form: str, scale: float = 1) -> Column:
        return Column(heading, lambda row: row[1][key], form, scale)

    columns = [
        Column("run", lambda row: row[0].path.relative_to(root)),
        *map(setting, swept_keys([run for run, _ in finished])),
        figure("top-1 %", "top1", "{:.2f}"),
        figure(unit, "energy_pj", "{:.4g}", scale),
        figure(f"attention {unit}", "attention_energy_pj", "{:.4g}", scale),
        figure("images/s", "images_per_second", "{:.0f}"),
    ]
    return Table(columns, finished)


def swept_keys(runs: Sequence[RunRecord]) -> list[str]:
    """The settings that are not the same in all runs whose settings are known.

    Options of attention kinds count only where a run changed them: the defaults differ with the kind, which is named.
    """
    known = [run for run in runs if run.settings]
    keys = dict.fromkeys(key for run in known for key in run.settings)
    return [key for key in keys if len({_chosen(run, key) for run in known}) > 1]


def _chosen(run: RunRecord, key: str) -> str:
    value, spec = run.settings.get(key), SPECS.get(run.settings.get("attention.name", ""))
    defaults = {} if spec is None else {f"attention.{field.name}": field.default for field in fields(spec)}
    return "-" if value is None or (key in defaults and value == defaults[key]) else str(value)


def with_spread(mean: float, deviation: float | None, form: str = ".2f") -> str:
    return f"{mean:{form}}" if deviation is None else f"{mean:{form}} ± {deviation:.2f}"

"""One table of runs: accuracy, operations, energy with savings against stock and against MSA, speed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.table import Table

BASELINES = ("stock", "msa")


def comparison_cells(rows: Sequence[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Header and cells for rows with the keys of summary.json; savings only against baselines among the rows.

    A saving is 1 - energy / baseline energy, of the same model at the same image size and under the same convention;
    a negative one costs more.
    """
    energy_unit = _unit([row["energy_pj"] for row in rows], {1e3: "nJ", 1e6: "µJ", 1e9: "mJ", 1e12: "J"})
    op_unit = _unit([row["muls"] for row in rows], {1e3: "k", 1e6: "M", 1e9: "G"})
    baselines = [name for name in BASELINES if any(row["attention"] == name for row in rows)]
    header = [
        "attention",
        "top-1 %",
        "params M",
        f"#Mul {op_unit[1]}",
        f"#Add {op_unit[1]}",
        f"energy {energy_unit[1]}",
    ]
    header += [f"saves vs {name}" for name in baselines]
    header += [f"attention only {energy_unit[1]}", *(f"saves vs {name}" for name in baselines), "images/s"]
    cells = []
    for row in rows:
        line = [row["attention"], f"{row['top1']:.2f}", f"{row['params'] / 1e6:.2f}"]
        line += [f"{row[key] / op_unit[0]:.4g}" for key in ("muls", "adds")]
        for key in ("energy_pj", "attention_energy_pj"):
            line.append(f"{row[key] / energy_unit[0]:.4g}")
            line += [_saving(row, _baseline(rows, name), key) for name in baselines]
        cells.append([*line, f"{row['images_per_second']:.0f}"])
    return header, cells


def comparison_table(rows: Sequence[dict[str, Any]], title: str) -> Table:
    """The comparison for a terminal: one column a run, so that a few runs fit into 80 characters."""
    (first, *names), cells = comparison_cells(rows)
    table = Table(title=title, title_justify="left")
    table.add_column(first)
    for line in cells:
        table.add_column(line[0], justify="right")
    for index, name in enumerate(names, start=1):
        table.add_row(name, *(line[index] for line in cells))
    return table


def comparison_markdown(rows: Sequence[dict[str, Any]]) -> str:
    """The comparison as a Markdown table."""
    header, cells = comparison_cells(rows)
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *cells]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _unit(values: Sequence[float], units: dict[float, str]) -> tuple[float, str]:
    fitting = [scale for scale in units if max(values) >= scale]
    scale = max(fitting, default=min(units))
    return scale, units[scale]


def _baseline(rows: Sequence[dict[str, Any]], name: str) -> dict[str, Any]:
    return next(row for row in rows if row["attention"] == name)


def _saving(row: dict[str, Any], baseline: dict[str, Any], key: str) -> str:
    if row is baseline:
        return "-"
    return f"{100 * (1 - row[key] / baseline[key]):.1f} %"

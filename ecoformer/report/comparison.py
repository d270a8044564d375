"""One table of runs: accuracy, operations, energy with savings against stock and against MSA, speed."""

from collections.abc import Sequence
from typing import Any

from ecoformer.files.table import Column, Table, energy_unit, largest_unit, saves

OPERATIONS = ((1e9, "G"), (1e6, "M"), (1e3, "k"))


def comparison_table(rows: Sequence[dict[str, Any]]) -> Table:
    """Rows with the keys of summary.json; savings only against baselines among the rows.

    A saving is 1 - energy / baseline energy, of the same model at the same image size and under the same convention;
    a negative one costs more.
    """
    energy, pj = energy_unit([row["energy_pj"] for row in rows])
    operations, name = largest_unit([row["muls"] for row in rows], OPERATIONS)
    baselines = [kind for kind in ("stock", "msa") if any(row["attention"] == kind for row in rows)]
    columns = [
        Column("attention", "attention", left=True),
        Column("top-1 %", "top1", "{:.2f}"),
        Column("params M", "params", "{:.2f}", 1e6),
        Column(f"#Mul {name}", "muls", "{:.4g}", operations),
        Column(f"#Add {name}", "adds", "{:.4g}", operations),
        Column(f"energy {pj}", "energy_pj", "{:.4g}", energy),
        *(saves(f"saves vs {kind}", rows, kind, "energy_pj") for kind in baselines),
        Column(f"attention only {pj}", "attention_energy_pj", "{:.4g}", energy),
        *(saves(f"saves vs {kind}", rows, kind, "attention_energy_pj") for kind in baselines),
        Column("images/s", "images_per_second", "{:.0f}"),
    ]
    return Table(columns, rows)

"""One table: columns that say what they show and how, rows of figures; for a terminal, Markdown, CSV, LaTeX, JSON."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console, JustifyMethod
from rich.table import Table as RichTable

from ecoformer.errors import InputError
from ecoformer.files import json_text, write_text

FORMATS = ("table", "json", "csv", "md", "latex")
WIDTH = 100  # of a table that goes into a pipe or a file
LONG = 32  # characters; a column with longer texts may be wrapped
LATEX = str.maketrans(
    {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    | {sign: f"\\{sign}" for sign in "&%$#_{}"}
)


@dataclass(frozen=True)
class Column:
    """One column.

    Args:
        heading: with the unit.
        of: key of the figure in a row, or a function of the row.
        form: how the figure is written, as for `str.format`.
        scale: what the figure is divided by.
        none: what stands for a figure that is None.
        left: text, not numbers.
        wide: may be left out on a terminal that is too narrow for all columns; the last such column goes first.
    """

    heading: str
    of: Any
    form: str = "{}"
    scale: float = 1
    none: str = "-"
    left: bool = False
    wide: bool = False

    def value(self, row: Any) -> Any:
        """The figure in the heading's unit, not rounded; None where the row has none."""
        value = self.of(row) if callable(self.of) else row[self.of]
        return value if value is None or self.scale == 1 else value / self.scale

    def text(self, row: Any) -> str:
        value = self.value(row)
        return self.none if value is None else self.form.format(value)


def share(heading: str, of: Any, **options: Any) -> Column:
    """A column of shares, in percent."""
    return Column(heading, of, "{:.1f} %", 0.01, **options)


def saving(
    row: Any, rows: Sequence[Any], against: str, key: str = "energy_pj", same: Sequence[str] = ()
) -> float | None:
    """Share of `key` that `row` saves against another attention, of the rows whose `same` keys are equal to its own.

    None without such a row or figure and for that row itself; negative where it costs more. A key that a row lacks is
    equal to one that another lacks.
    """
    for other in rows if row[key] is not None else ():
        alike = other["attention"] == against and all(other.get(k) == row.get(k) for k in same)
        if alike and other is not row and other[key]:
            return 1 - row[key] / other[key]
    return None


def saves(
    heading: str, rows: Sequence[Any], against: str, key: str, same: Sequence[str] = (), wide: bool = False
) -> Column:
    """A column of what `saving` finds in percent."""
    return share(heading, lambda row: saving(row, rows, against, key, same), wide=wide)


@dataclass(frozen=True)
class Table:
    """Rows (anything that its columns read) and how they are shown."""

    columns: Sequence[Column]
    rows: Sequence[Any]

    @property
    def headings(self) -> list[str]:
        return [column.heading for column in self.columns]

    @property
    def cells(self) -> list[list[str]]:
        """The texts, row by row."""
        return [[column.text(row) for column in self.columns] for row in self.rows]

    @property
    def texts(self) -> list[dict[str, str]]:
        """Row by row, heading -> text; headings that occur twice would be lost."""
        return [dict(zip(self.headings, line, strict=True)) for line in self.cells]

    def width(self, column: Column) -> int:
        """Characters of a column's widest text."""
        return max(len(column.heading), *(len(column.text(row)) for row in self.rows), 0)


def render(table: Table, format: str, title: str = "", notes: Sequence[str] = ()) -> str:
    """A table in one of FORMATS, InputError for another; titles and notes are left out of data formats.

    JSON holds the figures themselves, CSV their texts.
    """
    if format not in FORMATS:
        raise InputError(f"format={format!r} does not exist: choose one of {', '.join(FORMATS)}")
    if format == "json":
        return json_text([{each.heading: each.value(row) for each in table.columns} for row in table.rows], indent=2)
    if format == "csv":
        return to_csv(table.texts)
    return {"table": _terminal, "md": _markdown, "latex": _latex}[format](table, title, notes)


def write_table(table: Table, out: Path, title: str, notes: Sequence[str]) -> str:
    """Write OUT.md, OUT.csv and OUT.tex; return the table for a terminal. Raises InputError like `write_text`."""
    for format, suffix in (("md", ".md"), ("csv", ".csv"), ("latex", ".tex")):
        write_text(out.with_name(out.name + suffix), render(table, format, title, notes) + "\n")
    return render(table, "table", title, notes)


def to_csv(rows: Sequence[dict[str, Any]]) -> str:
    """Rows with equal keys as CSV; lists are joined with ";"."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({k: ";".join(v) if isinstance(v, list) else v for k, v in row.items()})
    return text.getvalue().rstrip("\n")


def markdown(table: Table, spaced: bool = True) -> str:
    """The table alone as Markdown; `spaced` is how the line below the headings is written."""
    rule = ["---" if column.left else "---:" for column in table.columns]
    lines = [[cell.replace("|", "\\|") for cell in line] for line in (table.headings, *table.cells)]
    head, *body = (f"| {' | '.join(line)} |" for line in lines)
    return "\n".join([head, f"| {' | '.join(rule)} |" if spaced else f"|{'|'.join(rule)}|", *body])


def largest_unit(values: Sequence[float], units: Sequence[tuple[float, str]]) -> tuple[float, str]:
    """The (scale, name), of those from large to small, in which the largest value is at least 1; else the last."""
    most = max(values, default=1.0)
    return next(((scale, name) for scale, name in units if most >= scale), units[-1])


def energy_unit(energies_pj: Sequence[float]) -> tuple[float, str]:
    """(picojoules in the unit, its name) in which the largest of the energies is at least 1."""
    return largest_unit(energies_pj, ((1e12, "J"), (1e9, "mJ"), (1e6, "µJ"), (1e3, "nJ"), (1.0, "pJ")))


def energy_text(energy_pj: float) -> str:
    """One energy in joules, with the prefix that suits it: "2.224 mJ"."""
    scale, unit = energy_unit([energy_pj])
    return f"{energy_pj / scale:.4g} {unit}"


def _terminal(table: Table, title: str, notes: Sequence[str]) -> str:
    stdout = sys.stdout
    width = Console().width if stdout is not None and stdout.isatty() else WIDTH
    shown = list(table.columns)
    droppable = [column for column in shown if column.wide]
    while droppable and sum(map(table.width, shown)) + 2 * (len(shown) - 1) > width:
        shown.remove(droppable.pop())
    drawn = RichTable(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in shown:
        justify: JustifyMethod = "left" if column.left else "right"
        drawn.add_column(column.heading, justify=justify, overflow="fold", no_wrap=table.width(column) <= LONG)
    for row in table.rows:
        drawn.add_row(*(column.text(row) for column in shown))
    # Figures are never cut: what needs more room than there is, gets it.
    width = max(width, sum(min(table.width(column), LONG) for column in shown) + 2 * (len(shown) - 1))
    buffer = io.StringIO()
    Console(file=buffer, width=width, highlight=False, markup=False).print(drawn)
    if left_out := [column.heading for column in table.columns if column not in shown]:
        notes = [*notes, f"no room for: {', '.join(left_out)}"]
    return "\n".join([*([title] if title else []), buffer.getvalue().rstrip("\n"), *notes])


def _markdown(table: Table, title: str, notes: Sequence[str]) -> str:
    head = [f"**{title}**", ""] if title else []
    return "\n".join([*head, markdown(table, spaced=False), *(["", *notes] if notes else [])])


def _latex(table: Table, title: str, notes: Sequence[str]) -> str:
    align = "".join("l" if column.left else "r" for column in table.columns)
    lines = [f"% {line}" for note in [title, *notes] for line in note.splitlines()]
    lines += ["% needs \\usepackage{booktabs}", f"\\begin{{tabular}}{{{align}}}", "\\toprule"]
    head, *body = (
        " & ".join(cell.translate(LATEX) for cell in line) + r" \\" for line in (table.headings, *table.cells)
    )
    return "\n".join([*lines, head, "\\midrule", *body, "\\bottomrule", "\\end{tabular}"])

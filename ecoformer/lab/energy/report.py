"""Tables: rows of figures and breakdowns as rich table, JSON, CSV, Markdown or LaTeX."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from ecoformer.energy.difference import DifferenceLine
from ecoformer.energy.kinds import KINDS
from ecoformer.energy.ledger import Ledger
from ecoformer.energy.profile import Profile
from ecoformer.lab.energy.cases import saving
from ecoformer.lab.energy.published import Comparison

FORMATS = ("table", "json", "csv", "md", "latex")
Text = list[dict[str, str]]

NOTES = {
    "paper": "paper: the published accounting; Conv2d, Linear and LayerNorm layers and attention cores, all else zero.",
    "audited": "audited: every operation that runs, priced by kind; G mul and G add count those inside multiply-adds.",
}
BASELINES = (
    "mJ are modelled, not measured (1 mJ = 10^9 pJ). Savings are in energy. In the paper's accounting PVTv2-B0 saves "
    "73 % against MSA (the published figure) and about 5 % against the stock model."
)


def summary_table(rows: Sequence[dict[str, Any]]) -> Text:
    """Rows of `Case.row` for reading: whole model and attention only side by side, savings against stock and MSA."""
    return [
        {
            "model": row["model"],
            "attention": row["attention"],
            "px": str(row["img_size"]),
            "bits": _or_dash(row["num_bits"]),
            "anchors": _or_dash(row["num_anchors"]),
            "params M": f"{row['params'] / 1e6:.2f}",
            "G mul": f"{row['muls'] / 1e9:.3f}",
            "G add": f"{row['adds'] / 1e9:.3f}",
            "mJ": f"{row['energy_pj'] / 1e9:.3f}",
            "vs stock": _percent(saving(row, rows, "stock")),
            "vs msa": _percent(saving(row, rows, "msa")),
            "attn G mul": f"{row['attention_muls'] / 1e9:.3f}",
            "attn G add": f"{row['attention_adds'] / 1e9:.3f}",
            "attn mJ": f"{row['attention_energy_pj'] / 1e9:.3f}",
            "attn vs stock": _percent(saving(row, rows, "stock", "attention_energy_pj")),
            "attn vs msa": _percent(saving(row, rows, "msa", "attention_energy_pj")),
            "uncounted": ", ".join(row["uncounted"]) or "none",
            **({"measured": row["measured"]} if "measured" in row else {}),
        }
        for row in rows
    ]


def breakdown_table(ledger: Ledger, profile: Profile, by: str) -> Text:
    """One line per stage, layer, module, operation or kind of a ledger, with its share of the energy."""
    whole = ledger.energy_pj(profile)
    if by == "kind":
        energies = profile.kind_energies(ledger.entries)
        found = ledger.counts
        return [
            {"kind": kind, "count": f"{found[kind]:,}", "mJ": f"{pj / 1e9:.4f}", "share": _percent(pj / whole)}
            for kind, pj in energies.items()
            if found[kind]
        ]
    groups = {
        "stage": ledger.by_stage,
        "layer": ledger.by_layer,
        "module": ledger.by_module,
        "op": ledger.by_op,
    }[by]()
    return [
        {
            by: name or "(model)",
            "G mul": f"{part.muls / 1e9:.4f}",
            "G add": f"{part.adds / 1e9:.4f}",
            "mJ": f"{part.energy_pj(profile) / 1e9:.4f}",
            "share": _percent(part.energy_pj(profile) / whole if whole else None),
            "attn mJ": f"{part.attention().energy_pj(profile) / 1e9:.4f}",
        }
        for name, part in groups.items()
    ]


def difference_table(lines: Sequence[DifferenceLine], profile: Profile) -> Text:
    """The way from the paper's figure to the audited one; the last line is the sum of those above it."""
    table = [
        {
            "item": line.item,
            "mul": f"{line.muls:+,}",
            "add": f"{line.adds:+,}",
            "other": ", ".join(f"{n:,} {kind}" for kind, n in line.other.items()) or "-",
            "mJ": f"{line.energy_pj(profile) / 1e9:+.5f}",
            "why": line.why,
        }
        for line in lines
    ]
    total = {
        "item": "audited - paper",
        "mul": f"{sum(line.muls for line in lines):+,}",
        "add": f"{sum(line.adds for line in lines):+,}",
        "other": "-",
        "mJ": f"{sum(line.energy_pj(profile) for line in lines) / 1e9:+.5f}",
        "why": "the sum of the lines above",
    }
    return [*table, total]


def published_table(comparisons: Sequence[Comparison]) -> Text:
    """Published figures beside ours, in billions."""
    names = {"muls": "#Mul B", "adds": "#Add B", "energy_pj": "energy B pJ"}
    return [
        {
            "model": c.model,
            "quantity": names[c.quantity],
            "published": c.printed,
            "ours": f"{c.ours:.5f}",
            "ours rounded": c.rounded,
            "difference": f"{c.difference:+.5f}",
            "agrees": "yes" if c.agrees else "no",
            "note": c.note,
        }
        for c in comparisons
    ]


def profile_table(profile: Profile) -> Text:
    """Every price of a profile with its source, or the assumption behind it."""
    return [
        {
            "precision": precision.name,
            "kind": kind,
            "pJ": f"{price.pj:g}",
            "um2": "no figure" if price.um2 is None else f"{price.um2:g}",
            "basis": "assumption" if price.assumed else "source",
            "origin": price.origin,
        }
        for precision in profile.precisions.values()
        for kind in KINDS
        if (price := precision.prices[kind]).origin
    ]


def render(table: Text, format: str, title: str = "", notes: Sequence[str] = ()) -> str:
    """A table of texts as "table", "md", "latex", "csv" or "json"; titles and notes are left out of data formats."""
    if format == "json":
        return json.dumps(table, indent=2)
    if format == "csv":
        return to_csv(table)
    return {"table": _rich, "md": _markdown, "latex": _latex}[format](table, title, notes)


def to_csv(rows: Sequence[dict[str, Any]]) -> str:
    """Rows with equal keys as CSV; lists are joined with ";"."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({k: ";".join(v) if isinstance(v, list) else v for k, v in row.items()})
    return text.getvalue().rstrip("\n")


def render_rows(rows: Sequence[dict[str, Any]], format: str) -> str:
    """Rows of `Case.row` in any format; JSON and CSV carry the exact figures under their own keys."""
    if format == "json":
        return json.dumps(rows, indent=2)
    if format == "csv":
        return to_csv(rows)
    first = rows[0]
    title = f"Energy, convention {first['convention']}, profile {first['profile']}"
    notes = [NOTES[first["convention"]], BASELINES]
    if any(row["uncounted"] for row in rows):
        notes.append("LOWER BOUNDS: operations listed as uncounted ran but have no rule.")
    return render(summary_table(rows), format, title, notes)


def _or_dash(value: object) -> str:
    return "-" if value is None else str(value)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"


def _is_text(name: str) -> bool:
    return name in {
        "model",
        "attention",
        "uncounted",
        "why",
        "item",
        "note",
        "origin",
        "stage",
        "layer",
        "module",
        "op",
    }


def _rich(table: Text, title: str, notes: Sequence[str]) -> str:
    drawn = Table(title=title or None, title_justify="left", show_lines=False)
    for name in table[0] if table else []:
        drawn.add_column(name, justify="left" if _is_text(name) else "right", overflow="fold")
    for row in table:
        drawn.add_row(*row.values())
    # A pipe has no width: one that fits beats columns cut to 80.
    stdout = sys.stdout
    width = None if stdout is not None and stdout.isatty() else 220
    buffer = io.StringIO()
    console = Console(file=buffer, width=width, highlight=False, markup=False)
    console.print(drawn)
    return "\n".join([buffer.getvalue().rstrip("\n"), *notes])


def _markdown(table: Text, title: str, notes: Sequence[str]) -> str:
    columns = list(table[0]) if table else []
    lines = [f"**{title}**", ""] if title else []
    lines.append("| " + " | ".join(columns) + " |")
    lines.append("|" + "|".join("---" if _is_text(name) else "---:" for name in columns) + "|")
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row.values()) + " |" for row in table]
    return "\n".join([*lines, *(["", *notes] if notes else [])])


def _latex(table: Text, title: str, notes: Sequence[str]) -> str:
    columns = list(table[0]) if table else []
    align = "".join("l" if _is_text(name) else "r" for name in columns)
    lines = [f"% {note}" for note in ([title] if title else []) + list(notes)]
    lines += ["% needs \\usepackage{booktabs}", f"\\begin{{tabular}}{{{align}}}", "\\toprule"]
    lines += [" & ".join(map(_escape, columns)) + r" \\", "\\midrule"]
    lines += [" & ".join(map(_escape, row.values())) + r" \\" for row in table]
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}"])


LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"} | {
    c: f"\\{c}" for c in "&%$#_{}"
}


def _escape(text: str) -> str:
    return "".join(LATEX.get(character, character) for character in text)

"""The sweep as a table and as pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from rich import box
from rich.table import Table

from ecoformer.report.figures import save_figure

Row = dict[str, Any]
GOAL = 0.75  # of uniform attention's error


def ratios(row: Row) -> list[float]:
    """Error of each block against uniform attention's; below 1 a replacement knows something of the attention."""
    return [block["error"] / block["error_uniform"] for block in row["blocks"]]


def cells(rows: Sequence[Row], baseline: Row | None) -> tuple[list[str], list[list[str]]]:
    """Header and cells: error over uniform attention's error per block, recall, correlation, energy, top-1.

    Energy of the converted layers: of the cores, and with their projections (paper convention), and of the cores in the
    audited convention; as a share of that of `baseline`, else in nanojoules per image.
    """
    blocks = [short_name(block["block"]) for block in rows[0]["blocks"]]
    header = ["setting", "seed", *blocks, "worst", "recall", "corr.", "core", "layer", "core audited", "top-1 %"]
    lines = []
    for row in rows:
        found = ratios(row)
        line = [row["setting"], str(row["seed"]), *(f"{ratio:.2f}" for ratio in found), f"{max(found):.2f}"]
        line += [_mean(row, "recall"), _mean(row, "correlation")]
        for convention, key in (("paper", "core_pj"), ("paper", "layer_pj"), ("audited", "core_pj")):
            energy = row["energy"][convention][key]
            share = None if baseline is None else energy / baseline["energy"][convention][key]
            line.append(f"{energy / 1e3:.1f}" if share is None else f"{share:.2f}")
        lines.append([*line, "-" if row["top1"] is None else f"{row['top1']:.2f}"])
    return header, lines


def table(rows: Sequence[Row], baseline: Row | None, title: str) -> Table:
    """The cells for a terminal."""
    return terminal_table(title, *cells(rows, baseline))


def terminal_table(title: str, header: Sequence[str], lines: Sequence[Sequence[str]]) -> Table:
    """Numbers behind a name, a line each."""
    made = Table(title=title, title_justify="left", box=box.SIMPLE, pad_edge=False, collapse_padding=True)
    for index, name in enumerate(header):
        made.add_column(name, justify="left" if index == 0 else "right", no_wrap=True)
    for line in lines:
        made.add_row(*line)
    return made


def markdown(rows: Sequence[Row], baseline: Row | None) -> str:
    """The cells as a Markdown table."""
    header, lines = cells(rows, baseline)
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join("| " + " | ".join(line) + " |" for line in [header, rule, *lines])


def plot_errors(rows: Sequence[Row], out: Path, title: str) -> None:
    """Error of the attention output, block by block, one line a setting, between the floors."""
    blocks = rows[0]["blocks"]
    places = range(len(blocks))
    figure = Figure(figsize=(9.5, 4.2), layout="constrained")
    axes = figure.subplots()
    floors = (("error_uniform", "uniform attention", "--"), ("error_shared_qk", "softmax, queries for keys", ":"))
    for key, label, style in floors:
        axes.plot(places, [block[key] for block in blocks], color="black", linestyle=style, label=label)
    axes.plot(places, [GOAL * block["error_uniform"] for block in blocks], color="grey", lw=0.8, label="goal: 75 %")
    for number, row in enumerate(rows):
        errors = [block["error"] for block in row["blocks"]]
        axes.plot(places, errors, marker="os^Dv<>p"[number % 8], markersize=4, lw=1.2, label=row["setting"])
    axes.set_xticks(list(places), [short_name(block["block"]) for block in blocks], fontsize=8)
    axes.set(ylabel="error of the attention output\n(relative L2, held-out images)", xlabel="block", title=title)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper", fontsize=7)
    save_figure(figure, out)


def plot_energy(rows: Sequence[Row], out: Path, title: str) -> None:
    """Worst block's error over uniform attention's, against attention energy: core alone, and with its projections."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for axis, key, label in zip(axes, ("core_pj", "layer_pj"), ("attention core", "core and projections"), strict=True):
        for number, row in enumerate(rows):
            found = ratios(row)
            energy = row["energy"]["paper"][key] / 1e6
            mean = sum(found) / len(found)
            colour = f"C{number % 10}"
            axis.plot([energy, energy], [min(found), max(found)], color=colour, lw=1, alpha=0.6)
            marker = "os^Dv<>pP*X"[number // 10 + number % 10]
            axis.plot(energy, mean, marker, color=colour, label=row["setting"] if key == "core_pj" else None)
        first = key == "core_pj"
        axis.axhline(1, color="black", linestyle="--", lw=0.8, label="uniform attention" if first else None)
        axis.axhline(GOAL, color="grey", lw=0.8, label="goal: 75 %" if first else None)
        most = max(row["energy"]["paper"][key] for row in rows) / 1e6
        axis.set(xlabel=f"{label} (µJ per image)", xlim=(0, 1.08 * most))
        axis.grid(alpha=0.3)
    axes[0].set(ylabel="error / uniform attention's error\nmean over blocks, bar: best to worst block", ylim=(0, None))
    figure.suptitle(f"{title}\nenergy of the converted layers, paper convention", fontsize=9)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right upper", fontsize=7)
    save_figure(figure, out)


def _mean(row: Row, key: str) -> str:
    values = [block[key] for block in row["blocks"] if block[key] is not None]
    return f"{sum(values) / len(values):.2f}" if values else "-"


def short_name(name: str) -> str:
    """A block's name without what all of them have in it."""
    parts = [part for part in name.split(".") if part not in ("stages", "blocks", "attn")]
    return ".".join(parts) or name

"""The sweep as a table and as pictures."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ecoformer.files import write_json, write_text
from ecoformer.files.table import Column, Table, markdown, render
from ecoformer.report.figures import MARKERS, from_zero, headline, legend, panels, save_figure

Row = dict[str, Any]
QUALITY = "quality.json"
FLOORS = {"error_uniform": "uniform attention", "error_shared_qk": "softmax, queries for keys"}


def of_uniform(error: float, uniform: float) -> float:
    """An error against uniform attention's: below 1 it knows something of the attention. 0 / 0 is 0: all is exact."""
    return error / uniform if uniform else (math.inf if error else 0.0)


def ratios(row: Row) -> list[float]:
    """`of_uniform` of each block."""
    return [of_uniform(block["error"], block["error_uniform"]) for block in row["blocks"]]


def worst(row: Row) -> float:
    return max(ratios(row))


def baseline(rows: Sequence[Row]) -> Row | None:
    """The row that energies are compared with: the official form, if it is among them."""
    return next((row for row in rows if row["setting"].partition(":")[0] == "ecoformer"), None)


def as_text(found: dict[str, Any]) -> str:
    """The table for a terminal, and top-1 of the controls where it was measured."""
    reference = baseline(found["rows"])
    unit = "nJ per image" if reference is None else f"relative to {reference['setting']}"
    title = f"{found['title']}: error / uniform attention's, block by block; energy {unit}"
    controls = ", ".join(f"{name} {value:.2f}" for name, value in found["top1"].items())
    notes = [f"top-1 (%) on {found['num_val']} images: {controls}"] if controls else []
    return render(quality_table(found["rows"], reference), "table", title, notes)


def write_report(found: dict[str, Any], out: Path) -> None:
    """What `sweep` found as quality.json, table.md and two pictures of the first seed."""
    rows = found["rows"]
    write_json(out / QUALITY, found)
    write_text(out / "table.md", markdown(quality_table(rows, baseline(rows))) + "\n")
    first = [row for row in rows if row["seed"] == rows[0]["seed"]]
    plot_errors(first, out / "errors.png", found["title"])
    plot_energy(first, out / "energy.png", found["title"])


def quality_table(rows: Sequence[Row], baseline: Row | None) -> Table:
    """Error over uniform attention's error per block, recall, correlation, energy, top-1.

    Energy of the converted layers: of the cores, and with their projections (paper convention), and of the cores in the
    audited convention; as a share of that of `baseline`, else in nanojoules per image.
    """

    def energy(heading: str, convention: str, key: str) -> Column:
        scale, form = (1e3, "{:.1f}") if baseline is None else (baseline["energy"][convention][key], "{:.2f}")
        return Column(heading, lambda row: row["energy"][convention][key], form, scale)

    blocks = enumerate(short_name(block["block"]) for block in rows[0]["blocks"])
    columns = [
        Column("setting", "setting", left=True),
        Column("seed", "seed"),
        *(Column(name, lambda row, place=place: ratios(row)[place], "{:.2f}") for place, name in blocks),
        Column("worst", worst, "{:.2f}"),
        Column("recall", lambda row: _mean(row, "recall"), "{:.2f}"),
        Column("corr.", lambda row: _mean(row, "correlation"), "{:.2f}"),
        energy("core", "paper", "core_pj"),
        energy("layer", "paper", "layer_pj"),
        energy("core audited", "audited", "core_pj"),
        Column("top-1 %", "top1", "{:.2f}"),
    ]
    return Table(columns, rows)


def plot_errors(rows: Sequence[Row], out: Path, title: str, floors: Mapping[str, str] = FLOORS) -> None:
    """Error of the attention output, block by block, one line a setting, beside the floors of the first one."""
    blocks = rows[0]["blocks"]
    places = range(len(blocks))
    figure, (axes,) = panels(1, 1, (9.5, 4.2))
    for (key, label), line in zip(floors.items(), ("--", ":"), strict=True):
        axes.plot(places, [block[key] for block in blocks], color="black", linestyle=line, label=label)
    for number, row in enumerate(rows):
        errors = [block["error"] for block in row["blocks"]]
        axes.plot(places, errors, marker=MARKERS[number % len(MARKERS)], markersize=4, lw=1.2, label=row["setting"])
    axes.set_xticks(list(places), [short_name(block["block"]) for block in blocks], fontsize=8)
    axes.set(ylabel="error of the attention output\n(relative L2, held-out images)", xlabel="block")
    from_zero(axes, "y")
    headline(axes, title)
    legend(figure, [axes])
    save_figure(figure, out)


def plot_energy(rows: Sequence[Row], out: Path, title: str) -> None:
    """Error over uniform attention's, of all blocks, against attention energy: core alone, and with projections."""
    figure, axes = panels(1, 2, (11, 4.2))
    for axis, key, label in zip(axes, ("core_pj", "layer_pj"), ("attention core", "core and projections"), strict=True):
        for number, row in enumerate(rows):
            found, energy = ratios(row), row["energy"]["paper"][key] / 1e6
            mean = sum(found) / len(found)
            look: dict[str, Any] = {"marker": MARKERS[number % len(MARKERS)], "color": f"C{number % 10}"}
            bar = [[mean - min(found)], [max(found) - mean]]
            axis.errorbar(energy, mean, bar, linestyle="", elinewidth=1, label=row["setting"], **look)
        axis.axhline(1, color="black", linestyle="--", lw=0.8, label="uniform attention")
        axis.set(xlabel=f"{label} (µJ per image)")
        from_zero(axis, "x", "y")
    axes[0].set(ylabel="error / uniform attention's error\nmean over blocks, bar: best to worst block")
    headline(axes[0], f"{title}\nenergy of the converted layers, paper convention")
    legend(figure, axes)
    save_figure(figure, out)


def _mean(row: Row, key: str) -> float | None:
    values = [block[key] for block in row["blocks"] if block[key] is not None]
    return sum(values) / len(values) if values else None


def short_name(name: str) -> str:
    """A block's name without what all of them have in it."""
    parts = [part for part in name.split(".") if part not in ("stages", "blocks", "attn")]
    return ".".join(parts) or name

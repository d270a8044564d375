"""Pictures of studies and sweeps: accuracy against energy, and what hash functions are worth over the epochs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from ecoformer.files.table import energy_unit
from ecoformer.report.figures import draw_legend, from_zero, headline, legend, legend_text, panels, save_figure, style

PANELS = (("energy_pj", "whole model"), ("attention_energy_pj", "attention cores alone"))
FILLS = {"no training": "none", "from scratch": "left"}  # of markers, by how a row's label ends
QUALITY_LINES = (("attention_error", "-", 1.5), ("random_error", "x:", 0.8), ("uniform_error", "+--", 0.8))
QUALITY_NAMES = {"attention_error": "fitted", "random_error": "random codes", "uniform_error": "uniform attention"}


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the (cost, gain) points that no other beats in both, cheapest first; equal points all stay."""
    kept = []
    for index, (cost, gain) in enumerate(points):
        beaten = any(c <= cost and g >= gain and (c, g) != (cost, gain) for c, g in points)
        if not beaten:
            kept.append(index)
    return sorted(kept, key=lambda index: points[index])


def _kind_and_fill(label: str) -> tuple[str, str]:
    """What a row is and how full its marker is, which says how it was trained."""
    kind, _, how = label.rpartition(", ")
    return (kind, FILLS[how]) if kind and how in FILLS else (label, "full")


def plot_front(rows: Sequence[Mapping[str, Any]], out: Path, title: str) -> None:
    """Top-1 against energy, whole model and attention alone, every row labelled, the Pareto front drawn through.

    Rows have label, top1, top1_sd (None: no bar), energy_pj and attention_energy_pj. Those that differ only in how they
    were trained share colour and marker.
    """
    kinds = list(dict.fromkeys(_kind_and_fill(row["label"])[0] for row in rows))
    lines = sum(legend_text(kind).count("\n") + 1 for kind in kinds)
    figure, axes = panels(1, 2, (11, 4.6 + 0.16 * max(0, lines - 12)))
    handles: dict[str, Any] = {}
    for axis, (key, name) in zip(axes, PANELS, strict=True):
        rows = [row for row in rows if row[key] is not None]  # None: no attention recognised
        if not rows:
            axis.set_visible(False)
            continue
        scale, unit = energy_unit([row[key] for row in rows])
        points = [(row[key] / scale, row["top1"]) for row in rows]
        best = [points[index] for index in front(points)]
        axis.plot(*zip(*best, strict=True), color="grey", lw=0.8, zorder=0)
        for row, (energy, top1) in zip(rows, points, strict=True):
            kind, fill = _kind_and_fill(row["label"])
            look = style(kind, kinds.index(kind)) | {"linestyle": "none"}
            axis.errorbar(energy, top1, row.get("top1_sd"), capsize=2, fillstyle=fill, **look)
            handles.setdefault(kind, Line2D([], [], **look))
        if min(energy for energy, _ in points) > 0 and max(points)[0] > 20 * min(points)[0]:
            axis.set_xscale("log")
        axis.set(xlabel=f"modelled energy, {name}, {unit}", ylabel="top-1 (%)")
    headline(axes[0], title)
    fills = {_kind_and_fill(row["label"])[1] for row in rows}
    for how, fill in (("trained on", "full"), *FILLS.items()):
        if fill in fills and len(fills) > 1:
            handles[how] = Line2D([], [], color="grey", marker="o", linestyle="none", fillstyle=fill)  # type: ignore[arg-type]
    draw_legend(figure, handles)
    save_figure(figure, out)


def plot_hash_quality(fits: Mapping[str, Sequence[Mapping[str, Any]]], out: Path) -> bool:
    """Attention error of each run's hash fits beside its two floors: over the epochs, or over the blocks of one fit.

    `fits` maps a label to a run's `hash_fit` records; runs whose fits know no error are left out. Over the epochs it is
    the mean over the blocks. Returns whether anything was left to draw.
    """
    known = {
        label: found
        for label, records in fits.items()
        if (found := [record for record in records if record.get("attention_error") is not None])
    }
    if not known:
        return False
    refitted = any(len({record["epoch"] for record in records}) > 1 for records in known.values())
    figure, (axis,) = panels(1, 1, (9, 4))
    for number, (label, records) in enumerate(known.items()):
        look = style(label, number)
        for key, line, width in QUALITY_LINES:
            where = [record["epoch"] if refitted else block for block, record in enumerate(records, start=1)]
            values: dict[int, list[float]] = {}
            for place, record in zip(where, records, strict=True):
                if record.get(key) is not None:
                    values.setdefault(place, []).append(record[key])
            means = [sum(found) / len(found) for found in values.values()]
            own = look | {"label": label} if key == "attention_error" else {"color": look["color"]}
            axis.plot(list(values), means, line, lw=width, markersize=4, **own)
    for key, line, width in QUALITY_LINES:
        axis.plot([], [], line, lw=width, markersize=4, color="grey", label=QUALITY_NAMES[key])
    axis.set(
        xlabel="epochs before the fit" if refitted else "block", ylabel="relative L2 error of the attention output"
    )
    from_zero(axis, "y")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    legend(figure, [axis])
    save_figure(figure, out)
    return True

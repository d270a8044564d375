"""How figures look: panels, one colour for an attention kind everywhere, names at few curves; written whole."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ecoformer.files import atomic_write

COLOURS = {
    "stock": "#7f7f7f",
    "msa": "#000000",
    "ecoformer": "#d62728",
    "ecoformer_tuned": "#ff7f0e",
    "distilled": "#08306b",
    "distilled_hash": "#1f77b4",
    "random_hash": "#e377c2",
    "binary_qk": "#9467bd",
    "msa_shared_qk": "#8c564b",
    "msa_shift": "#e7969c",
    "linear_sra": "#17becf",
    "linformer": "#2ca02c",
    "performer": "#98df8a",
    "relu_linear": "#bcbd22",
    "hedgehog": "#637939",
    "low_rank": "#1b3a6b",
    "uniform": "#6b6ecf",
    "none": "#a98b2d",
}
OTHERS = ("#aec7e8", "#ff9896", "#c49c94", "#f7b6d2", "#dbdb8d", "#9edae5")  # kinds from elsewhere, labels without one
MARKERS = "os^Dv<>pP*Xhd"
FEW = 6  # curves that are named where they end; more get a legend


def style(label: str, number: int = 0) -> dict[str, Any]:
    """Colour and marker of a curve or point: the colour of the kind that the label names, a marker by its number."""
    named = max((kind for kind in COLOURS if kind in label), key=len, default=None)
    colour = OTHERS[number % len(OTHERS)] if named is None else COLOURS[named]
    return {"color": colour, "marker": MARKERS[number % len(MARKERS)]}


def panels(rows: int, columns: int, size: tuple[float, float]) -> tuple[Figure, list[Axes]]:
    """A figure of that size in inches with a grid of panels, row by row. It needs no pyplot, backend or display."""
    figure = Figure(figsize=size, layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flatten())
    for axis in axes:
        axis.grid(alpha=0.3)
        axis.set_axisbelow(True)
    return figure, axes


def draw_growth(axis: Axes, points: Iterable[tuple[str, int, float]], xlabel: str, ylabel: str) -> None:
    """A cost against sizes, from (label, size, cost), a curve a label: both scales logarithmic, a tick at each size."""
    curves: dict[str, list[tuple[int, float]]] = {}
    for label, size, cost in points:
        curves.setdefault(label, []).append((size, cost))
    for number, (label, curve) in enumerate(curves.items()):
        axis.plot(*zip(*sorted(curve), strict=True), label=label, markersize=4, **style(label, number))
    sizes = sorted({size for curve in curves.values() for size, _ in curve})
    axis.set_xscale("log", base=2)
    axis.set_xticks(sizes, [str(size) for size in sizes])
    axis.set(yscale="log", xlabel=xlabel, ylabel=ylabel)
    axis.minorticks_off()


def name_curves(figure: Figure, axes: Sequence[Axes]) -> None:
    """Say what each curve is: at its end where a panel has few, else in one legend beside the panels."""
    if len({label for axis in axes for label in axis.get_legend_handles_labels()[1]}) > FEW:
        legend(figure, axes)
        return
    for axis in axes:
        _name_at_the_ends(axis)


def legend(figure: Figure, axes: Sequence[Axes], order: Sequence[str] = (), **options: Any) -> None:
    """One legend beside all panels, each label once; those of `order` alone, if given, in that order."""
    handles = {label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    labels = [label for label in order or handles if label in handles]
    placed: dict[str, Any] = {"loc": "outside right upper", "fontsize": 7} | options
    figure.legend([handles[label] for label in labels], labels, **placed)


def save_figure(figure: Figure, out: Path) -> None:
    """Write a PNG atomically. Raises InputError like `atomic_write`."""
    with atomic_write(out) as file:
        figure.savefig(file, format="png", dpi=150)


def _name_at_the_ends(axis: Axes) -> None:
    """Labels right of the panel, each at its curve's last point, moved apart where they would touch."""
    axis.get_ylim()  # settles the limits
    ends = []
    for line in axis.lines:
        x, y = np.asarray(line.get_xdata(), float), np.asarray(line.get_ydata(), float)
        if not str(line.get_label()).startswith("_") and (known := np.flatnonzero(np.isfinite(y))).size:
            last = x[known[-1]], y[known[-1]]
            ends.append(((axis.transData + axis.transAxes.inverted()).transform(last)[1], line))
    ends.sort(key=lambda end: end[0])
    for place, (_, line) in zip(_apart([height for height, _ in ends]), ends, strict=True):
        text = f" {line.get_label()}"
        axis.annotate(text, (1, place), xycoords="axes fraction", va="center", fontsize=8, color=line.get_color())


def name_points(axis: Axes) -> None:
    """Labels beside the points of each label, on the side where there is room, moved apart where they would touch."""
    axis.margins(x=0.06, y=0.1)
    axis.get_ylim()  # settles the limits
    to_axes = axis.transData + axis.transAxes.inverted()
    sides: dict[bool, list[tuple[float, float, Any]]] = {True: [], False: []}
    for line in axis.lines:
        x, y = to_axes.transform(np.asarray(line.get_xydata(), float).mean(axis=0))
        sides[x > 0.5].append((y, x, line))
    for is_right, points in sides.items():
        points.sort(key=lambda point: point[0])
        for place, (y, x, line) in zip(_apart([point[0] for point in points]), points, strict=True):
            near = [other for height, other, _ in points if abs(height - y) < 0.1 and abs(other - x) < 0.1]
            colour = line.get_color()
            axis.annotate(
                str(line.get_label()),
                (x, y),
                (min(near) - 0.03 if is_right else max(near) + 0.03, place),
                xycoords="axes fraction",
                ha="right" if is_right else "left",
                va="center",
                fontsize=8,
                color=colour,
                arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.5, "relpos": (float(is_right), 0.5)},
            )


def _apart(places: Sequence[float]) -> list[float]:
    """Heights in order, as shares of a panel, moved so far that labels at them neither touch nor leave it."""
    moved = list(places)
    for _ in range(100):
        for low in range(len(moved) - 1):
            overlap = max(0.0, 0.05 - (moved[low + 1] - moved[low])) / 2
            moved[low], moved[low + 1] = moved[low] - overlap, moved[low + 1] + overlap
    highest = 0.97
    for number in reversed(range(len(moved))):
        moved[number] = min(moved[number], highest)
        highest = moved[number] - 0.05
    return moved

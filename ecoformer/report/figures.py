"""How figures look: panels, one colour for an attention kind everywhere, one legend; written whole."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure, FigureBase

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


def headline(axis: Axes, title: str) -> None:
    """A title above the first panel of a picture, in lines that end before a legend beside the panels."""
    axis.set_title("\n".join(fill(line, 72) for line in title.splitlines()), fontsize=9, loc="left")


def from_zero(axis: Axes, *directions: str) -> None:
    """Begin "x" or "y" at 0, or below what is negative, and leave room above; points near each other leave none."""
    for direction in directions:
        low, high = getattr(axis.dataLim, f"interval{direction}")
        if low <= high:  # something is drawn
            room = 0.06 * (max(high, 0) - min(low, 0) or 1)
            getattr(axis, f"set_{direction}lim")(low - room if low < 0 else 0, high + room)


def legend(figure: FigureBase, axes: Sequence[Axes], order: Sequence[str] = (), **options: Any) -> None:
    """One legend beside all panels, each label once; those of `order` alone, if given, in that order.

    `options` are those of `draw_legend`.
    """
    handles = {label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    draw_legend(figure, {label: handles[label] for label in order or handles if label in handles}, **options)


def draw_legend(figure: FigureBase, handles: Mapping[str, Any], **options: Any) -> None:
    """A legend of these artists by their labels; `options` are matplotlib's, for another place or size."""
    placed: dict[str, Any] = {"loc": "outside right upper", "fontsize": 7} | options
    figure.legend(list(handles.values()), [legend_text(label) for label in handles], **placed)


def legend_text(label: str) -> str:
    """A label as a legend shows it: in lines that leave the panels their width, and no more than three."""
    return fill(label, 64, max_lines=3, placeholder=" ...", break_on_hyphens=False)


def save_figure(figure: Figure, out: Path) -> None:
    """Write a PNG atomically. Raises InputError like `atomic_write`."""
    with atomic_write(out) as file:
        figure.savefig(file, format="png", dpi=150)

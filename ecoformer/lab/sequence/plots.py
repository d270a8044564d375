"""One plot per metric: cost against tokens, a line per kind, crossovers with softmax attention marked."""

from __future__ import annotations

from matplotlib.figure import Figure

from ecoformer.lab.sequence.crossover import crossovers, interpolate
from ecoformer.lab.sequence.study import BASELINE, CONTROLS, METRICS, Study

COLOURS = (
    *("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#8c564b", "#e377c2"),
    *("#17becf", "#bcbd22", "#7f7f7f", "#1b3a6b", "#4d4d4d", "#98df8a", "#ffbb78", "#c5b0d5", "#aec7e8"),
)
MARKERS = "os^Dv<>Pp*hX"


def plot_metric(study: Study, metric: str, title: str) -> Figure:
    """Log-log; rings mark where a kind's line crosses that of softmax attention."""
    figure = Figure(figsize=(8.5, 5.0), layout="constrained")
    axis = figure.subplots()
    base = study.series(BASELINE, metric)
    for index, kind in enumerate(study.kinds):
        points = study.series(kind, metric)
        if not points:
            continue
        colour = "black" if kind == BASELINE else COLOURS[index % len(COLOURS)]
        axis.plot(
            list(points), list(points.values()), label=kind, color=colour, marker=MARKERS[index % len(MARKERS)],
            markersize=4, linewidth=2 if kind == BASELINE else 1.2, linestyle=":" if kind in CONTROLS else "-",
        )  # fmt: skip
        for tokens in crossovers(points, base) if kind != BASELINE else ():
            cost = interpolate(base, tokens)
            assert cost is not None, f"{tokens} tokens lie outside {list(base)}"
            axis.plot([tokens], [cost], marker="o", markersize=10, fillstyle="none", color=colour)
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    axis.set_xticks(study.tokens, [str(n) for n in study.tokens])
    axis.minorticks_off()
    axis.set_xlabel("tokens")
    axis.set_ylabel(METRICS[metric])
    axis.grid(alpha=0.3)
    axis.set_title(f"{title}\nrings: equal to {BASELINE}", fontsize=10, loc="left")
    figure.legend(loc="outside right upper", fontsize=8)
    return figure

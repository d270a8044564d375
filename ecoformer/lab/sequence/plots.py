"""One plot per metric: cost against tokens, a line per kind, crossovers with softmax attention marked."""

from matplotlib.figure import Figure

from ecoformer.lab.sequence.crossover import crossovers, interpolate
from ecoformer.lab.sequence.study import BASELINE, METRICS, NO_ATTENTION, Study
from ecoformer.report.figures import name_curves, panels, style


def plot_metric(study: Study, metric: str, title: str) -> Figure:
    """Log-log; rings mark where a kind's line crosses that of softmax attention."""
    figure, (axis,) = panels(1, 1, (8.5, 5.0))
    base = study.series(BASELINE, metric)
    for index, kind in enumerate(study.kinds):
        points = study.series(kind, metric)
        if not points:
            continue
        look = style(kind, index) | {"lw": 2 if kind == BASELINE else 1.2, "ls": ":" if kind in NO_ATTENTION else "-"}
        axis.plot(list(points), list(points.values()), label=kind, markersize=4, **look)
        for tokens in crossovers(points, base) if kind != BASELINE else ():
            cost = interpolate(base, tokens)
            assert cost is not None, f"{tokens} tokens lie outside {list(base)}"
            axis.plot([tokens], [cost], marker="o", markersize=10, fillstyle="none", color=look["color"])
    axis.set_xscale("log", base=2)
    axis.set_xticks(study.tokens, [str(n) for n in study.tokens])
    axis.set(yscale="log", xlabel="tokens", ylabel=METRICS[metric])
    axis.minorticks_off()
    axis.set_title(f"{title}\nrings: equal to {BASELINE}", fontsize=10, loc="left")
    name_curves(figure, [axis])
    return figure

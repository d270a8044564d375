"""Training curves of several runs, from their metrics.csv."""

import math
from collections.abc import Mapping
from pathlib import Path

from matplotlib.ticker import MaxNLocator

from ecoformer.report.figures import name_curves, panels, save_figure, style
from ecoformer.report.runs import read_epochs


def plot_training_curves(runs: Mapping[str, Path], out: Path, start: Mapping[str, int] | None = None) -> None:
    """Validation top-1 and training loss over the epochs; `runs` maps a label to a run directory.

    `start` says how many epochs of an earlier stage a run began after.
    """
    figure, (accuracy, loss) = panels(1, 2, (11, 3.6 + 0.16 * max(0, len(runs) - 12)))
    for number, (label, run) in enumerate(runs.items()):
        epochs = read_epochs(run)
        # Epoch e of the log is done after e + 1 epochs of training.
        first = (start or {}).get(label, 0) + 1
        done = [first + int(row["epoch"]) for row in epochs]
        for axis, key in ((accuracy, "val_top1"), (loss, "train_loss")):
            points = [(x, row[key]) for x, row in zip(done, epochs, strict=True) if not math.isnan(row[key])]
            axis.plot([x for x, _ in points], [y for _, y in points], markersize=3, label=label, **style(label, number))
    accuracy.set(xlabel="epochs", ylabel="validation top-1 (%)")
    loss.set(xlabel="epochs", ylabel="training loss")
    for axis in (accuracy, loss):
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    name_curves(figure, [accuracy, loss])
    save_figure(figure, out)

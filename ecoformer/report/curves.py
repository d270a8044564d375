"""Training curves of several runs, from their metrics.csv."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from matplotlib.figure import Figure

from ecoformer.report.figures import save_figure
from ecoformer.report.runs import read_epochs


def plot_training_curves(runs: Mapping[str, Path], out: Path, start: Mapping[str, int] | None = None) -> None:
    """Validation top-1 and training loss over the epochs; `runs` maps a label to a run directory.

    `start` says how many epochs of an earlier stage a run began after.
    """
    figure = Figure(figsize=(11, 3.6 + 0.16 * max(0, len(runs) - 12)), layout="constrained")
    accuracy, loss = figure.subplots(1, 2)
    for label, run in runs.items():
        epochs = read_epochs(run)
        # Epoch e of the log is done after e + 1 epochs of training.
        first = (start or {}).get(label, 0) + 1
        done = [first + int(row["epoch"]) for row in epochs]
        accuracy.plot(done, [row["val_top1"] for row in epochs], marker="o", markersize=3, label=label)
        loss.plot(done, [row["train_loss"] for row in epochs], marker="o", markersize=3, label=label)
    accuracy.set(xlabel="epochs", ylabel="validation top-1 (%)")
    loss.set(xlabel="epochs", ylabel="training loss")
    for axes in (accuracy, loss):
        axes.grid(alpha=0.3)
        axes.xaxis.get_major_locator().set_params(integer=True)
    figure.legend(*accuracy.get_legend_handles_labels(), loc="outside right upper", fontsize=7)
    save_figure(figure, out)

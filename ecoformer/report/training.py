"""What training left, as pictures: curves of several runs, and what every fit of a run's hash functions was worth."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, MaxNLocator

from ecoformer.report.figures import from_zero, legend, panels, save_figure, style
from ecoformer.report.runs import read_epochs, read_records

GAPS = (-1, 0, 0.5, 1, 2, 5, 10, 20, 50)  # ticks
Fits = dict[str, list[dict[str, Any]]]

# Panel: title, the key of the fitted codes, and the floors beside them.
PANELS: tuple[tuple[str, str, dict[str, str]], ...] = (
    ("attention error (relative L2)", "attention_error", {"random_error": "random hash", "uniform_error": "uniform"}),
    ("recall of the strongest keys", "recall", {"random_recall": "random hash", "chance_recall": "uniform"}),
    ("correlation with the map", "correlation", {"random_correlation": "random hash"}),
    ("bit balance", "bit_balance", {}),
    ("bit correlation", "bit_correlation", {}),
    ("flipped bits", "flipped_bits", {}),
)
FLOOR_STYLES = {"random hash": ":", "uniform": "--"}


def plot_training_curves(runs: Mapping[str, Path], out: Path, start: Mapping[str, int] | None = None) -> None:
    """Validation top-1 and training loss over the epochs; `runs` maps a label to a run directory.

    `start` says how many epochs of an earlier stage a run began after.
    """
    figure, (accuracy, loss) = panels(1, 2, (11, 3.6 + 0.16 * max(0, len(runs) - 12)))
    for number, (label, run) in enumerate(runs.items()):
        epochs = [row for row in read_epochs(run) if not math.isnan(row.get("epoch", math.nan))]
        # Epoch e of the log is done after e + 1 epochs of training.
        first = (start or {}).get(label, 0) + 1
        done = [first + int(row["epoch"]) for row in epochs]
        for axis, key in ((accuracy, "val_top1"), (loss, "train_loss")):
            seen = [(x, row.get(key, math.nan)) for x, row in zip(done, epochs, strict=True)]
            points = [(x, y) for x, y in seen if not math.isnan(y)]
            axis.plot([x for x, _ in points], [y for _, y in points], markersize=3, label=label, **style(label, number))
    accuracy.set(xlabel="epochs", ylabel="validation top-1 (%)")
    loss.set(xlabel="epochs", ylabel="training loss")
    for axis in (accuracy, loss):
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    legend(figure, [accuracy, loss])
    save_figure(figure, out)


def plot_gap(runs: Mapping[str, Path], to: str, out: Path) -> None:
    """Points of validation top-1 below the last of the run called `to`, against optimiser steps, on log axes; between 1
    and -1 the points are linear. `runs` maps a label to a run directory.
    """
    figure, (axis,) = panels(1, 1, (8, 4))
    records = {label: read_records(run, "epoch") for label, run in runs.items()}
    seen = {label: [row for row in epochs if row.get("val_top1") is not None] for label, epochs in records.items()}
    end, lowest = seen[to][-1]["val_top1"], 0.0
    for number, (label, epochs) in enumerate(seen.items()):
        gaps = [end - row["val_top1"] for row in epochs]
        axis.plot([row["step"] for row in epochs], gaps, markersize=3, label=label, **style(label, number))
        lowest = min([lowest, *gaps])
    axis.set_xscale("log")
    axis.set_yscale("symlog", linthresh=1)
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter("{x:,.0f}")
    axis.minorticks_off()
    axis.set_yticks(GAPS, [str(gap) for gap in GAPS])
    axis.set_ylim(bottom=lowest - 0.1)
    axis.set(xlabel="optimiser steps of fine-tuning", ylabel=f"points below {to} at its end")
    legend(figure, [axis])
    save_figure(figure, out)


def read_fits(run_dir: Path) -> Fits:
    """The "hash_fit" records of a run by block, in order."""
    fits: Fits = {}
    for record in read_records(run_dir, "hash_fit"):
        if record.get("bit_balance") is not None:  # else no image had finite features, and the functions stayed
            fits.setdefault(record["block"], []).append(record)
    return fits


def plot_hash_fits(run_dir: Path, out: Path) -> bool:
    """One panel for each figure that the run knows, its fits from left to right, one line a block.

    Returns whether anything was fitted; without fits there is no picture.
    """
    fits = read_fits(run_dir)
    known = [
        panel for panel in PANELS if any(fit.get(panel[1]) is not None for block in fits.values() for fit in block)
    ]
    if not known:
        return False
    columns = min(3, len(known))
    rows = -(-len(known) // columns)
    figure, axes = panels(rows, columns, (3.6 * columns + 1.6, 2.9 * rows))
    for axis, (title, key, floors) in zip(axes, known, strict=False):
        _panel(axis, fits, key, floors)
        axis.set_title(title, fontsize=9)
    for axis in axes[len(known) :]:
        axis.remove()
    held_out = max(fit.get("held_out_images") or 0 for block in fits.values() for fit in block)
    images = f"{held_out} held-out training images" if held_out else "the images of the fit"
    beside = "; dashed: uniform attention, dotted: random hash" if any(floors for *_, floors in known) else ""
    figure.suptitle(f"Hash functions at every fit, on {images}{beside}", fontsize=9)
    legend(figure, axes[:1])
    save_figure(figure, out)
    return True


def _panel(axes: Axes, fits: Fits, key: str, floors: dict[str, str]) -> None:
    for number, (block, records) in enumerate(fits.items()):
        steps = [record["step"] for record in records]
        colour = f"C{number % 10}"
        for name, floor in floors.items():
            axes.plot(steps, _values(records, name), FLOOR_STYLES[floor], color=colour, lw=0.8, marker=".", ms=3)
        axes.plot(steps, _values(records, key), color=colour, marker="o", markersize=4, lw=1.4, label=block)
    axes.set_xlabel("optimiser step", fontsize=8)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    from_zero(axes, "y")


def _values(records: list[dict[str, Any]], key: str) -> list[float]:
    return [float("nan") if record.get(key) is None else record[key] for record in records]

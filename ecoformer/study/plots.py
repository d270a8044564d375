"""Pictures of studies and sweeps: accuracy against energy, and what hash functions are worth over the epochs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from ecoformer.comparison.figures import save_figure
from ecoformer.study.tables import energy_unit

PANELS = (("energy_pj", "whole model"), ("attention_energy_pj", "attention cores alone"))
MARKERS = "osD^v<>pP*Xhd"


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the (cost, gain) points that no other beats in both, cheapest first; equal points all stay."""
    kept = []
    for index, (cost, gain) in enumerate(points):
        beaten = any(c <= cost and g >= gain and (c, g) != (cost, gain) for c, g in points)
        if not beaten:
            kept.append(index)
    return sorted(kept, key=lambda index: points[index])


def plot_front(rows: Sequence[Mapping[str, Any]], out: Path, title: str) -> None:
    """Top-1 against energy, whole model and attention alone, every row labelled, the Pareto front drawn through.

    Rows have label, top1, top1_sd (None: no bar), energy_pj and attention_energy_pj.
    """
    figure = Figure(figsize=(11, 4.6 + 0.16 * max(0, len(rows) - 12)), layout="constrained")
    axes = figure.subplots(1, 2)
    for axis, (key, name) in zip(axes, PANELS, strict=True):
        scale, unit = energy_unit([row[key] for row in rows])
        points = [(row[key] / scale, row["top1"]) for row in rows]
        best = [points[index] for index in front(points)]
        axis.plot(*zip(*best, strict=True), color="grey", lw=0.8, zorder=0)
        for number, (row, (energy, top1)) in enumerate(zip(rows, points, strict=True)):
            axis.errorbar(
                energy,
                top1,
                yerr=row.get("top1_sd"),
                marker=MARKERS[number % len(MARKERS)],
                color=f"C{number % 10}",
                capsize=2,
                linestyle="none",
                label=row["label"],
            )
        if min(energy for energy, _ in points) > 0 and max(points)[0] > 20 * min(points)[0]:
            axis.set_xscale("log")
        axis.set(xlabel=f"energy an image, {name} ({unit}, modelled)", ylabel="top-1 (%)")
        axis.grid(alpha=0.3)
    figure.suptitle(title, fontsize=10)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right upper", fontsize=7)
    save_figure(figure, out)


def plot_hash_quality(fits: Mapping[str, Sequence[Mapping[str, Any]]], out: Path) -> bool:
    """Attention error of each run's hash fits over the epochs, mean over blocks, beside its two floors.

    `fits` maps a label to a run's `hash_fit` records; runs whose fits know no error are left out. Returns whether
    anything was left to draw.
    """
    known = {
        label: [record for record in records if record.get("attention_error") is not None]
        for label, records in fits.items()
    }
    known = {label: records for label, records in known.items() if records}
    if not known:
        return False
    figure = Figure(figsize=(7, 4), layout="constrained")
    axis = figure.subplots()
    for number, (label, records) in enumerate(known.items()):
        for key, style in (("attention_error", "o-"), ("random_error", "x:"), ("uniform_error", "+--")):
            epochs: dict[int, list[float]] = {}
            for record in records:
                if record.get(key) is not None:
                    epochs.setdefault(record["epoch"], []).append(record[key])
            means = [sum(values) / len(values) for values in epochs.values()]
            kind = key.removesuffix("_error")
            axis.plot(list(epochs), means, style, color=f"C{number % 10}", label=f"{label}: {kind}")
    axis.set(xlabel="epoch of the fit", ylabel="relative L2 error of the attention output", ylim=(0, None))
    axis.grid(alpha=0.3)
    axis.legend(fontsize=7)
    save_figure(figure, out)
    return True

"""Plots of ledgers and sweeps. Each function returns a matplotlib Figure and shows or saves nothing."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from ecoformer.energy.ledger import MJ, Entry, Ledger
from ecoformer.energy.profile import Profile
from ecoformer.errors import InputError
from ecoformer.lab.energy.cases import Case
from ecoformer.nn.inputs import takes_sequences
from ecoformer.report.figures import draw_growth, legend, panels

PARTS = {
    "attention core": "#d62728",
    "attention projections": "#ff9896",
    "other Linear": "#1f77b4",
    "convolutions": "#2ca02c",
    "norms": "#9467bd",
    "everything else": "#7f7f7f",
}
WHOLE_AND_CORES = {"energy_pj": "whole model", "attention_energy_pj": "attention cores"}


def part_name(entry: Entry) -> str:
    """The colour class of an entry in `plot_layers`."""
    if entry.core:
        return "attention core"
    if "Conv" in entry.part:
        return "convolutions"
    if "Norm" in entry.part:
        return "norms"
    if entry.part == "Linear":
        return "attention projections" if entry.attention else "other Linear"
    return "everything else"


def plot_layers(ledgers: Mapping[str, Ledger], profile: Profile, title: str) -> Figure:
    """Stacked bars of energy per layer, one panel per ledger (say, per attention), each on its own scale."""
    if not ledgers:
        raise InputError("plot_layers got no ledger: give at least one")
    widest = max(len(ledger.by_layer()) for ledger in ledgers.values())
    figure, axes = panels(len(ledgers), 1, (max(7.0, 0.42 * widest + 2.5), 2.2 * len(ledgers) + 1.6))
    for axis, (name, ledger) in zip(axes, ledgers.items(), strict=True):
        layers = ledger.by_layer()
        base = [0.0] * len(layers)
        for part, colour in PARTS.items():
            heights = [
                profile.energy_pj([e for e in layer.entries if part_name(e) == part], ledger.convention) / MJ
                for layer in layers.values()
            ]
            if any(heights):
                axis.bar(range(len(layers)), heights, bottom=base, color=colour, label=part, width=0.8)
            base = [low + height for low, height in zip(base, heights, strict=True)]
        total = ledger.energy_pj(profile) / MJ
        axis.set_title(f"{name}: {total:.3f} mJ", fontsize=10, loc="left")
        axis.set_title(f"scale to {axis.get_ylim()[1]:.2g} mJ", fontsize=8, loc="right", color="#555555")
        axis.set_xticks(range(len(layers)), [_short(layer) for layer in layers], rotation=60, ha="right", fontsize=7)
        axis.set_ylabel("mJ")
        axis.grid(visible=False, axis="x")
    legend(figure, axes, list(PARTS), loc="outside lower center", ncols=3, fontsize=8)
    figure.suptitle(title, fontsize=11)
    return figure


def plot_resolution(rows: Sequence[dict[str, Any]]) -> Figure:
    """Whole-model and attention-only energy of one model against its size, a line per attention; from `Case.row`s."""
    sizes = sorted({row["img_size"] for row in rows})
    if len(sizes) < 2:
        raise InputError(f"a plot against resolution needs at least 2 image sizes, got {len(sizes)}")
    unit = "tokens" if takes_sequences(rows[0]["model"]) else "image size, px"
    figure, axes = panels(1, 2, (9.5, 4.0))
    for axis, (key, name) in zip(axes, WHOLE_AND_CORES.items(), strict=True):
        known = [row for row in rows if row[key] is not None]  # else no attention was recognised
        labels = [Case(row["model"], row["attention"], 0, row["num_bits"], row["num_anchors"]).label for row in known]
        points = [(label, row["img_size"], row[key] / MJ) for label, row in zip(labels, known, strict=True)]
        draw_growth(axis, points, unit, "mJ")
        axis.set_title(name, fontsize=10, loc="left")
    legend(figure, axes)
    figure.suptitle(f"{rows[0]['model']}: {_caption(rows[0]['convention'], rows[0]['profile'])}", fontsize=11)
    return figure


def plot_bits_anchors(rows: Sequence[dict[str, Any]]) -> Figure:
    """Energy against code bits and anchors as two maps, attention cores and whole model, from rows of `Case.row`."""
    coded = [row for row in rows if row["num_bits"] is not None and row["num_anchors"] is not None]
    bits = sorted({row["num_bits"] for row in coded})
    anchors = sorted({row["num_anchors"] for row in coded})
    found = {(row["num_bits"], row["num_anchors"]): row for row in coded}
    if len(coded) < 2 or len(found) != len(coded) or len(found) != len(bits) * len(anchors):
        raise InputError(
            f"a map of bits x anchors needs one row per pair, of one model, attention and image size, "
            f"got {len(coded)} rows for {len(bits)} x {len(anchors)}"
        )
    figure, axes = panels(1, 2, (10.0, 1.6 + 0.45 * max(len(bits), 4)))
    for axis, (key, name) in zip(axes, reversed(WHOLE_AND_CORES.items()), strict=True):
        axis.grid(visible=False)
        grid = [[found[b, a][key] / MJ for a in anchors] for b in bits]
        image = axis.imshow(grid, cmap="viridis", aspect="auto", origin="lower")
        low, high = image.get_clim()
        for i, line in enumerate(grid):
            for j, value in enumerate(line):
                light = value < (low + high) / 2
                colour = "white" if light else "black"
                axis.text(j, i, f"{value:.3f}", ha="center", va="center", fontsize=8, color=colour)
        axis.set_xticks(range(len(anchors)), [str(a) for a in anchors])
        axis.set_yticks(range(len(bits)), [str(b) for b in bits])
        axis.set(xlabel="anchors", ylabel="bits")
        axis.set_title(f"{name}, mJ per image", fontsize=10, loc="left")
        figure.colorbar(image, ax=axis)
    first = coded[0]
    figure.suptitle(
        f"{first['model']}, {first['attention']}, {first['img_size']} px: "
        f"{_caption(first['convention'], first['profile'])}",
        fontsize=11,
    )
    return figure


def _caption(convention: str, profile: str) -> str:
    return f"modelled energy, {convention} convention, {profile}"


def _short(layer: str) -> str:
    return layer.replace("stages.", "s").replace(".blocks.", ".b").replace("blocks.", "b").replace("downsample", "down")

"""A distillation as a table and as a picture, and a study of many."""

import itertools
import statistics
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ecoformer.errors import counted
from ecoformer.files.table import Column, Table
from ecoformer.lab.closeness import quality_report
from ecoformer.lab.study.tables import with_spread
from ecoformer.nn.inputs import takes_sequences
from ecoformer.nn.specs import SPECS, make_spec
from ecoformer.report.figures import MARKERS, from_zero, headline, legend, panels, save_figure, style

Figures = dict[str, Any]
SHOWN = ("codes", "num_features", "num_bits", "levels", "projection", "values", "joint_steps")  # options, in a table


def code_text(figures: Figures) -> str:
    if figures["codes"] == "bits":
        return counted(figures["num_bits"], "bit")
    if figures["codes"] != "shift":
        return str(figures["codes"])
    return f"{counted(figures['num_bits'], 'shift')} of {figures['levels']} levels{_weights(figures)}"


def block_table(figures: Figures) -> Table:
    """Errors of every block between their floors."""
    columns = [
        Column("block", "block", left=True),
        Column("tokens", "num_tokens"),
        Column("error", "error", "{:.3f}"),
        Column("uniform", "error_uniform", "{:.3f}"),
        Column("random", "error_random", "{:.3f}"),
        Column("of uniform", lambda row: quality_report.of_uniform(row["error"], row["error_uniform"]), "{:.0%}"),
        Column("layer µJ", "energy_pj", "{:.2f}", 1e6),
        Column("before µJ", "energy_pj_before", "{:.2f}", 1e6),
        Column("s", "seconds", "{:.1f}"),
    ]
    return Table(columns, figures["blocks"])


def summary_lines(figures: Figures) -> list[str]:
    lines = []
    one, many = ("a sample", "samples") if takes_sequences(figures["model"]) else ("an image", "images")
    if figures["top1_before"] is not None and figures["top1_after"] is not None:
        top1 = {"before": figures["top1_before"], "distilled": figures["top1_after"]}
        top1 |= {f"{name} (values fitted)": control["top1"] for name, control in figures["controls"].items()}
        listed = ", ".join(f"{name} {value:.2f}" for name, value in top1.items())
        lines.append(f"top-1 % on {figures['num_val']} {many}, no training: {listed}")
        apart = {"distilled": figures} | figures["controls"]
        listed = ", ".join(f"{name} {row['kl']:.4f} ({row['agreement']:.1%} same class)" for name, row in apart.items())
        lines.append(f"KL to the original, nats: {listed}")
    for key, convention in (("energy_pj", "paper"), ("energy_audited_pj", "audited")):
        energy, after = figures[key], figures[key]["after"]
        against = ", ".join(
            f"{name} {energy[name] / 1e6:.4g} ({1 - after / energy[name]:+.1%} saved)"
            for name in ("stock", "msa", "ecoformer")
        )
        lines.append(f"energy, {convention}, µJ {one}: distilled {after / 1e6:.4g}; {against}")
    if figures["sum_bits"] is not None:
        lines.append(f"integers: sums of rows of 8-bit tokens fit into {figures['sum_bits']} bits")
    return lines


def plot_errors(figures: Figures, out: Path) -> None:
    title = f"{figures['model']} on {figures['dataset']}\n{code_text(figures)}, from {figures['source']}"
    floors = {"error_uniform": "uniform attention", "error_random": "random codes"}
    quality_report.plot_errors([{"setting": "distilled", "blocks": figures["blocks"]}], out, title, floors)


def ratios(row: Figures) -> list[float]:
    """Error of each block of a study's row against uniform attention's."""
    return [
        quality_report.of_uniform(*errors)
        for errors in zip(row["error_per_block"], row["uniform_per_block"], strict=True)
    ]


def study_table(rows: list[Figures]) -> Table:
    """One line a way to convert a model, over the seeds of the fit: means, and the sample deviation of top-1."""
    told = "checkpoint", "source", "attention", "num_images", "layers"
    groups: dict[str, list[Figures]] = {}
    for row in rows:
        groups.setdefault(str([*(row[key] for key in told), *_options(row).items()]), []).append(row)

    def mean(of: Callable[[Figures], float]) -> Callable[[list[Figures]], float]:
        return lambda group: statistics.fmean(map(of, group))

    def top1(group: list[Figures]) -> str:
        found = [row["top1_after"] for row in group]
        return with_spread(statistics.fmean(found), statistics.stdev(found) if len(found) > 1 else None)

    measured = [group for group in groups.values() if all(row["top1_after"] is not None for row in group)]
    columns = [
        Column("model", lambda group: f"{group[0]['checkpoint']} ({group[0]['source']})", left=True),
        Column("codes", lambda group: code_text(group[0]) + _unusual(group[0]) + _which(group[0]), left=True),
        Column("images", lambda group: group[0]["num_images"]),
        Column("joint steps", lambda group: group[0]["joint_steps"]),
        Column("seeds", len),
        Column("error of uniform's", mean(lambda row: statistics.fmean(ratios(row))), "{:.3f}"),
        Column("worst layer", mean(lambda row: max(ratios(row))), "{:.3f}"),
        Column("source top-1", mean(lambda row: row["top1_source"]), "{:.2f}"),
        Column("top-1", top1),
        Column("KL", mean(lambda row: row["kl"]), "{:.4f}"),
        Column("same class", mean(lambda row: row["agreement"]), "{:.1%}"),
        Column("µJ", mean(lambda row: row["energy_pj"]), "{:.1f}", 1e6),
        Column("of EcoFormer's", mean(lambda row: row["energy_pj"] / row["ecoformer_energy_pj"]), "{:.2f}"),
        Column("µJ audited", mean(lambda row: row["energy_audited_pj"]["after"]), "{:.1f}", 1e6),
    ]
    return Table(columns, measured)


def plot_study(rows: list[Figures], out: Path) -> None:
    """Points lost without training, and worst layer's error over uniform attention's, against the energy of an image.

    One marker a form of code, one colour a source model; energy is that of the whole model over EcoFormer's.
    """
    figure, (lost, worst) = panels(1, 2, (9.5, 4.8))
    rows = [row for row in rows if not row["finetuned"]]
    sources = list(dict.fromkeys(f"{row['checkpoint']} ({row['source']})" for row in rows))
    forms = list(dict.fromkeys(_form(row) for row in rows))
    for source, form in itertools.product(sources, forms):
        mine = [row for row in rows if (f"{row['checkpoint']} ({row['source']})", _form(row)) == (source, form)]
        if not mine:
            continue
        energy = [row["energy_pj"] / row["ecoformer_energy_pj"] for row in mine]
        marker, color = MARKERS[forms.index(form) % len(MARKERS)], f"C{sources.index(source)}"
        style: dict[str, Any] = {"marker": marker, "linestyle": "", "color": color, "label": f"{source}, {form}"}
        if all(row["top1_after"] is not None for row in mine):
            lost.plot(energy, [row["top1_before"] - row["top1_after"] for row in mine], **style)
        worst.plot(energy, [max(ratios(row)) for row in mine], **style)
    lost.axhline(0.33, color="grey", lw=0.8)
    lost.set(ylabel="top-1 lost without training (points); grey: 0.33")
    worst.set(ylabel="worst layer: error / uniform's")
    from_zero(worst, "y")
    for axis in (lost, worst):
        axis.axvline(1, color="grey", lw=0.8)
        axis.set_xlabel("energy of a sample / EcoFormer's (paper convention)")
    # Outside of the axes: inside it would cover points.
    legend(figure, [worst], loc="outside lower center", ncols=2)
    save_figure(figure, out)


def plot_front(rows: list[Figures], beside: list[Figures], out: Path) -> None:
    """Top-1 right after the conversion against the energy of an image: distillations of one model, and other kinds.

    Args:
        rows: of the study; those of the first row's model and training seed are drawn.
        beside: rows of a training study's table.json; those without stage 2 of the same model and seed.
    """
    first = rows[0]
    where = ("dataset", "model", "training_seed")
    points: dict[str, list[tuple[float, float]]] = {}
    for row in beside:
        drawn_below = row["attention"].startswith("distilled")
        if row["epochs_stage2"] == 0 and not drawn_below and all(row[key] == first[key] for key in where):
            label = f"{row['attention']} {row['name']}".strip()
            points.setdefault(label, []).append((row["energy_pj"] / 1e6, row["top1"]))
    for row in rows:
        if row["top1_after"] is not None and all(row[key] == first[key] for key in where):
            joint = ", joint fit" if row["joint_steps"] else ""
            some = f", {len(row['error_per_block'])} layers" if row["layers"] else ""
            kind = {"bits": "distilled_hash: ", "shift": "distilled: "}.get(row["codes"], "")
            # The default number of levels goes without saying in a picture.
            label = f"{kind}{code_text(row).replace(' of 16 levels', '')}{some}{joint}"
            points.setdefault(label, []).append((row["energy_pj"] / 1e6, row["top1_after"]))
    figure, (axis,) = panels(1, 1, (10.5, 4.6))
    for number, (label, found) in enumerate(points.items()):
        axis.plot(*zip(*found, strict=True), linestyle="", label=label, **style(label, number))
    legend(figure, [axis])
    axis.set(xlabel="energy of a sample, µJ (whole model, paper convention)", ylabel="top-1, %")
    headline(axis, f"{first['model']} on {first['dataset']}: converted, not trained")
    save_figure(figure, out)


def _options(row: Figures) -> dict[str, Any]:
    """All options of the spec that made a row: those that came later have their defaults."""
    spec = make_spec(row["attention"], row["spec"])
    assert spec is not None, "stock attention is not distilled"
    return asdict(spec)


def _unusual(row: Figures) -> str:
    """The options that have not their default and no place of their own in a table."""
    usual = asdict(SPECS[row["attention"]]())
    options = {key: value for key, value in _options(row).items() if key not in SHOWN and value != usual[key]}
    return "".join(f", {key}={value}" for key, value in options.items())


def _which(row: Figures) -> str:
    """The layers that have the codes, where some were left as they are."""
    return f", in {' '.join(str(layer).removesuffix('.*') for layer in row['layers'])}" if row["layers"] else ""


def _form(row: Figures) -> str:
    return f"{row['codes']}{_weights(row)}"


def _weights(row: Figures) -> str:
    """Which weights of a layer are no real numbers. Rows of earlier versions say nothing of values: they were real."""
    projected = {"ternary": ", ternary", "shift": ", shifted projection"}.get(row["projection"], "")
    return projected + (", shifted values" if row.get("values") == "shift" else "")

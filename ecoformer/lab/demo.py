"""What the demo measures and shows: one model with many attentions, their top-1 beside their energy, and whom they see.

Shapes: N tokens, S pixels.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor, nn

from ecoformer.data.inks import CELL, INKS
from ecoformer.energy import summarize
from ecoformer.engine.evaluation import evaluate
from ecoformer.files.table import Column, Table, energy_unit, markdown, saves
from ecoformer.kinds import SPECS
from ecoformer.lab.closeness.controls import ControlSpec
from ecoformer.lab.closeness.distill import distill
from ecoformer.lab.closeness.maps import layer_weights
from ecoformer.lab.closeness.source import Source
from ecoformer.lab.energy.energy_tables import BASELINES, summary_table
from ecoformer.report.figures import draw_growth, legend, save_figure, style

Row = dict[str, Any]
FIT_IMAGES = 512  # of the training split, that conversions are fitted on
CONVERTED = "converted"  # of weights that were not trained afterwards
CONTROLS = {"uniform": ControlSpec(mode="uniform"), "none": ControlSpec(mode="none")}
SEEN = ("msa", "distilled", "ecoformer")  # kinds whose attention is drawn
TITLE = "Digits in four inks: which one does a single ink write again and again?"


def convert_all(
    source: Source, kinds: Mapping[str, Mapping[str, Any]], first: Row
) -> tuple[list[Row], dict[str, nn.Module]]:
    """Convert copies of the source without training, a row and a model for each kind with its options.

    `first` is the row of the source. The values of controls are fitted, as codes are.
    """
    known = {key: first[key] for key in ("model", "dataset", "img_size", "epochs", "seed", "versions")}
    images, size = source.data.calibration_images(FIT_IMAGES, seed=0), source.config.data.img_size
    rows, models = [], {"msa": source.model}
    for kind, options in kinds.items():
        spec = replace(CONTROLS[kind], **options) if kind in CONTROLS else SPECS[kind](**options)
        started = time.perf_counter()
        model = models[kind] = distill(source.model, spec, images, seed=0).model
        row = {"attention": kind, "how": CONVERTED, "seconds": time.perf_counter() - started}
        counted = source.empty_model({"name": kind}) if kind in CONTROLS else model
        energy = summarize(counted, size, first["energy_convention"], first["energy_profile"])
        found = evaluate(model, source.data.val_loader, source.data.val_loader.device)
        rows.append({**known, **asdict(found), **energy, **row})
        print(f"{kind}: converted in {row['seconds']:.1f} s, top-1 {found.top1:.2f} %", flush=True)
    return rows, models


def accuracy_table(rows: Sequence[Row]) -> Table:
    """The rows side by side, with energy saved against the MSA that all were converted from."""
    scale, unit = energy_unit([row["energy_pj"] for row in rows])
    columns = [
        Column("attention", "attention", left=True),
        Column("weights", "how", left=True),
        Column("in s", "seconds", "{:.0f}"),
        Column("top-1 %", "top1", "{:.2f}"),
        Column(f"energy {unit}", "energy_pj", "{:.4g}", scale),
        saves("saves vs msa", rows, "msa", "energy_pj"),
        Column(f"attention only {unit}", "attention_energy_pj", "{:.4g}", scale),
        saves("saves vs msa", rows, "msa", "attention_energy_pj"),
    ]
    return Table(columns, rows)


def size_table(sizes: Sequence[Row]) -> Table:
    table = summary_table(sizes)
    return Table([column for column in table.columns if not column.wide], table.rows)


def report(rows: Sequence[Row], sizes: Sequence[Row], num_val: int) -> str:
    """report.md: both tables, what they mean, the picture, the commands."""
    first = rows[0]
    tokens = (first["img_size"] // CELL) ** 2
    energy = f"{first['energy_convention']} convention, profile {first['energy_profile']}"
    commands = "\n".join(f"- `{row['command']}`" for row in rows if row["how"] != CONVERTED)
    return f"""# {TITLE}

![The demo in one picture](demo.png)

{markdown(accuracy_table(rows))}

- {first["model"]}, cut down by configs/recipe/inks.yaml, with {tokens} tokens, each a scan of scikit-learn's digits;
  {num_val} validation pictures, of validation scans. Guessing among a picture's four digits gives 25 %.
- uniform and none are controls that attend to nothing: the mean of all values, and each token's own. Timm's own
  attention of a plain ViT is MSA.
- "converted": in so many seconds, on {FIT_IMAGES} training pictures, without labels and without training.
- Energy is modelled, not measured: {energy}, one image.
  What distilled attention has of projections stands under "attention only", as nothing lies outside of its sums.

# {sizes[0]["model"]} on larger images

{markdown(size_table(sizes))}

- {BASELINES}

# Commands

{commands}
"""


def draw(
    models: Mapping[str, nn.Module], image_3SS: Tensor, rows: Sequence[Row], sizes: Sequence[Row], out: Path
) -> None:
    """One picture: a question and whom one digit looks at; top-1 against energy; energy against the size of images."""
    figure = Figure(figsize=(12, 7.4), layout="constrained")
    above, below = figure.subfigures(2, 1, squeeze=False, height_ratios=[1, 1.25]).flatten()
    above.suptitle(f"{TITLE} Right: each digit as bright as the boxed one attends to it", fontsize=9)
    _draw_views(above.subplots(1, 1 + len(SEEN)), models, image_3SS)
    front, growth = below.subplots(1, 2)
    _draw_front(front, rows)
    _draw_growth(growth, sizes)
    legend(below, [front, growth])
    save_figure(figure, out)


def _draw_views(axes: Sequence[Axes], models: Mapping[str, nn.Module], image_3SS: Tensor) -> None:
    """The picture, and again for each kind with every digit as bright as the weight that the boxed one gives it."""
    low, high = image_3SS.min(), image_3SS.max()
    picture_SS3 = ((image_3SS - low) / (high - low)).permute(1, 2, 0)
    seen = {kind: layer_weights(models[kind], image_3SS[None]) for kind in SEEN}
    maps = {name: weights[0].mean(0) for name, weights in seen["msa"].items()}
    side = round(len(next(iter(maps.values()))) ** 0.5)
    cell = len(picture_SS3) // side
    query = int(nn.functional.avg_pool2d(picture_SS3.mean(-1)[None, None], cell).argmax())
    block = max(maps, key=lambda name: float(maps[name][query].max()))
    box = {"xy": (query % side * cell, query // side * cell), "width": cell, "height": cell}
    axes[0].imshow(picture_SS3)
    axes[0].set_title("a picture", fontsize=9)
    for axis, kind in zip(axes[1:], SEEN, strict=True):
        row_N = seen[kind][block][0].mean(0)[query]
        share_SS = (row_N / row_N.max()).clamp(min=0).reshape(side, side).kron(torch.ones(cell, cell))
        axis.imshow(picture_SS3 * share_SS.sqrt()[..., None])  # the root, so that faint ones are seen
        how = "trained" if kind == "msa" else CONVERTED
        axis.set_title(f"{kind}, {how}", fontsize=9, color=style(kind)["color"])
    for axis in axes:
        axis.add_patch(Rectangle(**box, fill=False, edgecolor="white"))
        axis.set_xticks([])
        axis.set_yticks([])


def _draw_front(axis: Axes, rows: Sequence[Row]) -> None:
    scale, unit = energy_unit([row["energy_pj"] for row in rows])
    for row in rows:
        fill, colour = "none" if row["how"] == CONVERTED else "full", style(row["attention"])["color"]
        look: dict[str, Any] = {"markersize": 8, "fillstyle": fill, "color": colour}
        axis.plot(row["energy_pj"] / scale, row["top1"], "o", label=row["attention"], **look)
    axis.axhline(100 / INKS, color="grey", linestyle=":")
    guess, of_axis = "guessing among a picture's digits", axis.get_yaxis_transform()
    axis.text(0.01, 100 / INKS + 3, guess, transform=of_axis, fontsize=8, color="grey")
    axis.set(xlabel=f"modelled energy of an image, {unit}", ylabel="top-1, %")
    axis.set_title("this model: accuracy against energy (hollow: without training)", fontsize=9, loc="left")
    axis.grid(alpha=0.3)


def _draw_growth(axis: Axes, sizes: Sequence[Row]) -> None:
    scale, unit = energy_unit([min(row["energy_pj"] for row in sizes)])
    points = [(row["attention"], row["img_size"], row["energy_pj"] / scale) for row in sizes]
    draw_growth(axis, points, "image size, px", f"modelled energy of an image, {unit}")
    axis.set_title(f"{sizes[0]['model']}: energy against the size of images", fontsize=9, loc="left")
    axis.grid(alpha=0.3)

"""Draw what `benchmark.py --img-size 224,384,... --out rows.json` measured: time and peak memory over the tokens.

python scripts/plot_speed.py rows.json [more.json ...] --out growth.png
"""

import argparse
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

from ecoformer.cli.arguments import Parser, given_path, out_file, script
from ecoformer.errors import InputError, counted
from ecoformer.lab.speed.section import read_rows
from ecoformer.report.figures import draw_growth, from_zero, legend, panels, save_figure

PANELS = {
    "milliseconds_per_image": "ms per image",
    "microseconds_per_token": "µs per token of stage 1",
    "peak_mib": "peak memory, MiB",
}


@script(__name__, __doc__)
def main(p: Parser) -> None:
    p.add_argument("rows", type=given_path, nargs="+", help="JSON rows of benchmark.py")
    p.add_argument("--out", type=out_file, required=True, metavar="FILE.png")


def run(args: argparse.Namespace) -> int:
    rows = [row for path in args.rows for row in read(path)]
    if not rows:
        raise InputError(f"{args.rows[0]} holds no rows that could be measured: give another file")
    save_figure(figure(rows), args.out)
    return 0


def read(path: Path) -> list[dict[str, Any]]:
    """The rows, with time per image and per token of the first stage (4 x 4 pixels)."""
    rows = read_rows(path, ("milliseconds", "batch_size", "img_size", "attention"))
    for row in rows:
        row["milliseconds_per_image"] = row["milliseconds"] / row["batch_size"]
        row["microseconds_per_token"] = 1e3 * row["milliseconds_per_image"] / (row["img_size"] / 4) ** 2
    return rows


def figure(rows: list[dict[str, Any]]) -> Figure:
    drawing, axes = panels(1, len(PANELS), (12, 4))
    for axis, (key, label) in zip(axes, PANELS.items(), strict=True):
        points = [(row["attention"], row["img_size"], row[key]) for row in rows if row[key]]
        draw_growth(axis, points, "image size, px", label)
        if key == "microseconds_per_token":
            axis.set_yscale("linear")
            from_zero(axis, "y")
        else:
            axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.yaxis.set_major_formatter(ScalarFormatter())
            axis.yaxis.set_minor_formatter(NullFormatter())
    legend(drawing, axes)
    first = rows[0]
    setting = f"{first['model']}, {first['mode']}, batch {first['batch_size']}, {first['precision']}"
    drawing.suptitle(f"{setting}, {counted(first['threads'], 'thread')}, {first['machine']}")
    return drawing

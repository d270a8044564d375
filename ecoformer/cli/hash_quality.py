"""How well hash attention follows the softmax attention it replaces, before any training: a sweep over settings.

    python scripts/hash_quality.py --checkpoint MSA_RUN/best.pt --data ROOT --settings ecoformer ecoformer_tuned

Each setting is "KIND" or "KIND:key=value,..."; "random-KIND" leaves its hash functions random. Errors are those of the
attention output on held-out images, as a share of uniform attention's; see docs/hash_learning.md. With --out, writes
quality.json, table.md, errors.png and energy.png there.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from ecoformer.cli.arguments import Parser, require_positive, script
from ecoformer.files import json_text
from ecoformer.files.table import render

DEFAULT_SETTINGS = (
    "ecoformer",
    "ecoformer:numerator=kernel",
    "random-ecoformer:numerator=kernel",
    "ecoformer_tuned",
    "random-ecoformer_tuned",
)


@script(__name__, __doc__)
def main(p: Parser) -> None:
    p.add_argument("--checkpoint", required=True, help="best.pt or last.pt of an attention=msa run")
    p.add_argument("--data", metavar="ROOT", help="data.root, if it is not where the run had it")
    p.add_argument("--settings", nargs="+", default=list(DEFAULT_SETTINGS), metavar="SETTING")
    p.add_argument("--fit-images", type=int, default=128, help="training images that hash functions are fitted on")
    p.add_argument("--images", type=int, default=64, help="validation images that errors are measured on")
    p.add_argument("--map-images", type=int, default=4, help="of these, for recall and correlation (N x N weights)")
    p.add_argument("--seeds", type=int, nargs="+", default=[0], help="of the hash functions; one row each")
    p.add_argument("--top1", action="store_true", help="also top-1 on all validation images, without any training")
    p.add_argument("--profile", default="45nm_fp32", help="energy prices")
    p.add_argument("--threads", type=int, help="CPU threads")
    p.add_argument("--format", choices=("table", "json"), default="table")
    p.add_argument("--out", type=Path, help="folder for the results")


def run(args: argparse.Namespace) -> int:
    # Imported late: --help should not wait for torch.
    import torch

    from ecoformer.energy import load_profile
    from ecoformer.lab.closeness.quality_report import baseline, quality_table, worst, write_report
    from ecoformer.lab.closeness.source import load_source
    from ecoformer.lab.closeness.sweep import parse_setting, sweep

    if args.threads is not None:
        torch.set_num_threads(args.threads)
    require_positive(args, "fit_images", "images", "map_images")
    settings = [parse_setting(text) for text in args.settings]
    profile = load_profile(args.profile)

    def on_row(found: dict[str, Any]) -> None:
        row = found["rows"][-1]
        print(f"{row['setting']}, seed {row['seed']}: worst block {worst(row):.2f}", file=sys.stderr, flush=True)
        if args.out is not None:
            write_report(found, args.out)  # after every setting: a sweep may take an hour and be cut short

    found = sweep(
        load_source(checkpoint=args.checkpoint, root=args.data, only_msa=True),
        settings,
        fit_images=args.fit_images,
        images=args.images,
        map_images=args.map_images,
        seeds=args.seeds,
        profile=profile,
        with_accuracy=args.top1,
        on_row=on_row,
    )
    if args.format == "json":
        print(json_text(found, indent=2))
        return 0
    reference = baseline(found["rows"])
    unit = "nJ per image" if reference is None else f"relative to {reference['setting']}"
    title = f"{found['title']}: error / uniform attention's, block by block; energy {unit}"
    print(render(quality_table(found["rows"], reference), "table", title))
    controls = ", ".join(f"{name} {value:.2f}" for name, value in found["top1"].items())
    if controls:
        print(f"top-1 (%) on {found['num_val']} images: {controls}")
    return 0

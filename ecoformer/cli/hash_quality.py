"""How well hash attention follows the softmax attention it replaces, before any training: a sweep over settings.

    python scripts/hash_quality.py --checkpoint MSA_RUN/best.pt --data ROOT --settings ecoformer ecoformer_tuned

Each setting is "KIND" or "KIND:key=value,..."; "random-KIND" leaves its hash functions random. Errors are those of the
attention output on held-out images, as a share of uniform attention's; see docs/hash_learning.md. With --out, writes
quality.json, table.md, errors.png and energy.png there.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from ecoformer.cli.arguments import Parser, run_script
from ecoformer.errors import InputError

DEFAULT_SETTINGS = (
    "ecoformer",
    "ecoformer:numerator=kernel",
    "random-ecoformer:numerator=kernel",
    "ecoformer_tuned",
    "random-ecoformer_tuned",
)


def parser() -> argparse.ArgumentParser:
    p = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
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
    return p


def main(argv: list[str] | None = None) -> int:
    return run_script(run, parser(), argv)


def run(args: argparse.Namespace) -> int:
    # Imported late: --help should not wait for torch.
    from rich.console import Console

    from ecoformer.lab.closeness.quality_report import quality_table, wide

    found = sweep(args)
    rows, title = found["rows"], found["title"]
    if args.format == "json":
        print(json.dumps(found, indent=2))
        return 0
    console = Console(width=max(150, Console().width))  # a table that is cut helps less than one that wraps
    reference = baseline(rows)
    unit = "nJ per image" if reference is None else f"relative to {reference['setting']}"
    title = f"{title}: error / uniform attention's, block by block; energy {unit}"
    console.print(wide(quality_table(rows, reference), title))
    controls = ", ".join(f"{name} {value:.2f}" for name, value in found["top1"].items())
    if controls:
        console.print(f"top-1 (%) on {found['num_val']} images: {controls}")
    return 0


def sweep(args: argparse.Namespace) -> dict[str, Any]:
    """Everything measured, JSON-ready."""
    import torch

    from ecoformer.energy import load_profile
    from ecoformer.lab.closeness.controls import uniform_copy
    from ecoformer.lab.closeness.source import load_source, pick_images
    from ecoformer.lab.closeness.sweep import measure, parse_setting

    if args.threads is not None:
        torch.set_num_threads(args.threads)
    for key in ("fit_images", "images", "map_images"):
        if getattr(args, key) < 1:
            raise InputError(f"--{key.replace('_', '-')} {getattr(args, key)} must be at least 1")
    settings = [parse_setting(text) for text in args.settings]
    profile = load_profile(args.profile)
    source = load_source(checkpoint=args.checkpoint, root=args.data, only_msa=True)
    config, data, msa = source.config, source.data, source.model
    held_out = pick_images(data.val_loader, data.num_val, args.images, seed=0)
    controls = {"msa": source.accuracy(msa), "uniform": source.accuracy(uniform_copy(msa))} if args.top1 else {}
    rows: list[dict[str, Any]] = []
    found = {
        "title": f"{config.model.name} on {config.data.name}, {config.data.img_size} px",
        "model_kwargs": config.model.kwargs,
        "epochs": source.epoch,
        "fit_images": args.fit_images,
        "images": args.images,
        "num_val": data.num_val,
        "threads": torch.get_num_threads(),
        "top1": controls,
        "rows": rows,
    }
    for seed in args.seeds:
        calibration = data.calibration_images(args.fit_images, seed=seed)
        for setting in settings:
            rows.append(
                measure(
                    msa,
                    setting,
                    calibration=calibration,
                    held_out=held_out,
                    seed=seed,
                    profile=profile,
                    map_images=args.map_images,
                    accuracy=source.accuracy if args.top1 else None,
                )
            )
            worst = max(block["error"] / block["error_uniform"] for block in rows[-1]["blocks"])
            print(f"{setting.name}, seed {seed}: worst block {worst:.2f}", file=sys.stderr, flush=True)
            if args.out is not None:
                write(found, args.out)  # after every setting: a sweep may take an hour and be cut short
    return found


def baseline(rows: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The row that energies are compared with: the official form, if it is among them."""
    return next((row for row in rows if row["setting"].partition(":")[0] == "ecoformer"), None)


def write(found: dict[str, Any], out: Path) -> None:
    """quality.json, table.md and the two pictures."""
    from ecoformer.files import write_text
    from ecoformer.lab.closeness.quality_report import plot_energy, plot_errors, quality_table
    from ecoformer.report.table import markdown

    rows = found["rows"]
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / "quality.json", json.dumps(found, indent=2) + "\n")
    write_text(out / "table.md", markdown(quality_table(rows, baseline(rows))) + "\n")
    first = [row for row in rows if row["seed"] == rows[0]["seed"]]
    plot_errors(first, out / "errors.png", found["title"])
    plot_energy(first, out / "energy.png", found["title"])


if __name__ == "__main__":
    sys.exit(main())

"""Gather any folder of runs into one table and one plot of accuracy against energy.

    python scripts/sweep_report.py DIR [--out DIR]

Runs are found at any depth: those of `train.py -m`, of scripts/reproduce.py, or put there by hand. Columns are the
settings in which they differ. Failed and unfinished runs are listed with how far they came.
"""

import argparse
from pathlib import Path

from ecoformer.cli.arguments import Parser, script


def parser() -> argparse.ArgumentParser:
    p = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("folder", type=Path, metavar="DIR")
    p.add_argument("--out", type=Path, help="where sweep.json, .md, .csv, .tex and front.png go (default: DIR)")
    return p


def run(args: argparse.Namespace) -> int:
    # Imported late: --help should not wait for torch.
    from ecoformer.lab.study.sweep import sweep_report

    print(sweep_report(args.folder, args.out or args.folder))
    return 0


main = script(run, parser)

"""Set runs that differ in their attention alone side by side: accuracy, energy in both conventions, a plot.

    python scripts/attention_kinds.py RUNS [--out DIR]

RUNS holds one finished run of each attention, as the commands in docs/attention_kinds.md leave them. Writes table.json,
table.md and energy.png.
"""

import argparse
from pathlib import Path

from ecoformer.cli.arguments import Parser, script


def parser() -> argparse.ArgumentParser:
    p = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("folder", type=Path, metavar="RUNS")
    p.add_argument("--out", type=Path, help="where the table and the plot go (default: RUNS)")
    return p


def run(args: argparse.Namespace) -> int:
    # Imported late: --help should not wait for torch.
    from ecoformer.lab.study.kinds import kinds_report

    print(kinds_report(args.folder, args.out or args.folder))
    return 0


main = script(run, parser)

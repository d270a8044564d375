"""Search for the front of accuracy against energy with Optuna, in the language of train.py's command line.

    python scripts/search.py --trials 20 --out DIR experiment=NAME init.checkpoint=MSA_RUN/best.pt \\
        attention.num_bits=4,8,16,32 attention.num_anchors=10,25,50 'optim.lr=tag(log,interval(1e-5,1e-3))'

Keys with several values (a,b,c or range(...)) or an interval are searched, all else goes to every run. The energy of a
point is counted before it is trained; settings that cannot be built cost nothing. The same command goes on with an
interrupted search, more --trials lengthen it. Few combinations are better tried all: train.py -m. Needs
pip install 'ecoformer[sweep]'. The report is that of scripts/sweep_report.py, and the front.
"""

import argparse
import importlib.util

from ecoformer.cli.arguments import Parser, out_folder, positive, script, seed
from ecoformer.errors import InputError


@script(__name__, __doc__, resumable=True)
def main(p: Parser) -> None:
    p.add_argument("--trials", type=positive, default=20, help="points of the whole search, failed ones included")
    p.add_argument("--out", type=out_folder, required=True, metavar="DIR", help="runs, journal, report")
    p.add_argument("--seed", type=seed, default=0, help="of the drawing of points")
    p.add_argument("--launch", default="python", metavar="COMMAND", help='e.g. "torchrun --nproc-per-node 8"')
    p.add_argument("--dry-run", action="store_true", help="draw points at random and print their energy")
    p.add_argument("overrides", nargs="+", metavar="key=value")


def run(args: argparse.Namespace) -> int:
    if importlib.util.find_spec("optuna") is None:
        raise InputError("the search needs Optuna: pip install 'ecoformer[sweep]'")
    # Imported late: --help should not wait for torch.
    from ecoformer.lab.study.reports import sweep_report
    from ecoformer.lab.study.search import RUNS, Search, front, parse_space
    from ecoformer.run.process import module

    def show(line: str) -> None:
        print(line, flush=True)

    search = Search(parse_space(args.overrides), args.out, module("train"), args.launch, args.seed, show)
    if args.dry_run:
        search.preview(args.trials)
        return 0
    failed = search.run(args.trials)
    if (args.out / RUNS).is_dir():
        print(sweep_report(args.out / RUNS, args.out))
    print("\n".join(["front, cheapest first (top-1 of the last epoch, energy of one sample):", *front(args.out)]))
    return 1 if failed else 0

"""What loading costs a stage, and images/s of this loader and of timm's, in turns. See docs/speed.md.

    python scripts/benchmark_data.py --root DIR --workers 2 --against timm --format json

DIR holds train/CLASS and val/CLASS. Both loaders read the training split with the same options and as many worker
processes: once with random crops and flips alone, once with RandAugment, erasing, mixup and CutMix as well. Rates are
whole passes over the split, round by round. The stages of this loader are timed one by one in this process; "batch" is
what is done to a whole batch: normalisation, erasing, mixing.
"""

from ecoformer.cli.arguments import Parser, not_negative, out_file, positive, script, seed


@script("ecoformer.lab.speed.benchmark_data", __doc__)
def main(p: Parser) -> None:
    p.add_argument("--root", required=True, metavar="DIR")
    p.add_argument("--workers", type=positive, default=2, help="processes that decode, of each loader")
    p.add_argument("--against", choices=("timm", "none"), default="timm", help="none: this loader alone")
    p.add_argument("--img-size", type=positive, default=224)
    p.add_argument("--batch-size", type=positive, default=64)
    p.add_argument("--rounds", type=positive, default=5)
    p.add_argument("--min-seconds", type=not_negative, default=5.0, help="of a loader's turn in a round")
    p.add_argument("--images", type=positive, default=200, help="of which the stages are timed")
    p.add_argument("--seed", type=seed, default=0)
    p.add_argument("--format", choices=("table", "json"), default="table")
    p.add_argument("--out", type=out_file, metavar="FILE", help="also write the JSON report to a file")

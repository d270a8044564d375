"""Speed and peak memory of a model with its stock attention and with others, in one run. See docs/speed.md.

    python scripts/benchmark.py --model pvt_v2_b0 --attention stock,msa,ecoformer --img-size 224 --batch-size 32 \\
        --mode eval --threads 2 --device cpu --precision fp32 --rounds 5 --format table

An attention is stock or a registered kind, with suffixes if wanted: msa_unfused forms softmax(q k^T) as a matrix
instead of calling torch's fused attention, ecoformer_compiled goes through torch.compile. Variants take turns, round
by round; figures are medians over the rounds, ratio_to_stock the median of each round's own ratio. A train pass is
forward, backward and an AdamW step; of a single --layer it is forward and backward. peak_mib is how far memory rose
in a fresh process that built the model and ran three passes: weights included, torch itself not; on a CPU the median of
up to three such processes. A variant that cannot run keeps its row, which says why; the exit code is 2 then.
"""

import argparse

from ecoformer.cli.arguments import Parser, not_negative, out_file, positive, positives, script, seed, settings


@script("ecoformer.lab.speed.benchmark", __doc__)
def main(p: Parser) -> None:
    p.add_argument("--model", help="a timm model name; default: pvt_v2_b0")
    p.add_argument("--checkpoint", metavar="RUN", help="a run or its best.pt, beside the same with --attention")
    p.add_argument(
        "--attention",
        type=settings,
        help="KIND[:key=value,...]; default: stock,msa,ecoformer, beside a checkpoint stock,msa",
    )
    p.add_argument(
        "--img-size",
        "--seq-len",
        type=positives,
        help="pixels or tokens, several to see the growth; default: what the model is made for",
    )
    p.add_argument("--clamp", action="store_true", help="lower anchors to the token count instead of refusing")
    p.add_argument("--batch-size", type=positive, default=32)
    p.add_argument("--mode", choices=("eval", "train"), default="eval")
    p.add_argument("--threads", type=positive, help="CPU threads; default: torch's choice")
    p.add_argument("--device", default="cpu", help="auto, cpu, cuda or cuda:N")
    p.add_argument("--precision", choices=("fp32", "bf16", "fp16"), default="fp32", help="the last two by autocast")
    p.add_argument("--channels-last", action="store_true", help="channels-last convolutions and images")
    p.add_argument("--layer", type=positive, default=0, metavar="N", help="only the N-th attention layer; default: all")
    p.add_argument("--rounds", type=positive, default=5)
    p.add_argument("--min-seconds", type=not_negative, default=0.5, help="of a variant's turn in a round")
    p.add_argument("--seed", type=seed, default=0)
    p.add_argument("--no-peak", action="store_true", help="leave peak memory out, and its processes")
    p.add_argument("--beside-load", action="store_true", help="measure again beside one busy process, and the ratio")
    p.add_argument("--loop", action="store_true", help="the training loop beside a bare one, also of several processes")
    p.add_argument("--profile", type=positive, metavar="K", help="also print the K operations that take longest")
    p.add_argument("--joules", action="store_true", help="add measured joules per image (whole model, eval, fp32)")
    p.add_argument("--format", choices=("table", "markdown", "json"), default="table")
    p.add_argument("--out", type=out_file, metavar="FILE", help="also write the JSON rows to a file")
    p.add_argument("--peak-only", action="store_true", help=argparse.SUPPRESS)

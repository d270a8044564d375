"""Time and memory of fitting one block's hash functions: the fast fit, the naive one, or both in turn.

    python scripts/benchmark_hash.py --shape 32,1,3136,32 --num-bits 16 --num-anchors 25 --top-k 10 \\
        --threads 2 --implementation fast --format json

Tokens are normalised Gaussian noise from --seed, anchors tokens of the first sample. `seconds` is one fit in a
fresh process, without warm-up; `peak_extra_mib` is how far the process's resident memory rose above its level
just before the fit. `cpu_seconds` sums over the threads, and `load_average_before` tells whether something else
was running. Objectives are means over the bits (lower is better). `--implementation both` runs the two in
turn, each --repeats times in a process of its own, and adds medians and ratios.
"""

from ecoformer.cli.arguments import Parser, in_order, positive, script, seed

SHAPE = "four whole numbers of at least 1, as batch,heads,tokens,head_channels"


@script("ecoformer.lab.speed.benchmark_hash", __doc__)
def main(p: Parser) -> None:
    p.add_argument("--shape", type=in_order(SHAPE, 4), default=(32, 1, 3136, 32), help="B,H,N,C")
    p.add_argument("--num-bits", type=positive, default=16, help="code length per head")
    p.add_argument("--num-anchors", type=positive, default=25, help="kernel anchors per head")
    p.add_argument("--top-k", type=positive, default=10, help="similar and dissimilar tokens each")
    p.add_argument("--lr", type=float, default=5e-4, help="learning rate")
    p.add_argument("--momentum", type=float, default=0.9, help="Nesterov momentum")
    p.add_argument("--steps", type=positive, default=100, help="steps per bit")
    p.add_argument("--threads", type=positive, help="CPU threads; default: torch's choice")
    p.add_argument("--implementation", choices=["fast", "reference", "both"], default="fast")
    p.add_argument("--repeats", type=positive, default=1, help="runs of each, with --implementation both")
    p.add_argument("--seed", type=seed, default=0)
    p.add_argument("--format", choices=["table", "json"], default="table")

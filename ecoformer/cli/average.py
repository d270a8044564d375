"""Average the weights of several checkpoints, as timm's avg_checkpoints.py does.

    ecoformer average RUN/top/*.pt --out averaged.pt
    ecoformer eval checkpoint=averaged.pt

Takes best.pt, last.pt and top/epoch-N.pt of one run (checkpoint.keep_top_k=N keeps those), or of several with the same
model, attention and classes; of runs with train.ema_decay their averaged weights. Hash functions are not averaged: they
must be the same in all. The result is a checkpoint like best.pt, without figures: it was not evaluated.
"""

from ecoformer.cli.arguments import Parser, given_path, out_checkpoint, script


@script("ecoformer.run.average", __doc__)
def main(p: Parser) -> None:
    p.add_argument("checkpoints", type=given_path, nargs="+", metavar="CHECKPOINT")
    p.add_argument("--out", type=out_checkpoint, required=True, metavar="FILE.pt")

"""How well hash attention follows the softmax attention it replaces, before any training: a sweep over settings.

    python scripts/hash_quality.py --checkpoint MSA_RUN/best.pt --data ROOT --settings ecoformer ecoformer_tuned

Each setting is "KIND" or "KIND:key=value,..."; "random-KIND" leaves its hash functions random. Errors are those of the
attention output on held-out images, as a share of uniform attention's; see docs/hash_learning.md. With --out, writes
quality.json, table.md, errors.png and energy.png there, in a folder that holds no other sweep.
"""

from ecoformer.cli.arguments import Parser, out_folder, positive, script, seed

DEFAULT_SETTINGS = (
    "ecoformer",
    "ecoformer:numerator=kernel",
    "random-ecoformer:numerator=kernel",
    "ecoformer_tuned",
    "random-ecoformer_tuned",
)


@script("ecoformer.lab.closeness.sweep", __doc__)
def main(p: Parser) -> None:
    p.add_argument("--checkpoint", required=True, help="best.pt or last.pt of an attention=msa run")
    p.add_argument("--data", metavar="ROOT", help="data.root, if it is not where the run had it")
    p.add_argument("--settings", nargs="+", default=list(DEFAULT_SETTINGS), metavar="SETTING")
    p.add_argument("--fit-images", type=positive, default=128, help="training images that hash functions are fitted on")
    p.add_argument("--images", type=positive, default=64, help="validation images that errors are measured on")
    p.add_argument("--map-images", type=positive, default=4, help="of these, for recall and correlation (N x N)")
    p.add_argument("--seeds", type=seed, nargs="+", default=[0], help="of the hash functions; one row each")
    p.add_argument("--top1", action="store_true", help="also top-1 on all validation images, without any training")
    p.add_argument("--profile", default="45nm_fp32", help="energy prices")
    p.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    p.add_argument("--threads", type=positive, help="CPU threads")
    p.add_argument("--format", choices=("table", "json"), default="table")
    p.add_argument("--out", type=out_folder, help="folder for the results")

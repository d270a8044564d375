"""Count, price and compare models. Lists are comma-separated; all combinations are rows. See docs/energy.md."""

from ecoformer.cli.arguments import Parser, given_path, names, out_file, out_folder, positives, script, settings
from ecoformer.config.schema import CONVENTIONS
from ecoformer.files.table import FORMATS


@script("ecoformer.lab.energy.command", __doc__)
def main(p: Parser) -> None:
    p.add_argument("--model", type=names, help="timm model names; default: pvt_v2_b0")
    p.add_argument(
        "--checkpoint", type=names, metavar="RUN", help="runs or their best.pt, beside the same with --attention"
    )
    p.add_argument(
        "--attention",
        type=settings,
        help="KIND[:key=value,...]; default: stock,msa,ecoformer, beside a checkpoint stock,msa",
    )
    p.add_argument(
        "--img-size",
        "--seq-len",
        type=positives,
        help="pixels, or tokens of sequences; default: what each model is made for",
    )
    p.add_argument("--num-bits", type=positives, default=[16])
    p.add_argument("--num-anchors", type=positives, default=[25])
    p.add_argument("--clamp", action="store_true", help="lower anchors to the token count instead of refusing")
    p.add_argument("--convention", choices=CONVENTIONS, default="paper")
    p.add_argument(
        "--profile", default="45nm_fp32", help="a name (45nm_fp32, 45nm_fp16_dram, ...), a YAML file, or mac=PJ,add=PJ"
    )
    p.add_argument("--format", choices=FORMATS, default="table")
    p.add_argument("--strict", action="store_true", help="refuse operations without a rule instead of listing them")
    p.add_argument("--measure", metavar="DEVICE", help="add measured joules per image on cpu, cuda or cuda:N")
    p.add_argument("--witness", action="store_true", help="add the multiply-adds that fvcore and torch count")
    p.add_argument("--plots", type=out_folder, metavar="FOLDER", help="also draw layers, and sweeps of lists")
    what = p.add_mutually_exclusive_group()
    what.add_argument("--published", action="store_true", help="our figures beside the published rows")
    what.add_argument("--by", choices=("stage", "layer", "module", "op", "kind"), help="break each case down")
    what.add_argument("--explain", action="store_true", help="from the paper's figure to the audited one, line by line")
    what.add_argument("--show-profile", action="store_true", help="every price and where it comes from")
    what.add_argument(
        "--calibrate", type=given_path, metavar="JSON", help="fit prices to measured joules; see docs/energy.md"
    )
    p.add_argument("--prices", type=names, help="what --calibrate fits: mac, add, bytes or a kind (mac,add,bytes)")
    p.add_argument("--out", type=out_file, metavar="YAML", help="the profile that --calibrate writes")

"""Write a checkpoint as a folder for timm and the Hugging Face hub: safetensors, config.json, model card.

    python scripts/export_hub.py runs/b0/best.pt --out b0
    python scripts/export_hub.py runs/b0/best.pt --out b0 --push USER/NAME

The folder is loaded back with timm.create_model("local-dir:b0", pretrained=True) and compared with the checkpoint
before the command ends. --push uploads it with the token that `hf auth login` stored.
"""

import argparse
import sys

from ecoformer.cli.arguments import Parser, out_folder, script
from ecoformer.errors import InputError


@script(__name__, __doc__)
def main(p: Parser) -> None:
    p.add_argument("checkpoint", help="a run's best.pt or last.pt, or what import_official.py wrote")
    p.add_argument("--out", type=out_folder, required=True, metavar="DIR", help="a new or empty folder")
    p.add_argument("--name", help="title of the model card; default: the run's name")
    p.add_argument("--push", metavar="USER/NAME", help="also upload the folder to the Hugging Face hub")
    p.add_argument("--private", action="store_true", help="with --push, if the repository is new")


def run(args: argparse.Namespace) -> int:
    import ecoformer.models  # noqa: F401  registers the architecture
    from ecoformer.run.hub import CARD, CONFIG, TOLERANCE, WEIGHTS, export_folder, push_folder
    from ecoformer.run.start import read_run

    if args.private and args.push is None:
        raise InputError("--private says how to push: add --push USER/NAME")
    saved = read_run(args.checkpoint)
    difference = export_folder(saved, args.out, args.name or saved.config.name)
    print(f"{args.out}: {WEIGHTS}, {CONFIG}, {CARD}; largest difference of the logits {difference:.2e}")
    if not difference <= TOLERANCE:
        print(f"loaded back by timm, {args.out} computes something else: do not use it", file=sys.stderr)
        return 1
    if args.push is not None:
        print(push_folder(args.out, args.push, private=args.private))
    return 0

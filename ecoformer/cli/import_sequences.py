"""Turn a pickled split of sequences, such as others keep Long Range Arena in, into a file that training reads.

    ecoformer import-sequences lra-text.train.pickle --out DIR/train.npz
    ecoformer import-sequences lra-text.dev.pickle --out DIR/val.npz
    ecoformer train ... data=text_bytes data.root=DIR

FILE is a list of samples, each a dictionary with ids (input_ids_0, padded with 0) and a label. Nothing but NumPy
arrays, lists and dictionaries is unpickled. data=listops reads such files too, with the ids that they have. Exits with
0, or with 2 for a file that holds anything else.
"""

import argparse

from ecoformer.cli.arguments import Parser, given_path, out_file, script
from ecoformer.errors import InputError


@script(__name__, __doc__)
def main(p: Parser) -> None:
    p.add_argument("file", type=given_path, metavar="FILE")
    p.add_argument("--out", type=out_file, metavar="FILE.npz", required=True, help="train.npz, val.npz or test.npz")


def run(args: argparse.Namespace) -> int:
    from ecoformer.data.id_files import import_pickle

    if args.out.suffix != ".npz":
        raise InputError(f"--out {args.out} must end in .npz, as train.npz does")
    ids, labels = import_pickle(args.file, args.out)
    print(
        f"{args.out}: {len(ids)} samples of up to {int((ids != 0).sum(1).max())} tokens, ids to {ids.max()}, "
        f"labels {labels.min()} to {labels.max()}"
    )
    return 0

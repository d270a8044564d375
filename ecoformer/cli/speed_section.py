"""Write the speed section of a document from the JSON rows of benchmark.py, between its two markers.

python scripts/speed_section.py                                   # prints the section of results/speed
python scripts/speed_section.py --write results/speed/README.md   # puts it there
"""

import argparse
from pathlib import Path

from ecoformer.cli.arguments import Parser, given_path, script
from ecoformer.files import read_text, write_text
from ecoformer.lab.speed.section import replace_section, section


@script(__name__, __doc__)
def main(p: Parser) -> None:
    p.add_argument("--results", type=given_path, default=Path("results/speed"), metavar="FOLDER")
    p.add_argument("--write", type=given_path, metavar="FILE.md", help="replace the section of this document")


def run(args: argparse.Namespace) -> int:
    text = section(args.results)
    if args.write is None:
        print(text)
    else:
        write_text(args.write, replace_section(read_text(args.write), text))
    return 0

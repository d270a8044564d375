"""Evaluate a checkpoint: ecoformer eval checkpoint=RUN/best.pt [data.root=DIR] [out=FILE.json]; --help lists keys.

Or timm's weights on a folder, without a run: ecoformer eval model=NAME pretrained=true data.root=DIR
"""

import re
import sys
from collections.abc import Sequence

from ecoformer.cli.app import command

_run = command("eval")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; `model=NAME` stands for model.name=NAME, which Hydra would take for a file of configs/model."""
    arguments = sys.argv[1:] if argv is None else argv
    return _run([re.sub(r"^model=", "model.name=", argument) for argument in arguments])

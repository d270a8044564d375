"""Evaluate a checkpoint: ecoformer eval checkpoint=RUN/best.pt [data.root=DIR] [out=FILE.json]; --help lists keys."""

from ecoformer.cli.app import command

main = command("eval")

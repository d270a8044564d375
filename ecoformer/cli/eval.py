"""Evaluate a checkpoint: ecoformer eval checkpoint=RUN/best.pt [data.root=DIR] [out=FILE.json]; --help lists keys."""

from collections.abc import Sequence

from ecoformer.cli import app
from ecoformer.config.schema import EvalConfig


def evaluate_checkpoint(config: EvalConfig) -> float:
    """Top-1, top-5, loss, images/s and energy of one checkpoint, printed and, with `out`, written as JSON."""
    from ecoformer.run import job  # loads torch and timm, for which a refused config need not wait

    return job.evaluate_checkpoint(config)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; ends the process with the exit code of `cli.app.run`."""
    app.run(evaluate_checkpoint, "eval", argv)
    return 0

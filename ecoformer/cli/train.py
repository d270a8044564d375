"""Train a model: ecoformer train experiment=NAME [key=value ...]; --help lists experiments, groups and keys."""

from collections.abc import Sequence

from ecoformer.cli import app
from ecoformer.config.schema import Config


def train(config: Config) -> float | None:
    """One run, from the config to summary.json; returns top-1 for sweeps that optimise it."""
    from ecoformer.run import job  # loads torch and timm, for which a refused config need not wait

    return job.train(config)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; ends the process with the exit code of `cli.app.run`."""
    app.run(train, "train", argv)
    return 0

"""Train a model: ecoformer train experiment=NAME [key=value ...]; --help lists experiments, groups and keys."""

from ecoformer.cli.app import command

main = command("train")

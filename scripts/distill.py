"""The same as `ecoformer distill`."""

from run_command import run

run(__name__, "distill")

"""The same as `ecoformer distill-study`."""

from run_command import run

run(__name__, "distill-study")

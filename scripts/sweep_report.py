"""The same as `ecoformer sweep`."""

from run_command import run

run(__name__, "sweep")

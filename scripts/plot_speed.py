"""The same as `ecoformer plot-speed`."""

from run_command import run

run(__name__, "plot-speed")

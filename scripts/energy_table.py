"""The same as `ecoformer energy`."""

from run_command import run

run(__name__, "energy")

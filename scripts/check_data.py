"""The same as `ecoformer check-data`."""

from run_command import run

run(__name__, "check-data")

"""The same as `ecoformer benchmark-data`."""

from run_command import run

run(__name__, "benchmark-data")

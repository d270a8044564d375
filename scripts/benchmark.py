"""The same as `ecoformer benchmark`."""

from run_command import run

run(__name__, "benchmark")

"""The same as `ecoformer benchmark-hash`."""

from run_command import run

run(__name__, "benchmark-hash")

"""The same as `ecoformer hash-quality`."""

from run_command import run

run(__name__, "hash-quality")

"""The same as `ecoformer hub`."""

from run_command import run

run(__name__, "hub")

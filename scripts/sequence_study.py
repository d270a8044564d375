"""The same as `ecoformer sequence`."""

from run_command import run

run(__name__, "sequence")

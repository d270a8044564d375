"""The same as `ecoformer demo`."""

from run_command import run

run(__name__, "demo")

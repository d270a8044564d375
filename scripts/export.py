"""The same as `ecoformer export`."""

from run_command import run

run(__name__, "export")

"""The same as `ecoformer study`."""

from run_command import run

run(__name__, "study")

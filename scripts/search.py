"""The same as `ecoformer search`."""

from run_command import run

run(__name__, "search")

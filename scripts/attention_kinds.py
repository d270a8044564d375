"""The same as `ecoformer kinds`."""

from run_command import run

run(__name__, "kinds")

"""The same as `ecoformer speed-section`."""

from run_command import run

run(__name__, "speed-section")

"""The same as `ecoformer import`."""

from run_command import run

run(__name__, "import")

"""The command line: one module a command, each with a parser and a main."""

import io
import os
import sys

from ecoformer.run.process import prepare

sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115 - closed by the caller's shell: >&-
sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
if isinstance(sys.stdout, io.TextIOWrapper):
    sys.stdout.reconfigure(errors="backslashreplace")  # as stderr: a name or a sign that it cannot show ends no command
prepare()  # here, because what it sets must be known before a command's module loads torch

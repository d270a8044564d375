"""This program as a child process: the same code and the same interpreter, wherever it was installed."""

from __future__ import annotations

import os
import sys
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[2]  # the folder that holds the package


def module(command: str) -> list[str]:
    """What python and torchrun take to run a command of ours: -m ecoformer COMMAND."""
    return ["-m", "ecoformer", command]


def command_line(command: str) -> list[str]:
    """The start of a command line that runs a command of ours with this interpreter."""
    return [sys.executable, *module(command)]


def environment(**changes: str) -> dict[str, str]:
    """This process's environment, in which a child finds this package before any other that is installed."""
    path = os.pathsep.join(filter(None, [str(SOURCE), os.environ.get("PYTHONPATH", "")]))
    # Safe path: the folder that a user stands in, perhaps another checkout, must not come first.
    return {**os.environ, "PYTHONPATH": path, "PYTHONSAFEPATH": "1", **changes}

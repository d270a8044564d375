"""A command as a module, to call its main in process."""

from __future__ import annotations

import importlib
from types import ModuleType


def load_command(name: str) -> ModuleType:
    return importlib.import_module(f"ecoformer.cli.{name}")

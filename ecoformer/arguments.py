"""Command-line arguments of the scripts: what is wrong with them is one line, as everywhere."""

from __future__ import annotations

import argparse
from typing import NoReturn

from ecoformer.errors import InputError


class Parser(argparse.ArgumentParser):
    """Bad arguments raise InputError instead of printing the usage; the script prints it and exits with 2."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see --help")


def names(text: str) -> list[str]:
    """A comma-separated list of names, each once. Raises ArgumentTypeError if there are none."""
    found = [part.strip() for part in text.split(",") if part.strip()]
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} lists nothing")
    return list(dict.fromkeys(found))

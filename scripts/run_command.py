"""What every script here does: one command of `ecoformer`, from this checkout, whether or not it is installed."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ecoformer.cli.main import main


def run(module: str, name: str) -> None:
    """Run the command with this process's arguments, and end with its exit code; not where a script is imported."""
    if module == "__main__":
        sys.exit(main([name, *sys.argv[1:]]))

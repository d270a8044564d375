"""The same as `ecoformer benchmark-data`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ecoformer.cli.benchmark_data import main

if __name__ == "__main__":
    sys.exit(main())

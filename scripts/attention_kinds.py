"""The same as `ecoformer kinds`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ecoformer.cli.kinds import main

if __name__ == "__main__":
    sys.exit(main())

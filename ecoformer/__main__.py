"""python -m ecoformer COMMAND ...: the same as `ecoformer COMMAND ...`."""

import sys

from ecoformer.cli.main import main

if __name__ == "__main__":
    sys.exit(main())

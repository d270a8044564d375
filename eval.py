"""The same as `ecoformer eval`: python eval.py --help."""

import sys

from ecoformer.cli.eval import main

if __name__ == "__main__":
    sys.exit(main())

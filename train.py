"""The same as `ecoformer train`: python train.py --help."""

import sys

from ecoformer.cli.train import main

if __name__ == "__main__":
    sys.exit(main())

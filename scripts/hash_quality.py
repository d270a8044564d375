"""The same as `ecoformer hash-quality`."""

from run_command import run

if __name__ == "__main__":
    run("hash-quality")

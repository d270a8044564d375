"""The same as `ecoformer benchmark-data`."""

from run_command import run

if __name__ == "__main__":
    run("benchmark-data")

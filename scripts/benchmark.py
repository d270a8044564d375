"""The same as `ecoformer benchmark`."""

from run_command import run

if __name__ == "__main__":
    run("benchmark")

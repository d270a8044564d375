"""The same as `ecoformer benchmark-hash`."""

from run_command import run

if __name__ == "__main__":
    run("benchmark-hash")

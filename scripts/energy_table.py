"""The same as `ecoformer energy`."""

from run_command import run

if __name__ == "__main__":
    run("energy")

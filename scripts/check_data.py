"""The same as `ecoformer check-data`."""

from run_command import run

if __name__ == "__main__":
    run("check-data")

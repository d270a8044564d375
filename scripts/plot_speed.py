"""The same as `ecoformer plot-speed`."""

from run_command import run

if __name__ == "__main__":
    run("plot-speed")

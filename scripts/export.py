"""The same as `ecoformer export`."""

from run_command import run

if __name__ == "__main__":
    run("export")

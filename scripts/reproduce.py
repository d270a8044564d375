"""The same as `ecoformer study`."""

from run_command import run

if __name__ == "__main__":
    run("study")

"""The same as `ecoformer distill`."""

from run_command import run

if __name__ == "__main__":
    run("distill")

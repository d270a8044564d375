"""The same as `ecoformer distill-study`."""

from run_command import run

if __name__ == "__main__":
    run("distill-study")

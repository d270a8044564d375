"""The same as `ecoformer sequence`."""

from run_command import run

if __name__ == "__main__":
    run("sequence")

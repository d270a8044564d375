"""The same as `ecoformer kinds`."""

from run_command import run

if __name__ == "__main__":
    run("kinds")

"""The same as `ecoformer search`."""

from run_command import run

if __name__ == "__main__":
    run("search")

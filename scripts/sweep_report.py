"""The same as `ecoformer sweep`."""

from run_command import run

if __name__ == "__main__":
    run("sweep")

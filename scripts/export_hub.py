"""The same as `ecoformer hub`."""

from run_command import run

if __name__ == "__main__":
    run("hub")

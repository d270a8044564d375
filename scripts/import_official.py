"""The same as `ecoformer import`."""

from run_command import run

if __name__ == "__main__":
    run("import")

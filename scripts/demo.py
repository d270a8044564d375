"""The same as `ecoformer demo`."""

from run_command import run

if __name__ == "__main__":
    run("demo")

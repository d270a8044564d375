"""The same as `ecoformer speed-section`."""

from run_command import run

if __name__ == "__main__":
    run("speed-section")

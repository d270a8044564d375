"""hydra/launcher=slurm and local on the command line: what they need, checked before a job waits in a queue."""

import shutil

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser

from ecoformer.config.loading import CONFIGS, load_config
from ecoformer.config.overrides import quoted
from ecoformer.config.schema import Config
from ecoformer.errors import InputError
from ecoformer.run.checks import check_config
from ecoformer.run.launch import under_torchrun

LAUNCHERS = ("slurm", "local")
MULTIRUN_FLAGS = ("-m", "--multirun")
OTHER_MODES = ("--help", "-h", "--hydra-help", "--cfg", "-c", "--info", "-i", "--version", "--shell-completion", "-sc")


def through_launcher(argv: list[str], config_name: str) -> list[str]:
    """The arguments (flags first) with which Hydra submits jobs, if they choose one of our launchers.

    Hydra hands only sweeps to a launcher. A single run therefore becomes a sweep of one whose folder is output_dir
    itself, and its settings are checked here already.

    Raises InputError: torchrun outside, no output_dir, a sweep without -m, an impossible setting, no SLURM.
    """
    sweeps = any(argument in MULTIRUN_FLAGS for argument in argv)
    if sweeps and under_torchrun():
        raise InputError(
            "-m under torchrun: start a sweep without it and add launch.nproc_per_node=N, one torchrun a job"
        )
    overrides = [argument for argument in argv if "=" in argument and not argument.startswith("-")]
    launcher = next((text.partition("=")[2] for text in overrides if text.startswith("hydra/launcher=")), None)
    if launcher not in LAUNCHERS or any(argument in OTHER_MODES for argument in argv):
        return argv
    if config_name != "train":
        raise InputError(f"hydra/launcher={launcher} starts training jobs: for {config_name}.py use torchrun")
    if under_torchrun():
        raise InputError(f"hydra/launcher={launcher} under torchrun: start it without, each job gets its own torchrun")
    parsed = OverridesParser.create().parse_overrides(overrides)
    given = [o.value() for o in parsed if o.key_or_group == "output_dir" and not o.is_sweep_override()]
    if not given or given[-1] is None:
        raise InputError(
            f"hydra/launcher={launcher} needs output_dir=DIR, on a file system that all nodes share: a job that is "
            "queued again must find its run"
        )
    extra = [f"hydra.sweep.dir={quoted(str(given[-1]))}"]
    if not sweeps:
        sweep = next((override.input_line for override in parsed if override.is_sweep_override()), None)
        if sweep is not None:
            raise InputError(f"{sweep} is a sweep: add -m")
        with initialize_config_dir(str(CONFIGS), version_base="1.3"):
            check_config(load_config(Config, compose(config_name, overrides)))
        argv, extra = ["--multirun", *argv], [*extra, "hydra.sweep.subdir=."]
    if launcher == "slurm" and shutil.which("srun") is None:
        raise InputError(
            "hydra/launcher=slurm: there is no srun here: submit on the cluster, or use hydra/launcher=local"
        )
    return [*argv, *extra]

"""A run as processes of torchrun, started by train.py itself: here, or in a job of SLURM or of submitit's executors.

Multirun outside, torchrun inside: Hydra's launcher brings each job to its machines, and there every node runs one
torchrun over the processes of that job. What torchrun starts is train.py again, with the job's overrides. What our
launchers (hydra/launcher=slurm and local) need is checked before a job waits in a queue.
"""

import os
import shutil
import signal
import subprocess
import sys
import zlib
from dataclasses import asdict, dataclass
from types import FrameType

from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from ecoformer.config.loading import CONFIGS, load_config
from ecoformer.config.overrides import quoted
from ecoformer.config.schema import Config, LaunchConfig
from ecoformer.errors import InputError, Interrupted, handling
from ecoformer.files import user_path
from ecoformer.files.run_names import SUMMARY
from ecoformer.report.runs import read_summary
from ecoformer.run import process
from ecoformer.run.checks import check_config
from ecoformer.run.directory import JOB

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
GROUP = "logger.wandb.group="
LAUNCHERS = ("slurm", "local")
MULTIRUN_FLAGS = ("-m", "--multirun")
OTHER_MODES = ("--help", "-h", "--hydra-help", "--cfg", "-c", "--info", "-i", "--version", "--shell-completion", "-sc")
CONFIG_FLAGS = {"main": "--config-path", "command-line": "--config-dir"}  # by what Hydra calls the places they name
CHECKPOINT_SIGNALS = (signal.SIGUSR1, signal.SIGUSR2)  # a scheduler's: save, the job will be started again


@dataclass(frozen=True)
class Place:
    """Where torchrun runs: in a scheduler's job, on one of its nodes, or (no `job`) right here."""

    job: str | None = None
    node: int = 0
    num_nodes: int = 1
    first_host: str = "localhost"


def starts_torchrun(cfg: DictConfig) -> bool:
    """Whether this process is to start the run's processes rather than be one of them.

    Raises InputError: launch settings under torchrun, or ones that nothing would heed.
    """
    if "launch" not in cfg:
        return False
    given = LaunchConfig(**OmegaConf.to_container(cfg.launch))  # type: ignore[arg-type]
    changed = [f"launch.{key}={value}" for key, value in asdict(given).items() if value != getattr(LaunchConfig, key)]
    if under_torchrun():
        if changed:
            raise InputError(f"{' '.join(changed)} under torchrun: leave it out, torchrun has its own options")
        return False
    if given.nproc_per_node is not None or _in_job():
        return True
    if changed:
        raise InputError(f"{' '.join(changed)} without launch.nproc_per_node: set that too, or leave it out")
    return False


def under_torchrun() -> bool:
    """Whether torchrun, or a script that sets the same variables, started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ or "WORLD_SIZE" in os.environ


def run_torchrun(cfg: DictConfig, name: str = "train", full_errors: bool = False) -> float | None:
    """Run a command of ours under torchrun with this job's overrides, to the end; return top-1 from its summary.json.

    Args:
        full_errors: whether its processes show tracebacks of a user's errors too.
    Raises:
        InputError: no output_dir, or torchrun failed; the processes have said why.
        Interrupted: stopped by a signal, after the processes had their time to save. A job that its scheduler asked
            to save (SIGUSR1, SIGUSR2) is first handed to submitit, which queues it again.
    """
    folder = cfg.get("output_dir")
    if folder is None and not cfg.get("dry_run"):
        raise InputError("several processes need one output_dir to share: add output_dir=DIR")
    place, nproc = _place(), cfg.launch.nproc_per_node or HydraConfig.get().launcher.get("gpus_per_node") or 1
    command = torchrun_command(place, nproc, cfg.launch.max_restarts, [*process.module(name), *_arguments(cfg, name)])
    environment = process.environment(HYDRA_FULL_ERROR="1" if full_errors else "0")
    # A store of their own for the processes of each restart: a kept one holds addresses of processes that are gone.
    environment.setdefault("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    if place.job is not None:
        environment[JOB] = place.job
    environment.setdefault("OMP_NUM_THREADS", str(max(1, process.available_cores() // nproc)))
    code, signum = supervise(command, environment)
    if code == 0:
        done = None if folder is None else user_path(folder)
        return read_summary(done)["top1"] if done is not None and (done / SUMMARY).exists() else None
    if signum is None:
        job = f"job {HydraConfig.get().job.num}: " if _in_job() else ""
        raise InputError(f"{job}torchrun ended with code {code}: its processes say why{_log()}")
    if signum in CHECKPOINT_SIGNALS and callable(handler := signal.getsignal(signum)):
        handler(signum, None)  # submitit's: queues the job again and ends this process, on the first node
        if place.node > 0:
            return None  # a failing task could end the first node's before it has queued the job
    raise Interrupted(signum, f"stopped by {signal.Signals(signum).name}: go on with resume=auto")


def torchrun_command(place: Place, nproc_per_node: int, max_restarts: int, arguments: list[str]) -> list[str]:
    """The command line of one node's torchrun."""
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={nproc_per_node}"]
    command += [f"--max-restarts={max_restarts}"]
    if place.num_nodes == 1:
        return [*command, "--standalone", *arguments]
    # All nodes must agree on the port; jobs that share a node should not meet. Below the ports that Linux hands out.
    port = 20000 + zlib.crc32((place.job or "").encode()) % 12000
    return [
        *command,
        f"--nnodes={place.num_nodes}",
        f"--node-rank={place.node}",
        f"--rdzv-id={(place.job or 'run').replace(' ', '-')}",
        "--rdzv-backend=c10d",
        f"--rdzv-endpoint={place.first_host}:{port}",
        f"--rdzv-conf=is_host={int(place.node == 0)}",
        *arguments,
    ]


def supervise(command: list[str], environment: dict[str, str]) -> tuple[int, int | None]:
    """Run a command; a stop signal to this process is passed on, and waited for. Returns (exit code, that signal).

    The command gets SIGINT as SIGINT and everything else as SIGTERM, which torchrun hands to its processes.
    """
    child: subprocess.Popen[bytes] | None = None
    received: int | None = None
    early: list[int] = []  # before there was a child

    def stop(signum: int, frame: FrameType | None) -> None:
        nonlocal received
        received = signum
        if child is None:
            early.append(signum)
        else:
            child.send_signal(signal.SIGINT if signum == signal.SIGINT else signal.SIGTERM)

    with handling(STOP_SIGNALS, stop):
        # Some schedulers signal every process of a job; torchrun would die of these two. Ignoring is inherited.
        with handling(CHECKPOINT_SIGNALS, signal.SIG_IGN):
            # In a session of its own: Ctrl-C in a terminal reaches torchrun once, through us.
            child = subprocess.Popen(command, env=environment, start_new_session=True)
        for signum in early[-1:]:
            stop(signum, None)
        return child.wait(), received


def _in_job() -> bool:
    launcher = HydraConfig.get().launcher.get("_target_", "")
    return "submitit" in launcher and HydraConfig.get().mode == RunMode.MULTIRUN


def _place() -> Place:
    if not _in_job():
        return Place()
    import submitit

    job = submitit.JobEnvironment()
    hosts = job.hostnames
    return Place(f"{job.name()} {job.job_id}", job.node, job.num_nodes, hosts[0])


def _arguments(cfg: DictConfig, name: str) -> list[str]:
    """The job's configs and overrides for its torchrun, with what the sweep around it decided."""
    job, folder, group = HydraConfig.get(), cfg.get("output_dir"), OmegaConf.select(cfg, GROUP.rstrip("="))
    flags = [] if job.job.config_name == name else ["--config-name", str(job.job.config_name)]
    for source in job.runtime.config_sources:
        if source.provider in CONFIG_FLAGS and source.path != str(CONFIGS):
            path = source.path if source.schema == "file" else f"{source.schema}://{source.path}"
            flags += [CONFIG_FLAGS[source.provider], path]
    overrides = [
        text for text in job.overrides.task if not text.lstrip("+").startswith(("launch.", "output_dir=", GROUP))
    ]
    overrides += [text for text in job.overrides.hydra if text.startswith("hydra.searchpath")]
    decided = [(key, value) for key, value in (("output_dir=", folder), (GROUP, group)) if value is not None]
    return [*flags, *overrides, *(f"{key}{quoted(value)}" for key, value in decided)]


def _log() -> str:
    if not _in_job():
        return ", above"
    import submitit

    return f" in {submitit.JobEnvironment().paths.stderr}"


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
    extra = [f"hydra.sweep.dir={quoted(os.path.expanduser(str(given[-1])))}"]
    if not sweeps:
        sweep = next((override.input_line for override in parsed if override.is_sweep_override()), None)
        if sweep is not None:
            raise InputError(f"{sweep} is a sweep: add -m")
        if not any(argument.startswith(("-c", "--config-")) for argument in argv):  # the job composes the user's own
            with initialize_config_dir(str(CONFIGS), version_base="1.3"):
                check_config(load_config(Config, compose(config_name, overrides)))
        argv, extra = ["--multirun", *argv], [*extra, "hydra.sweep.subdir=."]
    if launcher == "slurm" and shutil.which("srun") is None:
        raise InputError(
            "hydra/launcher=slurm: there is no srun here: submit on the cluster, or use hydra/launcher=local"
        )
    return [*argv, *extra]

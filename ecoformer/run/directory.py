"""The run directory: where it is, whether it may be used, and whether a run in it is continued.

A launch leaves its marks in launch.json. So a process that torchrun, SLURM or submitit started again knows that the
run in the folder is its own, and continues it without being asked to.
"""

import json
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path

from omegaconf import OmegaConf

from ecoformer.config.keys import flat, is_under
from ecoformer.config.schema import Config
from ecoformer.data.folders import VAL_NAMES
from ecoformer.engine import distributed
from ecoformer.engine.run_files import can_resume, read_intact, results_in, set_earlier_run_aside
from ecoformer.errors import InputError
from ecoformer.files import require_writable, user_path, write_json, write_text, writing
from ecoformer.files.run_names import CONFIG, LAST, LAUNCH
from ecoformer.run.checks import all_settings
from ecoformer.run.lock import owned, refuse_if_owned, started
from ecoformer.run.start import read_run

JOB = "ECOFORMER_JOB"  # set by ecoformer.run.launch: one scheduler job, over all its starts

# Settings that may differ when a run is continued: they change where and how it runs, not what it computes.
# The trainer itself compares the global batch, so batch_size and grad_accum may be spread otherwise.
FREE = (
    *("name", "init", "logger", "energy", "launch", "plugins", "device", "threads", "deterministic", "checkpoint"),
    *("output_dir", "overwrite", "resume", "dry_run", "dry_run_probe", "dry_run_out", "callbacks.energy_log"),
    *(f"data.{key}" for key in ("root", "num_workers", "download", "max_corrupt")),
    *(f"train.{key}" for key in ("epochs", "batch_size", "grad_accum", "eval_batch_size", "log_every", "progress")),
    *(f"train.{key}" for key in ("compile", "grad_checkpointing", "parallel", "channels_last", "max_skipped_batches")),
)


@dataclass(frozen=True)
class RunDir:
    """The folder of this run, and the checkpoint that it continues from (None: it starts anew).

    `restarted`: an earlier start of this same launch opened the folder. `marks` tell this launch from others.
    """

    path: Path
    resume: Path | None
    notes: list[str]
    restarted: bool = False
    marks: list[str] = field(default_factory=list)


def choose_run_dir(config: Config) -> RunDir:
    """Decide where the run lives and whether it continues an earlier one; rank 0 decides for all. Writes nothing.

    Raises InputError: a folder that holds a run although neither resume nor overwrite is set; resume without a
    folder; a checkpoint whose settings differ, by name.
    """
    marks = sorted({mark for own in distributed.gather_objects(_own_marks()) for mark in own})
    return distributed.decided_by_main(lambda: _choose(config, marks))


def _choose(config: Config, marks: list[str]) -> RunDir:
    if config.resume.lower() in ("false", "no", "none", "0"):
        raise InputError(f"resume={config.resume}: did you mean resume=off, which is the default?")
    given = None if config.resume in ("off", "auto") else user_path(config.resume)
    if given is not None and given.is_dir():
        given = given / LAST
    if given is not None and config.resume.lower() in ("true", "yes", "on", "1") and not given.exists():
        raise InputError(f"resume={config.resume}: did you mean resume=auto, which goes on from the run in output_dir?")
    if config.resume == "auto" and config.output_dir is None:
        raise InputError("resume=auto continues the run in output_dir, which is not set: add output_dir=DIR")
    path = _folder(config, default=None if given is None else given.parent)
    same_launch = _opened_by(path, marks)
    if not config.dry_run:  # else it would be found out only when everything is built
        refuse_if_owned(path, same_launch=same_launch)
        require_writable(path, f"output_dir={path}", folder=True)
        keep_out_of_splits(path, config.data.root, f"output_dir={path}")
    goes_on = same_launch or config.resume == "auto"
    last = path / LAST if goes_on and can_resume(path) else given
    notes: list[str] = []
    if last is not None:
        last, notes = _continued(config, last)
        if same_launch:
            notes = [f"started again by the same launch: continuing from {last}", *notes]
    elif same_launch:
        notes = [f"started again by the same launch: {path} holds no {LAST} yet, starting anew"]
    elif config.resume == "auto":
        notes = [f"resume=auto: {path} holds no {LAST}, starting anew"]
    elif not config.dry_run:
        _refuse_results(path, config)
    return RunDir(path, last, notes, same_launch, marks)


def keep_out_of_splits(path: Path, root: str | None, named: str) -> None:
    """Raise InputError for what is to be written among the class folders of the data: the next run would read it."""
    place = os.path.relpath(path.resolve(), user_path(root or os.devnull).resolve())
    if place.split(os.sep)[0] in ("train", *VAL_NAMES):
        raise InputError(
            f"{named} lies in a split of data.root={root}, where every folder is a class: choose another one"
        )


def _refuse_results(path: Path, config: Config) -> None:
    held = results_in(path)
    if held and not config.overwrite:
        lost = f"it has no {LAST} to go on from; without resume=auto"
        remedy = lost if config.resume == "auto" else "continue it with resume=auto"
        raise InputError(
            f"output_dir={path} already holds a run ({', '.join(held)}): {remedy}, "
            "set it aside with overwrite=true, or choose another output_dir"
        )


@contextmanager
def opened(run: RunDir, config: Config) -> Iterator[list[str]]:
    """The folder as this launch's own while this lasts: an earlier run set aside, config.yaml written; gives notes.

    Every process enters it; rank 0 alone writes. Raises InputError on all of them if another process owns the folder.
    """
    with ExitStack() as stack:
        yield distributed.decided_by_main(lambda: _open(run, config, stack))


def _open(run: RunDir, config: Config, stack: ExitStack) -> list[str]:
    with writing(run.path):
        run.path.mkdir(parents=True, exist_ok=True)
    note = stack.enter_context(owned(run.path, same_launch=run.restarted))
    notes = [] if note is None else [note]
    if run.resume is None and not run.restarted:  # another process may have ended a run since `choose_run_dir` looked
        _refuse_results(run.path, config)
    # `choose_run_dir` let an earlier run pass only with overwrite=true, or where it left nothing to resume.
    elsewhere = run.resume is None or run.resume.parent.resolve() != run.path.resolve()
    if elsewhere and (aside := set_earlier_run_aside(run.path)) is not None:
        notes.append(f"the earlier run is now in {aside}")
    write_text(run.path / CONFIG, OmegaConf.to_yaml(OmegaConf.create(asdict(config))))
    write_json(run.path / LAUNCH, {"marks": run.marks})
    return notes


def _own_marks() -> list[str]:
    """What stays the same when this launch is started again, and no other launch shares.

    That is torchrun's agent process (of any rank: rank 0 may come back on another node) and the scheduler's job.
    """
    marks = []
    if "TORCHELASTIC_RUN_ID" in os.environ:
        agent = os.getppid()
        marks.append(f"torchrun {os.environ['TORCHELASTIC_RUN_ID']} {socket.gethostname()} {agent} {started(agent)}")
    if JOB in os.environ:
        marks.append(f"job {os.environ[JOB]}")
    if "SLURM_JOB_ID" in os.environ:
        marks.append(f"slurm {os.environ['SLURM_JOB_ID']}")
    return marks


def _opened_by(path: Path, marks: list[str]) -> bool:
    # Several runs may be started by hand in one SLURM allocation; only a requeued job is the same launch again.
    requeued = int(os.environ.get("SLURM_RESTART_COUNT", "0")) > 0
    usable = {mark for mark in marks if requeued or not mark.startswith("slurm ")}
    if not (path / LAUNCH).is_file():
        return False
    try:
        return not usable.isdisjoint(json.loads((path / LAUNCH).read_text())["marks"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path / LAUNCH} cannot be read ({error}): remove it") from error


def _folder(config: Config, default: Path | None) -> Path:
    if config.output_dir is not None:
        return user_path(config.output_dir)
    return default or Path("outputs") / config.name / f"{datetime.now():%Y-%m-%d_%H-%M-%S}"


def _continued(config: Config, checkpoint: Path) -> tuple[Path, list[str]]:
    """The checkpoint to go on from, which is the one before where `checkpoint` is damaged, and notes on differences.

    `config.init` becomes that of the run, which its files go on to tell.
    """
    path, run = read_intact(checkpoint, read_run)
    saved = run.config
    then, now = (flat(asdict(side) | {"attention": all_settings(side.attention)}) for side in (saved, config))
    for key in sorted({*then, *now}):
        if not is_under(key, FREE) and then.get(key) != now.get(key):
            raise InputError(
                f"{run.path} was written with {key}={then.get(key)}, now it is {now.get(key)}: "
                "keep it, or start a new run in another output_dir"
            )
    before, after = saved.train.epochs, config.train.epochs
    notes = [f"train.epochs was {before}, now {after}: the schedule is stretched to it"] * (before != after)
    if config.init != saved.init:  # its weights are not read again
        notes.append(f"init.* says where a run starts from: that of this one stays {saved.init.origin}")
        config.init = saved.init
    return path, notes

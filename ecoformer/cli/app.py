"""The command line around Hydra: a user's mistake is one line and exit code 2, our defects keep their traceback."""

import functools
import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from ecoformer.cli.help import page
from ecoformer.config.faults import describe
from ecoformer.config.keys import one_of
from ecoformer.config.loading import CONFIGS, known_keys, load_config, require_present, unknown_key
from ecoformer.config.overrides import as_typed, require_ends
from ecoformer.config.schema import SCHEMAS, register_schemas
from ecoformer.errors import InputError, Interrupted, mistake

Task = Callable[[Any], Any]
USER_ERROR = 2
SWEEP = "multirun.yaml"  # what Hydra writes of a sweep before its jobs begin
SHOW = ["--cfg", "job", "--resolve"]


def command(name: str) -> Callable[..., int]:
    """A command's `main(argv=None)`; it ends the process with the exit code of `run`."""

    def task(config: Any) -> Any:
        from ecoformer.run import job  # loads torch and timm, for which a refused config need not wait

        tasks: dict[str, Task] = {"train": job.train, "eval": job.evaluate_checkpoint}
        return tasks[name](config)

    def main(argv: Sequence[str] | None = None) -> int:
        run(task, name, argv)
        return 0

    return main


def run(task: Task, config_name: str, argv: Sequence[str] | None = None) -> None:
    """Call `task` with the typed config of the command line's overrides, or of `argv`; with -m, once a job.

    Ends the process: code 0, 2 for a user's error (one line on stderr), 130 or 143 for Ctrl-C or SIGTERM. A failed
    job of a sweep is reported and the next one starts; the sweep then ends with 2, or 1 if one was our defect.
    """
    register_schemas()
    started = f"{datetime.now():%Y-%m-%d_%H-%M-%S}"  # one time for all jobs of a sweep
    sweeps: set[Path] = set()
    OmegaConf.register_new_resolver("sweep_dir", functools.partial(_sweep_dir, started, sweeps), replace=True)
    wants_traceback = os.environ.get("HYDRA_FULL_ERROR") == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"  # else Hydra prints errors itself and exits with 1
    failures: list[BaseException] = []
    empty: set[Path] = set()  # folders of refused jobs and of their sweep, perhaps
    try:
        arguments = list(sys.argv[1:] if argv is None else argv)
        if not {"-h", "--help"}.isdisjoint(arguments):
            print(page(config_name))
            sys.exit(0)
        # Hydra, and the jobs that its launchers start elsewhere, read the arguments from there.
        arguments = _flags_first(arguments, config_name)
        if any(argument.startswith(("hydra/launcher=", "-m", "--multirun")) for argument in arguments):
            from ecoformer.run.launch import through_launcher

            arguments = through_launcher(arguments, config_name)
        sys.argv = [f"{config_name}.py", *arguments]
        hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name=config_name)(
            _guarded(task, config_name, failures, empty, wants_traceback)
        )()
        if sweeps and all([path.name for path in folder.glob("*")] == [SWEEP] for folder in sweeps):
            _remove_empty(sweeps)
            _exit(
                USER_ERROR,
                "error: the sweep has no job, for a glob() in it matches nothing: --help shows what there is",
            )
    except KeyboardInterrupt:
        _exit(130, "stopped by SIGINT")
    except Exception as error:
        _remove_empty(empty)
        if failures:
            defect = next((failure for failure in failures if not isinstance(failure, InputError)), None)
            _exit(1 if defect else USER_ERROR, f"error: {len(failures)} of the sweep's jobs failed, see above")
        message = describe(error, config_name)
        if message is None or wants_traceback:
            raise
        _exit(USER_ERROR, f"error: {message}")
    finally:
        if not wants_traceback:
            del os.environ["HYDRA_FULL_ERROR"]


def _guarded(task: Task, name: str, failures: list[BaseException], empty: set[Path], wants_traceback: bool) -> Task:
    @functools.wraps(task)
    def guarded(cfg: DictConfig) -> Any:
        in_sweep = HydraConfig.get().mode == RunMode.MULTIRUN
        if in_sweep:
            cfg = _in_own_folder(cfg)
        try:
            for override in () if in_sweep else HydraConfig.get().overrides.hydra:
                if override.startswith("hydra.sweep."):
                    raise InputError(f"{override} is for sweeps: add -m, or write output_dir=DIR for one run")
            config: Any = load_config(SCHEMAS[name], cfg)
            require_present(config)
            from ecoformer.run import launch  # loads torch, for which a refused config need not wait

            if launch.starts_torchrun(cfg):
                return launch.run_torchrun(cfg, name, full_errors=wants_traceback)
            return task(config)
        except Interrupted as error:
            _exit(error.exit_code, str(error))
        except Exception as error:
            message = mistake(error)
            if message is None and in_sweep:  # Hydra shows only the first failure, and only after the last job
                traceback.print_exc()
                failures.append(error)
            if message is None or wants_traceback:
                raise
            if not in_sweep:
                # Not raised on: Hydra would print the overrides before the message.
                _exit(USER_ERROR, f"error: {message}")
            print(f"error: {_job()}: {message}", file=sys.stderr, flush=True)
            failures.append(InputError(message))
            hydra_dirs = HydraConfig.get()
            empty.update([Path(hydra_dirs.runtime.output_dir), Path(hydra_dirs.sweep.dir).absolute()])
            raise

    return guarded


def _remove_empty(folders: set[Path]) -> None:
    """Of what Hydra makes before a job is looked at: folders without anything of a run, the deepest first."""
    for folder in sorted(folders, reverse=True):
        with suppress(OSError):
            if [path.name for path in folder.iterdir()] == [SWEEP]:
                (folder / SWEEP).unlink()
            folder.rmdir()


def _job() -> str:
    job = HydraConfig.get()
    return f"job {job.job.num} ({' '.join(job.overrides.task)})"


def _in_own_folder(cfg: DictConfig) -> DictConfig:
    print(f"{_job()} in {HydraConfig.get().runtime.output_dir}", file=sys.stderr, flush=True)
    if "output_dir" not in cfg:
        return cfg
    folder, sweep = HydraConfig.get().runtime.output_dir, Path(HydraConfig.get().sweep.dir)
    own: dict[str, Any] = {"output_dir": folder}
    wandb, is_single_run = cfg.logger.wandb, Path(folder).resolve() == sweep.resolve()  # of a launcher
    if wandb.enabled and wandb.group is None and not is_single_run:
        own["logger"] = {"wandb": {"group": "/".join(sweep.parts[-2:])}}
    return OmegaConf.merge(cfg, own)  # type: ignore[return-value]


def _sweep_dir(started: str, found: set[Path], *, _root_: DictConfig) -> str:
    given = OmegaConf.select(_root_, "output_dir")
    name = OmegaConf.select(_root_, "name") or "eval"
    folder = os.path.expanduser(given or f"outputs/sweeps/{name}/{started}")
    found.add(Path(folder))
    return folder


def _flags_first(argv: list[str], config_name: str) -> list[str]:
    """The arguments with Hydra's flags before the overrides, so `key=value -m key=value` works too; texts as typed.

    `--show` is Hydra's --cfg job. Raises InputError for what argparse would answer with several lines of usage.
    """
    argv = [part for argument in argv for part in (SHOW if argument == "--show" else [argument])]
    parser = get_args_parser()
    flags = {flag for action in parser._actions for flag in action.option_strings}
    known = known_keys(SCHEMAS[config_name])
    for argument in argv:
        name, _, value = argument.partition("=")
        if argument.startswith("-") and name not in flags:
            key = name.lstrip("-").replace("-", "_")
            hint = "" if key in known else f"; {unknown_key(key, SCHEMAS[config_name])}"
            raise InputError(f"{name} is no flag: write settings as {key}={value or 'VALUE'}{hint}")

    def refuse(message: str) -> NoReturn:
        raise InputError(message)

    parser.error = refuse  # type: ignore[method-assign]
    parsed = parser.parse_intermixed_args(argv)
    if parsed.config_path is not None:
        raise InputError(f"--config-path={parsed.config_path}: the package has its own: --config-dir DIR adds yours")
    if parsed.resolve and parsed.cfg is None:
        raise InputError("--resolve goes with --cfg: write --show for the settings as they are used")
    rest = list(argv)
    for override in parsed.overrides:
        rest.remove(override)
        if override.startswith("hydra.run.dir="):
            folder = f"{'output_dir' if config_name == 'train' else 'details'}={override.partition('=')[2]}"
            raise InputError(f"{override} is the folder of nothing here: write {folder}")
        no_text = re.fullmatch(r"([\w/]+)=(null|true|false|[\d.]+)", override)  # for a group, Hydra fails on it
        if no_text and (options := sorted(path.stem for path in (CONFIGS / no_text[1]).glob("*.yaml"))):
            raise InputError(one_of(no_text[1], no_text[2], options))
    if parsed.multirun:
        own = not any(argument.startswith("hydra/sweeper=") for argument in parsed.overrides)
        require_ends(parsed.overrides, intervals=not own)
    return rest + as_typed(parsed.overrides, SCHEMAS[config_name], sweeps=parsed.multirun)


def _exit(code: int, message: str) -> NoReturn:
    sys.stdout.flush()
    rank = os.environ.get("RANK", "0")
    # Under torchrun each rank speaks for itself: the fault may be its own alone, and a silent one could end the others.
    print(message if rank == "0" else f"[rank {rank}] {message}", file=sys.stderr, flush=True)
    sys.exit(code)

"""The command line around Hydra: a user's mistake is one line and exit code 2, our defects keep their traceback."""

from __future__ import annotations

import functools
import os
import re
import sys
import traceback
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ecoformer import launch
from ecoformer.config import SCHEMAS, register_schemas
from ecoformer.config_loading import describe_omegaconf, known_keys, one_of, unknown_key
from ecoformer.engine.signals import Interrupted
from ecoformer.errors import InputError
from ecoformer.launchers import through_launcher

Task = Callable[[DictConfig], Any]
USER_ERROR = 2


def run(task: Task, config_name: str, config_dir: Path) -> None:
    """Compose `config_name` from the command line's overrides and call `task` with it; with -m, once per job.

    Ends the process: code 0, 2 for a user's error (one line on stderr), 130 or 143 for Ctrl-C or SIGTERM. A failed
    job of a sweep is reported and the next one starts; the sweep then ends with 2, or 1 if one was our defect.
    """
    register_schemas()
    started = f"{datetime.now():%Y-%m-%d_%H-%M-%S}"  # one time for all jobs of a sweep
    OmegaConf.register_new_resolver("sweep_dir", functools.partial(_sweep_dir, started), replace=True)
    wants_traceback = os.environ.get("HYDRA_FULL_ERROR") == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"  # else Hydra prints errors itself and exits with 1
    failures: list[BaseException] = []
    try:
        sys.argv[1:] = through_launcher(_flags_first(sys.argv[1:], config_name), config_name, config_dir)
        script = config_dir.parent / f"{config_name}.py"
        hydra.main(version_base="1.3", config_path=str(config_dir), config_name=config_name)(
            _guarded(task, script, failures, wants_traceback)
        )()
    except KeyboardInterrupt:
        _exit(130, "stopped by SIGINT")
    except Exception as error:
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


def _guarded(task: Task, script: Path, failures: list[BaseException], wants_traceback: bool) -> Task:
    @functools.wraps(task)
    def guarded(cfg: DictConfig) -> Any:
        in_sweep = HydraConfig.get().mode == RunMode.MULTIRUN
        if in_sweep:
            cfg = _in_own_folder(cfg)
        try:
            if launch.starts_torchrun(cfg):
                return launch.run_torchrun(cfg, script, full_errors=wants_traceback)
            return task(cfg)
        except Interrupted as error:
            _exit(error.exit_code, str(error))
        except InputError as error:
            if wants_traceback:
                raise
            if not in_sweep:
                # Not raised on: Hydra would print the overrides before the message.
                _exit(USER_ERROR, f"error: {error}")
            print(f"error: {_job()}: {error}", file=sys.stderr, flush=True)
            failures.append(error)
            raise
        except Exception as error:
            if in_sweep:  # Hydra shows only the first failure, and only after the last job
                traceback.print_exc()
                failures.append(error)
            raise

    return guarded


def _job() -> str:
    job = HydraConfig.get()
    return f"job {job.job.num} ({' '.join(job.overrides.task)})"


def _in_own_folder(cfg: DictConfig) -> DictConfig:
    print(f"{_job()} in {HydraConfig.get().runtime.output_dir}", file=sys.stderr, flush=True)
    if "output_dir" not in cfg:
        return cfg
    return OmegaConf.merge(cfg, {"output_dir": HydraConfig.get().runtime.output_dir})  # type: ignore[return-value]


def _sweep_dir(started: str, *, _root_: DictConfig) -> str:
    given = OmegaConf.select(_root_, "output_dir")
    name = OmegaConf.select(_root_, "name") or "eval"
    return given or f"outputs/sweeps/{name}/{started}"


def _flags_first(argv: list[str], config_name: str) -> list[str]:
    """The arguments with Hydra's flags before the overrides, so that `key=value -m key=value` works too.

    Raises InputError for what argparse would answer with several lines of usage.
    """
    parser = get_args_parser()
    flags = {flag for action in parser._actions for flag in action.option_strings}
    known = known_keys(SCHEMAS[config_name])
    for argument in argv:
        name, _, value = argument.partition("=")
        if argument.startswith("-") and name not in flags:
            key = name.lstrip("-").replace("-", "_")
            hint = "" if key in known else f"; {unknown_key(key, known)}"
            raise InputError(f"{name} is no flag: write settings as {key}={value or 'VALUE'}{hint}")

    def refuse(message: str) -> NoReturn:
        raise InputError(message)

    parser.error = refuse  # type: ignore[method-assign]
    overrides = parser.parse_intermixed_args(argv).overrides
    rest = list(argv)
    for override in overrides:
        rest.remove(override)
    return rest + overrides


def describe(error: BaseException, config_name: str) -> str | None:
    """The one line about an error that the user can mend; None for a defect of ours."""
    if isinstance(error, InputError):
        return str(error)
    if isinstance(error, MissingConfigException):
        return _missing_option(error)
    if isinstance(error, OverrideParseException):
        return f"cannot read the override {error.override}: write key=value, and quote values with special characters"
    if isinstance(error, OmegaConfBaseException):
        return describe_omegaconf(error)
    if isinstance(error, HydraException):
        return _composition(error, config_name)
    if type(error).__module__.startswith("submitit."):  # raised for jobs that ended without handing back a result
        return f"a job ended early: {_first_line(error)}"
    return None


def _missing_option(error: MissingConfigException) -> str:
    missing = error.missing_cfg_file or ""
    if missing.startswith("hydra/launcher/submitit"):
        return "hydra/launcher=slurm and local need submitit: pip install 'ecoformer[slurm]'"
    if error.options is None or "/" not in missing:
        return _first_line(error)
    group, _, option = missing.rpartition("/")
    return one_of(group, option, error.options)


def _composition(error: HydraException, config_name: str) -> str:
    text = str(error).strip()
    known = known_keys(SCHEMAS[config_name])
    key = re.search(r"Could not (?:override|append to config|delete from config)[^']*'([^']*)'", text)
    if key:
        return _override_fault(key[1], text, known)
    merging = re.search(r"Error merging override \+*([^=]*)=(.*)", text)
    cause = error.__cause__
    if merging and isinstance(cause, OmegaConfBaseException):
        missing_key = "not in" in str(cause).partition("\n")[0]
        return unknown_key(merging[1], known) if missing_key else describe_omegaconf(cause, merging[2])
    choose = re.search(r"You must specify '([^']*)'", text)
    if choose:
        options = ", ".join(text.partition("Available options:")[2].split())
        return f"{choose[1]} must be given: add {choose[1]}=OPTION, one of {options}"
    if isinstance(cause, OmegaConfBaseException):
        where = re.match(r"In '([^']*)'", text)
        return f"{where[1]}: {describe_omegaconf(cause)}" if where else describe_omegaconf(cause)
    return _first_line(error)


def _override_fault(key: str, text: str, known: list[str]) -> str:
    if "An item is already at" in text:
        return f"{key} exists already: leave out the + before it"
    return unknown_key(key.partition("@")[0], known)


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines) if lines else type(error).__name__


def _exit(code: int, message: str) -> NoReturn:
    sys.stdout.flush()
    rank = os.environ.get("RANK", "0")
    # Under torchrun each rank speaks for itself: the fault may be its own alone, and a silent one could end the others.
    print(message if rank == "0" else f"[rank {rank}] {message}", file=sys.stderr, flush=True)
    sys.exit(code)

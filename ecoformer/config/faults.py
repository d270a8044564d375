"""What Hydra and OmegaConf raise on a user's settings, as one line each."""

import re
import shlex

from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf.errors import OmegaConfBaseException

from ecoformer.config.keys import one_of
from ecoformer.config.loading import OPEN_KEYS, describe_omegaconf, expected_of, unknown_key
from ecoformer.config.overrides import quoted
from ecoformer.config.schema import SCHEMAS
from ecoformer.errors import mistake, one_line

# Launchers and sweepers of Hydra's that are packages of their own, and what pip installs.
PLUGINS = {
    "hydra/launcher/joblib": "'ecoformer[sweep]'",
    **{f"hydra/launcher/{name}": f"hydra-{name}-launcher" for name in ("ray", "rq")},
    **{f"hydra/sweeper/{name}": f"hydra-{name}-sweeper" for name in ("ax", "nevergrad", "optuna")},
}


def describe(error: BaseException, config_name: str) -> str | None:
    """The one line about an error that the user can mend; None for a defect of ours."""
    if (message := mistake(error)) is not None:
        return message
    if isinstance(error, MissingConfigException):
        return _missing_option(error)
    if isinstance(error, OverrideParseException):
        return _unreadable(str(error.override))
    if isinstance(error, OmegaConfBaseException):
        return describe_omegaconf(error)
    if isinstance(error, HydraException):
        return _composition(error, config_name)
    if isinstance(error, AssertionError) and "type for root" in str(error):  # of OmegaConf.update
        return "an override names an item of a list or mapping that is null: give all of it, as KEY=[VALUE,VALUE]"
    if type(error).__module__.startswith("submitit."):  # raised for jobs that ended without handing back a result
        return f"a job ended early: {one_line(error)}"
    return None


def _unreadable(override: str) -> str:
    key, equals, value = override.partition("=")
    head = f"cannot read the override {override}"
    if not equals or not key.strip("+~"):
        return f"{head}: write key=value"
    if "[" in key:
        return f"{head}: give the whole list, as {key.partition('[')[0]}=[VALUE,VALUE]"
    expected = expected_of(key.lstrip("+"))
    if expected is not None:
        return f"{head}: {key.lstrip('+')} must be {expected}"
    return f"{head}: if {value} is a text, type {shlex.quote(f'{key}={quoted(value)}')}"


def _missing_option(error: MissingConfigException) -> str:
    missing = error.missing_cfg_file or ""
    if missing.startswith("hydra/launcher/submitit"):
        return "hydra/launcher=slurm and local need submitit: pip install 'ecoformer[slurm]'"
    if error.options is None or "/" not in missing:
        return one_line(error)
    group, _, option = missing.rpartition("/")
    if missing in PLUGINS:
        return f"{group}={option} needs its plugin: pip install {PLUGINS[missing]}"
    others = f"; any other of timm's: model=timm model.name={option}" if group == "model" else ""
    return one_of(group, option, error.options) + others


def _composition(error: HydraException, config_name: str) -> str:
    text = str(error).strip()
    schema = SCHEMAS[config_name]
    key = re.search(r"Could not (?:override|append to config|delete from config)[^']*'([^']*)'", text)
    key = key or re.search(r"Multiple values for ([\w/]+)", text)  # of a group
    if key and ("An item is already at" in text or "Multiple values" in text):
        return f"{key[1]} exists already: leave out the + before it"
    if key and key[1] in OPEN_KEYS:
        return f"{key[1]} does not have all of these keys yet: write a + before it"
    if key:
        return unknown_key(key[1].partition("@")[0], schema)
    merging = re.search(r"Error merging override \+*([^=]*)=(.*)", text)
    cause = error.__cause__
    if merging and isinstance(cause, OmegaConfBaseException):
        missing_key = "not in" in str(cause).partition("\n")[0]
        return unknown_key(merging[1], schema) if missing_key else describe_omegaconf(cause, merging[2])
    choose = re.search(r"You must specify '([^']*)'", text)
    if choose:
        options = ", ".join(text.partition("Available options:")[2].split())
        return f"{choose[1]} must be given: add {choose[1]}=OPTION, one of {options}"
    if isinstance(cause, OmegaConfBaseException):
        where = re.match(r"In '([^']*)'", text)
        return f"{where[1]}: {describe_omegaconf(cause)}" if where else describe_omegaconf(cause)
    return one_line(error)

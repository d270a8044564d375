"""Every command of docs/imagenet.md is one that torchrun, the config and the scripts accept."""

from __future__ import annotations

import importlib
import inspect
import re
import shlex
from pathlib import Path

import pytest
from app_helpers import CONFIGS, ROOT
from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from torch.distributed.run import get_args_parser

from ecoformer.cli import main as cli
from ecoformer.config.loading import load_config
from ecoformer.config.schema import SCHEMAS, Config, register_schemas
from ecoformer.run.checks import check_config


def commands(page: Path) -> list[str]:
    blocks = re.findall(r"^```\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line.removesuffix("&").strip() for line in lines if line.startswith(("python ", "torchrun "))]


COMMANDS = commands(ROOT / "docs" / "imagenet.md")


def test_the_page_has_commands() -> None:
    assert len(COMMANDS) > 12 and sum("torchrun" in command for command in COMMANDS) > 6


@pytest.mark.parametrize("command", COMMANDS)
def test_command(command: str) -> None:
    words = shlex.split(command)
    if words[0] == "torchrun":
        given = get_args_parser().parse_args(words[1:])
        script, arguments = given.training_script, given.training_script_args
    else:
        script, arguments = words[1], words[2:]
    assert (ROOT / script).is_file()
    if script in ("train.py", "eval.py"):
        compose_each(Path(script).stem, arguments)
    else:
        name = re.search(r'run\(__name__, "([\w-]+)"\)', (ROOT / script).read_text())
        assert name is not None
        source = inspect.getsource(importlib.import_module(f"ecoformer.cli.{cli.COMMANDS[name[1]][0]}"))
        for flag in (argument for argument in arguments if argument.startswith("--")):
            assert f'"{flag}"' in source, flag


def compose_each(name: str, arguments: list[str]) -> None:
    sweep = "-m" in arguments
    overrides = [argument for argument in arguments if argument != "-m"]
    if any(text.startswith("hydra/launcher=") for text in overrides):
        pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="needs the extra slurm")
    register_schemas()
    jobs = [overrides]
    if sweep:
        (jobs,) = BasicSweeper.split_arguments(OverridesParser.create().parse_overrides(overrides), None)
        assert len(jobs) > 1
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        for job in jobs[:1] + jobs[-1:]:
            config = load_config(SCHEMAS[name], compose(name, job))
            if isinstance(config, Config):
                check_config(config)

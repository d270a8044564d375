"""Functions of ours in fresh processes, forked from one that has imported what they need and run nothing.

So a test of what a process of its own does costs no second import of torch.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import socket
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["ecoformer.cli.main", "ecoformer.run.job", "ecoformer.run.launch"])


class Fresh:
    """A started call of `run`; what it prints goes to files in `folder`.

    Args:
        environment: variables that the process has beside those of this one.
    """

    def __init__(
        self, run: Callable[..., Any], *arguments: Any, folder: Path, cwd: Path, environment: Mapping[str, str]
    ) -> None:
        self.files = folder / "stdout.txt", folder / "stderr.txt"
        places = self.files, cwd, {**os.environ, **environment}, torch.get_num_threads()
        self.process = CONTEXT.Process(target=_call, args=(run, arguments, *places))
        self.process.start()

    def wait_for(self, path: Path, timeout: float = 120) -> None:
        """Until a file is there. Fails if the process ends before."""
        deadline = time.monotonic() + timeout
        while not path.exists():
            assert self.process.is_alive() and time.monotonic() < deadline, "ended before it could be stopped"
            time.sleep(0.005)

    def kill(self, signum: int) -> None:
        assert self.process.pid is not None
        os.kill(self.process.pid, signum)

    def wait(self, timeout: float = 300) -> int:
        """The exit code, minus the signal for a killed one."""
        self.process.join(timeout)
        assert self.process.exitcode is not None, "it did not end"
        return self.process.exitcode

    @property
    def stdout(self) -> str:
        return self.files[0].read_text()

    @property
    def stderr(self) -> str:
        return self.files[1].read_text()


def command(line: list[str]) -> None:
    """What `ecoformer COMMAND ...` does."""
    from ecoformer.cli.main import main

    raise SystemExit(main(line))


def two_ranks() -> list[dict[str, str]]:
    """The environment that torchrun would give each of two processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": "2"}
    return [{**group, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(2)]


def script(path: Path, line: list[str]) -> None:
    """What `python PATH ...` does."""
    sys.argv = [str(path), *line]
    sys.path.insert(0, str(path.parent))
    runpy.run_path(str(path), run_name="__main__")


def _call(
    run: Callable[..., Any],
    arguments: tuple[Any, ...],
    files: tuple[Path, Path],
    cwd: Path,
    environment: dict[str, str],
    threads: int,
) -> None:
    for number, path in enumerate(files, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads(threads)
    run(*arguments)

"""Where a run comes from: provenance.json, an entry for each start of it, and console.log, what it said.

An entry holds command line, folder, git commits, hosts and devices, versions, start, end and outcome; of the
environment nothing, since keys and passwords live there. An entry without an end is a start that was killed.
"""

import functools
import os
import re
import shlex
import socket
import subprocess
import sys
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout, suppress
from datetime import datetime
from pathlib import Path
from typing import Any, TextIO

import torch
from hydra.core.hydra_config import HydraConfig

from ecoformer.engine import distributed
from ecoformer.errors import InputError, Interrupted, one_line
from ecoformer.files import read_json, write_json, writing
from ecoformer.files.run_names import CONSOLE, PROVENANCE
from ecoformer.run.directory import RunDir
from ecoformer.run.process import SOURCE, processor
from ecoformer.run.summary import versions

ANSI = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")  # colours and cursor movements of a terminal


@contextmanager
def recorded(run: RunDir, device: torch.device) -> Iterator[None]:
    """Keep both files while this lasts, in a folder that is this launch's own; a run that goes on appends to them.

    Every process enters it; rank 0 alone writes. Raises InputError if they cannot be written, or a provenance.json
    that the run goes on with cannot be read.
    """
    hosts: dict[str, list[str]] = {}
    chip = torch.cuda.get_device_name(device) if device.type == "cuda" else processor()
    for host, name in distributed.gather_objects((socket.gethostname(), f"{device}, {chip}")):
        hosts.setdefault(host, []).append(name)
    with ExitStack() as stack:
        distributed.decided_by_main(lambda: stack.enter_context(_kept(run, hosts)))
        yield


@contextmanager
def _kept(run: RunDir, hosts: dict[str, list[str]]) -> Iterator[None]:
    entry: dict[str, Any] = {**origin(), "hosts": hosts, "started": _now(), "ended": None, "outcome": None}
    goes_on = run.resume is not None or run.restarted
    starts = [*(_earlier(run) if goes_on else []), entry]
    path, log = run.path / PROVENANCE, run.path / CONSOLE
    write_json(path, {"starts": starts})
    with writing(log):
        file = open(log, "a" if goes_on else "w", encoding="utf-8", errors="replace")  # noqa: SIM115 - closed below
        print(f"--- {entry['started']} {socket.gethostname()}: {entry['command']}", file=file, flush=True)

    def end(outcome: str) -> None:
        entry.update(ended=_now(), outcome=outcome)
        write_json(path, {"starts": starts})
        print(f"--- {entry['ended']} {outcome}", file=file)

    with file:
        streams: list[Any] = [Tee(stream, file) for stream in (sys.stdout, sys.stderr)]
        try:
            with redirect_stdout(streams[0]), redirect_stderr(streams[1]):
                yield
        except BaseException as error:
            stopped = isinstance(error, (Interrupted, KeyboardInterrupt))
            if not stopped and not isinstance(error, InputError):
                traceback.print_exc(file=file)
            with suppress(InputError):  # the disk is full, perhaps: the error in hand says so already
                end(one_line(error) if stopped else f"failed: {one_line(error)}")
            raise
        end("finished")


def origin() -> dict[str, Any]:
    """What is known before a run: command line, a sweep's own overrides of the job, folder, commits, versions.

    `git` has the project's checkout, None where it is installed without one, and the working directory's repository
    if that is another.
    """
    project = _project(SOURCE)
    around = _repository(Path.cwd())
    return {
        "command": shlex.join(sys.orig_argv),
        "overrides": list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else [],
        "folder": str(Path.cwd()),
        "git": {"project": project, **({} if around is None or around == project else {"folder": around})},
        "versions": {**versions(), "cuda": torch.version.cuda},
    }


class Tee:
    """A text stream that also writes whole lines to a log, without colours; of a bar its last state."""

    def __init__(self, stream: TextIO, log: TextIO) -> None:
        self.stream, self.log, self.line = stream, log, ""

    def write(self, text: str) -> int:
        """Write through; what a carriage return takes back does not reach the log."""
        try:
            self.stream.write(text)
            self.stream.flush()
        except OSError:  # who read it has gone, as `| head` does, or its disk is full: the log has the rest
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())
        *lines, last = (self.line + text).split("\n")
        self.line = last[last.rfind("\r", 0, -1) + 1 :]  # a bar that is drawn again and again does not pile up
        with writing(Path(getattr(self.log, "name", CONSOLE))):
            for line in lines:
                self.log.write(ANSI.sub("", line.rstrip("\r").rpartition("\r")[2]) + "\n")
            if lines:
                self.log.flush()
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def _earlier(run: RunDir) -> list[dict[str, Any]]:
    path = (run.path if run.resume is None else run.resume.parent) / PROVENANCE
    if not path.exists():  # of a run that was started before there was such a file
        return []
    content = read_json(path, "provenance of a run")
    if not isinstance(content, dict) or not isinstance(content.get("starts"), list):
        raise InputError(f"{path} holds no provenance of a run: remove it")
    return content["starts"]


@functools.cache  # what this process has loaded does not change while it runs
def _project(source: Path) -> dict[str, Any] | None:
    return _repository(source, tracked="ecoformer/__init__.py")


def _repository(folder: Path, tracked: str | None = None) -> dict[str, Any] | None:
    """Commit, whether tracked files were as in it, and the number of untracked ones; None where there is no commit.

    `tracked`: a file that the repository must know, else it only lies around the folder.
    """

    def git(*arguments: str) -> str:
        line = ["git", "--no-optional-locks", "-C", str(folder), *arguments]
        return subprocess.run(line, capture_output=True, text=True, errors="replace", check=True, timeout=20).stdout

    try:
        if tracked is not None:
            git("ls-files", "--error-unmatch", tracked)
        top, commit = git("rev-parse", "--show-toplevel", "HEAD").splitlines()
        changes = git("status", "--porcelain").splitlines()
    except (OSError, subprocess.SubprocessError):  # no git, no repository, no commit
        return None
    untracked = sum(line.startswith("??") for line in changes)
    return {"folder": top, "commit": commit, "clean": len(changes) == untracked, "untracked": untracked}


def commit(folder: Path) -> str:
    """The commit of a repository, with "+" where files differ from it; "unknown" without one."""
    found = _repository(folder)
    return "unknown" if found is None else found["commit"][:12] + ("" if found["clean"] else "+")


def _now() -> str:
    return datetime.now().astimezone().isoformat(timespec="seconds")

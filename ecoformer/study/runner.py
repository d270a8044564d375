"""Running the jobs of a study one after the other: finished ones are skipped, interrupted ones are resumed."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from ecoformer.engine.files import write_text
from ecoformer.engine.run_files import SUMMARY
from ecoformer.study.plan import Job

JOB, LOG = "job.json", "log.txt"
Show = Callable[[str], None]


def is_finished(job: Job) -> bool:
    """Whether the run has written its summary, which it does last of all."""
    return (job.folder / SUMMARY).is_file()


def run_jobs(jobs: Sequence[Job], root: Path, launch: str, show: Show) -> list[Job]:
    """Run what is not finished, in order, and return the jobs that failed or that miss the run they start from.

    A failure does not end the study: jobs that do not build on it go on. Ctrl-C ends the job in hand, which keeps its
    state as any run does, and is raised on.

    Args:
        root: the checkout, which holds train.py.
        launch: what stands before train.py, "python" or e.g. "torchrun --nproc-per-node 8".
        show: takes one line for the user.
    """
    failed: list[Job] = []
    for number, job in enumerate(jobs, start=1):
        head = f"[{number}/{len(jobs)}] {job.id}"
        if is_finished(job):
            show(f"{head}: finished before")
            continue
        if job.needs in {other.id for other in failed}:
            show(f"{head}: skipped, {job.needs} failed")
            failed.append(job)
            continue
        started = time.perf_counter()
        show(f"{head}: {job.command(launch)}")
        code = _run(job, root, launch, show)
        if code == 0:
            top1 = json.loads((job.folder / SUMMARY).read_text())["top1"]
            show(f"{head}: {top1:.2f} % top-1 in {time.perf_counter() - started:.0f} s")
        else:
            show(f"{head}: failed with exit code {code}: {last_line(job.folder / LOG)}")
            failed.append(job)
    return failed


def _run(job: Job, root: Path, launch: str, show: Show) -> int:
    job.folder.mkdir(parents=True, exist_ok=True)
    record = {"id": job.id, "command": job.command(launch), "commit": commit(root)}
    write_text(job.folder / JOB, json.dumps(record, indent=2) + "\n")
    program = [sys.executable if part == "python" else part for part in shlex.split(launch)]
    with (
        open(job.folder / LOG, "a", encoding="utf-8") as log,
        subprocess.Popen(
            [*program, str(root / "train.py"), *job.arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process,
    ):
        try:
            assert process.stdout is not None
            for line in process.stdout:
                log.write(line)
                log.flush()
                if line.startswith("epoch ") and "top-1" in line and "step" not in line:
                    show(f"    {line.rstrip()}")
        except KeyboardInterrupt:
            # The terminal sent the signal to the run as well; it needs a moment to keep its state.
            process.wait()
            raise
    write_text(job.folder / JOB, json.dumps(record | {"exit_code": process.returncode}, indent=2) + "\n")
    return process.returncode


def last_line(path: Path) -> str:
    """The last line of a log that is not empty: for a user's error, the one line that states it."""
    try:
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except OSError:
        return "it left no log"
    return lines[-1].strip() if lines else "it printed nothing"


def commit(root: Path) -> str:
    """The commit of the source tree, with "+" where files differ from it; "unknown" outside a checkout."""
    try:
        done = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--dirty=+", "--abbrev=12"],
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()

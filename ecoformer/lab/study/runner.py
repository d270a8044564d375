"""Running the jobs of a study, one after the other or side by side: finished ones are skipped, others resumed."""

import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from types import FrameType

from ecoformer.errors import InputError, Interrupted, handling
from ecoformer.files import read_json, write_json
from ecoformer.lab.study.plan import Job
from ecoformer.lab.study.remaining import what_is_left
from ecoformer.report.runs import JOB, LOG, NO_SETTING, last_line, read_summary
from ecoformer.run import process
from ecoformer.run.lock import owned
from ecoformer.run.provenance import commit

STUDY_LOCK = "study.lock"  # of a run's folder, beside the run's own
PLACES = ("data.root", "init.checkpoint", "distill.checkpoint", "device", "threads", "data.num_workers")
Show = Callable[[str], None]


def run_jobs(jobs: Sequence[Job], trainer: Sequence[str], launch: str, show: Show, parallel: int = 1) -> list[Job]:
    """Run what is not finished and return the jobs that failed or that miss the run they start from, in order.

    A failure does not end the study: jobs that do not build on it go on; nor does a job that another study runs. Ctrl-C
    ends the jobs in hand, which keep their state as any run does, and is raised on; SIGTERM too, as Interrupted.
    Raises InputError for a `launch` that is no command.

    Args:
        jobs: each after the one that it starts from.
        trainer: what is run, a script or ["-m", "ecoformer", "train"].
        launch: what stands before it, "python" or e.g. "torchrun --nproc-per-node 8".
        show: takes one line for the user.
        parallel: how many jobs run side by side.
    """
    program = _program(launch)
    failed: set[str] = set()
    children = _Children()
    waiting = list(enumerate(jobs, start=1))
    running: dict[Future[bool], str] = {}

    def tell(line: str) -> None:
        show(f"{line}; {what_is_left(jobs, parallel)}")

    with ThreadPoolExecutor(parallel) as pool, handling([signal.SIGTERM], children.stop):
        while waiting or running:
            busy = set(running.values())
            for number, job in list(waiting):
                if len(running) == parallel or job.needs in busy or job.needs in {other.id for _, other in waiting}:
                    continue
                waiting.remove((number, job))
                head = f"[{number}/{len(jobs)}] {job.id}"
                if job.is_finished:
                    show(", ".join([f"{head}: finished before", *other_settings(job)]))
                elif job.needs in failed:
                    show(f"{head}: skipped, {job.needs} failed")
                    failed.add(job.id)
                else:
                    command = [*program, *trainer, *job.arguments]
                    running[pool.submit(_succeeds, job, head, command, launch, show, tell, children)] = job.id
                    busy.add(job.id)
            for done in wait(running, return_when=FIRST_COMPLETED).done:
                name = running.pop(done)
                if not done.result():
                    failed.add(name)
    return [job for job in jobs if job.id in failed]


def other_settings(job: Job) -> list[str]:
    """How a finished run was made where that is not as it is asked for now; where things lie does not count."""
    try:
        command = read_json(job.folder / JOB)["command"]
    except (InputError, KeyError, TypeError):  # of another time, or damaged
        return []
    made, asked = _settings(shlex.split(command.partition("train.py ")[2])), _settings(job.arguments)
    said = {key: f"with {key}={value}" for key, value in made.items() if value != asked.get(key)}
    said |= {key: f"{said[key]} instead of {asked[key]}" for key in said if key in asked}
    return [*said.values(), *(f"without {key}={value}" for key, value in asked.items() if key not in made)]


def _settings(words: Iterable[str]) -> dict[str, str]:
    """What holds of each key, the last."""
    pairs = (word.lstrip("+").partition("=") for word in words)
    return {key: value for key, _, value in pairs if key not in PLACES and not key.startswith(NO_SETTING)}


def _program(launch: str) -> list[str]:
    try:
        words = shlex.split(launch)
    except ValueError as error:
        raise InputError(f"--launch {launch!r} cannot be read ({error}): correct its quotes") from error
    words = [sys.executable if word == "python" else word for word in words]
    if not words or shutil.which(words[0]) is None:
        raise InputError(f"--launch {launch!r} is no command that can be found: give one, such as python or torchrun")
    return words


class _Children(set[subprocess.Popen[str]]):
    """The processes of the runs in hand. SIGTERM reaches them as well; they save, and Interrupted goes on."""

    stopped = False

    def started(self, child: subprocess.Popen[str]) -> None:
        self.add(child)
        if self.stopped:  # while it was being started
            child.terminate()

    def stop(self, signum: int, frame: FrameType | None) -> None:
        self.stopped = True
        for child in list(self):
            child.terminate()
        raise Interrupted(signum)


def _succeeds(
    job: Job, head: str, command: list[str], launch: str, show: Show, tell: Show, children: _Children
) -> bool:
    """Run one job. `tell` is `show` for lines of progress, which say what is left of the study as well."""
    started = time.perf_counter()
    show(f"{head}: {job.command(launch)}")
    try:
        job.folder.mkdir(parents=True, exist_ok=True)
        with owned(job.folder, same_launch=False, lock=STUDY_LOCK):
            code = _run(job, command, launch, lambda line: tell(f"{head}: {line}"), children)
    except InputError as error:  # another study runs it, or it cannot be written
        show(f"{head}: not run: {error}")
        return False
    if children.stopped:
        return False
    if code:
        show(f"{head}: failed with exit code {code}: {last_line(job.folder / LOG)}")
        return False
    tell(f"{head}: {read_summary(job.folder)['top1']:.2f} % top-1 in {time.perf_counter() - started:.0f} s")
    return True


def _run(job: Job, command: list[str], launch: str, show: Show, children: _Children) -> int:
    record = {"id": job.id, "command": job.command(launch), "commit": commit(process.SOURCE)}
    write_json(job.folder / JOB, record)
    with (
        open(job.folder / LOG, "a", encoding="utf-8") as log,
        subprocess.Popen(
            command,
            env=process.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",  # a library or a driver writes as it likes, and must not end a study
        ) as running,
    ):
        children.started(running)
        try:
            assert running.stdout is not None
            for line in running.stdout:
                log.write(line)
                log.flush()
                if line.startswith("epoch ") and "top-1" in line and "step" not in line:
                    show(line.rstrip())
        except KeyboardInterrupt:
            # The terminal sent the signal to the run as well; it needs a moment to keep its state.
            running.wait()
            raise
        finally:
            children.discard(running)
    write_json(job.folder / JOB, record | {"exit_code": running.returncode})
    return running.returncode

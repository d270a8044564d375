"""Running the jobs of a study, one after the other or side by side: finished ones are skipped, others resumed."""

import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

from ecoformer.files import write_json
from ecoformer.lab.study.plan import Job
from ecoformer.report.runs import JOB, LOG, last_line, read_summary
from ecoformer.run import process
from ecoformer.run.provenance import commit

Show = Callable[[str], None]


def run_jobs(jobs: Sequence[Job], trainer: Sequence[str], launch: str, show: Show, parallel: int = 1) -> list[Job]:
    """Run what is not finished and return the jobs that failed or that miss the run they start from, in order.

    A failure does not end the study: jobs that do not build on it go on. Ctrl-C ends the jobs in hand, which keep their
    state as any run does, and is raised on.

    Args:
        jobs: each after the one that it starts from.
        trainer: what is run, a script or ["-m", "ecoformer", "train"].
        launch: what stands before it, "python" or e.g. "torchrun --nproc-per-node 8".
        show: takes one line for the user.
        parallel: how many jobs run side by side.
    """
    failed: set[str] = set()
    waiting = list(enumerate(jobs, start=1))
    running: dict[Future[bool], str] = {}
    with ThreadPoolExecutor(parallel) as pool:
        while waiting or running:
            busy = set(running.values())
            for number, job in list(waiting):
                if len(running) == parallel or job.needs in busy or job.needs in {other.id for _, other in waiting}:
                    continue
                waiting.remove((number, job))
                head = f"[{number}/{len(jobs)}] {job.id}"
                if job.is_finished:
                    show(f"{head}: finished before")
                elif job.needs in failed:
                    show(f"{head}: skipped, {job.needs} failed")
                    failed.add(job.id)
                else:
                    running[pool.submit(_succeeds, job, head, trainer, launch, show)] = job.id
                    busy.add(job.id)
            for done in wait(running, return_when=FIRST_COMPLETED).done:
                name = running.pop(done)
                if not done.result():
                    failed.add(name)
    return [job for job in jobs if job.id in failed]


def _succeeds(job: Job, head: str, trainer: Sequence[str], launch: str, show: Show) -> bool:
    started = time.perf_counter()
    show(f"{head}: {job.command(launch)}")
    code = _run(job, trainer, launch, lambda line: show(f"{head}: {line}"))
    if code:
        show(f"{head}: failed with exit code {code}: {last_line(job.folder / LOG)}")
        return False
    show(f"{head}: {read_summary(job.folder)['top1']:.2f} % top-1 in {time.perf_counter() - started:.0f} s")
    return True


def _run(job: Job, trainer: Sequence[str], launch: str, show: Show) -> int:
    job.folder.mkdir(parents=True, exist_ok=True)
    record = {"id": job.id, "command": job.command(launch), "commit": commit(process.SOURCE)}
    write_json(job.folder / JOB, record)
    program = [sys.executable if part == "python" else part for part in shlex.split(launch)]
    with (
        open(job.folder / LOG, "a", encoding="utf-8") as log,
        subprocess.Popen(
            [*program, *trainer, *job.arguments],
            env=process.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as running,
    ):
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
    write_json(job.folder / JOB, record | {"exit_code": running.returncode})
    return running.returncode

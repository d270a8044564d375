"""How long what is left of a study takes, by the epochs that its runs have on record."""

from collections.abc import Sequence
from statistics import mean

from ecoformer.errors import InputError, counted
from ecoformer.lab.study.plan import Job
from ecoformer.report.runs import has_epochs, read_epochs
from ecoformer.run.plan import duration


def what_is_left(jobs: Sequence[Job], parallel: int) -> str:
    """E.g. "7 runs to do, 132 epochs, about 5.2 h": an epoch takes as long as others of its run or backbone did.

    The time is not told before every backbone in question has an epoch on record. A run without training counts as one.
    """
    waiting = [job for job in jobs if not job.is_finished]
    text = f"{counted(len(waiting), 'run')} to do"
    seconds = {job.id: _seconds(job) for job in jobs}
    recorded = {
        job.backbone: [s for other in jobs if other.backbone == job.backbone for s in seconds[other.id]]
        for job in waiting
    }
    if not waiting or not all(recorded.values()):
        return text
    epochs = {job.id: max(1, _epochs(job) - len(seconds[job.id])) for job in waiting}
    total = sum(epochs[job.id] * mean(seconds[job.id] or recorded[job.backbone]) for job in waiting)
    return f"{text}, {counted(sum(epochs.values()), 'epoch')}, about {duration(total / min(parallel, len(waiting)))}"


def _seconds(job: Job) -> list[float]:
    """Of each epoch that the run has finished."""
    try:
        rows = read_epochs(job.folder) if has_epochs(job.folder) else []
    except InputError:  # damaged: the run itself will say so
        return []
    return [row["seconds"] for row in rows if row.get("seconds", 0) > 0]


def _epochs(job: Job) -> int:
    """How many the run has in all."""
    given = [text for text in job.arguments if text.startswith("train.epochs=")]
    try:
        if given:
            return int(given[-1].partition("=")[2])
        # Imported here: most runs say it, and Hydra takes its time.
        from ecoformer.lab.study.prediction import compose_run

        return compose_run(job.arguments).train.epochs
    except (InputError, ValueError):  # a run that will be refused
        return 0

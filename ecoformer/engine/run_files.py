"""The files of a run: which checkpoint to go on from, and how a new run makes room for itself."""

import logging
import os
import shutil
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

from ecoformer.engine import distributed
from ecoformer.errors import InputError
from ecoformer.files import atomic_write, writing
from ecoformer.files.run_names import BEST, LAST, METRICS, PREVIOUS, RESULTS, RUN_FILES
from ecoformer.model.checkpoint import UnreadableCheckpoint

T = TypeVar("T")
log = logging.getLogger(__name__)


def results_in(run_dir: Path) -> list[str]:
    return [name for name in RESULTS if (run_dir / name).exists()]


def can_resume(run_dir: Path) -> bool:
    """Whether the folder holds something to go on from. Between two renames of a save that may be previous.pt alone."""
    return any((run_dir / name).exists() for name in (LAST, PREVIOUS))


def read_intact(path: Path, read: Callable[[Path], T]) -> tuple[Path, T]:
    """`path` and what `read` makes of it; previous.pt beside it, with a warning, where a last.pt cannot be read.

    Raises InputError: neither can be read, or `read` refuses the file for another reason.
    """
    try:
        return path, read(path)
    except UnreadableCheckpoint as fault:
        previous = path.with_name(PREVIOUS)
        if path.name != LAST or not previous.exists():
            raise
        try:
            content = read(previous)
        except UnreadableCheckpoint as second:
            raise InputError(
                f"{fault}; {second}; nothing is left to resume: start anew with overwrite=true"
            ) from second
        if distributed.is_main():
            log.warning("%s: going on from the one before, %s", str(fault).partition(":")[0], previous)
        return previous, content


def set_earlier_run_aside(run_dir: Path) -> Path | None:
    """Move all files of a run into run_dir/earlier-N and return that; None where there are no results to protect.

    Raises InputError: the folder cannot be written.
    """
    if not results_in(run_dir):
        return None
    aside = next(path for number in count(1) if not (path := run_dir / f"earlier-{number}").exists())
    with writing(aside):
        aside.mkdir()
        for name in RUN_FILES:
            if (run_dir / name).exists():
                os.replace(run_dir / name, aside / name)
    return aside


def top_name(kept: dict[str, Any]) -> str:
    """The file in top/ of an epoch, given its record."""
    return f"epoch-{kept['epoch'] + 1}.pt"


def make_room(run_dir: Path, resume: Path | None, top: Sequence[str]) -> list[str]:
    """Set aside what another run left in run_dir; notes on it.

    A run that is resumed from another folder's last.pt takes that folder's metrics and best weights along, and the
    files of `top`.
    """
    if resume is not None and resume.parent.resolve() == run_dir.resolve():
        return []
    aside = set_earlier_run_aside(run_dir)  # a new run must not destroy an earlier one's checkpoints
    if resume is not None:
        for source, target in ((resume.parent / name, run_dir / name) for name in (BEST, METRICS, *top)):
            if source.exists():
                with atomic_write(target) as file, open(source, "rb") as original:
                    shutil.copyfileobj(original, file)
    return [] if aside is None else [f"{run_dir} held an earlier run: its files are now in {aside}"]

"""What the user sees: a bar on a terminal, plain lines now and then elsewhere (logs, pipes)."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

PLAIN_INTERVAL_S = 10.0


class ProgressDisplay:
    """Shows epoch, steps, loss, accuracy, speed and the time left in the whole run.

    Args:
        enabled: False prints nothing at all (other ranks, `train.progress=false`).
        total_steps, epochs: of the whole run, also if it starts in the middle.
        samples: what is counted a second.
    """

    def __init__(
        self, enabled: bool, total_steps: int, epochs: int, console: Console | None = None, samples: str = "images"
    ) -> None:
        self.enabled = enabled
        self.console = console or Console(quiet=not enabled)
        self.total_steps, self.epochs, self.samples = total_steps, epochs, samples
        self.last_line = time.perf_counter()
        self.started, self.steps_done = time.perf_counter(), 0  # of this process
        self.bar: Progress | None = None
        self.task: Any = None
        self.title, self.steps_in_epoch, self.step_in_epoch = "", 0, 0

    @contextmanager
    def epoch(self, epoch: int, steps: int, done: int = 0) -> Iterator[None]:
        """Show one epoch's steps while the context lasts; `done` of them were taken before a resume."""
        self.title, self.steps_in_epoch, self.step_in_epoch = f"epoch {epoch + 1}/{self.epochs}", steps, done
        if not self.steps_done:  # what comes before the first epoch, as the first hash fit, happens once
            self.started = time.perf_counter()
        if not (self.enabled and self.console.is_terminal):
            yield
            return
        columns = ("[progress.description]{task.description}", "{task.fields[figures]}")
        bar = Progress(
            TextColumn(columns[0]), BarColumn(), MofNCompleteColumn(), TextColumn(columns[1]),
            console=self.console, transient=True,
        )  # fmt: skip
        with bar:
            self.bar, self.task = bar, bar.add_task(self.title, total=steps, completed=done, figures="")
            try:
                yield
            finally:
                self.bar = None

    def step(self, step: int, loss: float, top1: float, images_per_second: float) -> None:
        """Report optimiser step number `step` (of the whole run), with the epoch's figures so far."""
        if not self.enabled:
            return
        self.step_in_epoch += 1
        self.steps_done += 1
        left = (time.perf_counter() - self.started) / self.steps_done * (self.total_steps - step)
        speed = f"{images_per_second:.0f} {self.samples}/s"
        figures = f"loss {loss:.3f}  top-1 {top1:.1f} %  {speed}  {_duration(left)} left"
        if self.bar is not None:
            self.bar.update(self.task, advance=1, figures=figures)
        elif time.perf_counter() - self.last_line >= PLAIN_INTERVAL_S:
            self.last_line = time.perf_counter()
            self.print(f"{self.title}  step {self.step_in_epoch}/{self.steps_in_epoch}  {figures}")

    def print(self, line: str) -> None:
        """Print a line, above the bar if there is one."""
        if self.enabled:
            self.console.print(line, highlight=False, soft_wrap=True)


def epoch_line(record: dict[str, Any], epochs: int, is_best: bool, samples: str) -> str:
    """An "epoch" record in one line for the user; `samples`: what they are called."""
    val = "" if record["val_loss"] is None else f"{_val_figures(record)}  "
    return (
        f"epoch {record['epoch'] + 1}/{epochs}  loss {record['train_loss']:.3f}  {val}"
        f"{record['train_images_per_second']:.0f} {samples}/s  {record['seconds']:.1f} s"
        + ("  (best)" if is_best else "")
    )


def evaluation_line(record: dict[str, Any], is_best: bool = False) -> str:
    """An "evaluation" record, within an epoch or of a run without training, in one line."""
    title = f"step {record['step']}" if record["step"] else "no training"
    return f"{title}  {_val_figures(record)}" + ("  (best)" if is_best else "")


def _val_figures(record: dict[str, Any]) -> str:
    return f"val loss {record['val_loss']:.3f}  top-1 {record['val_top1']:.2f} %  top-5 {record['val_top5']:.2f} %"


def paced(say: Callable[[str], None], title: str) -> Callable[[int, int], None]:
    """A callback (steps done, steps of all) that says a line now and then, with the time that is left."""
    started = last = time.perf_counter()

    def on_step(done: int, steps: int) -> None:
        nonlocal last
        now = time.perf_counter()
        if now - last >= PLAIN_INTERVAL_S:
            last = now
            say(f"{title}  step {done}/{steps}  {_duration((now - started) / done * (steps - done))} left")

    return on_step


def _duration(seconds: float) -> str:
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"

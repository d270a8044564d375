"""What the user sees: a bar on a terminal, plain lines now and then elsewhere (logs, pipes)."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

PLAIN_INTERVAL_S = 10.0


class ProgressDisplay:
    """Shows epoch, steps, loss, accuracy, images/s and the time left in the whole run.

    Args:
        enabled: False prints nothing at all (other ranks, `train.progress=false`).
        total_steps, epochs: of the whole run, also if it starts in the middle.
        start_step: steps done before this process started, which tell nothing about its speed.
    """

    def __init__(
        self, enabled: bool, total_steps: int, epochs: int, start_step: int, console: Console | None = None
    ) -> None:
        self.enabled = enabled
        self.console = console or Console(quiet=not enabled)
        self.total_steps, self.epochs, self.start_step = total_steps, epochs, start_step
        self.started = self.last_line = time.perf_counter()
        self.bar: Progress | None = None
        self.task: Any = None
        self.title, self.steps_in_epoch, self.step_in_epoch = "", 0, 0

    @contextmanager
    def epoch(self, epoch: int, steps: int) -> Iterator[None]:
        """Show one epoch's steps while the context lasts."""
        self.title, self.steps_in_epoch, self.step_in_epoch = f"epoch {epoch + 1}/{self.epochs}", steps, 0
        if not (self.enabled and self.console.is_terminal):
            yield
            return
        columns = ("[progress.description]{task.description}", "{task.fields[figures]}")
        bar = Progress(
            TextColumn(columns[0]), BarColumn(), MofNCompleteColumn(), TextColumn(columns[1]),
            console=self.console, transient=True,
        )  # fmt: skip
        with bar:
            self.bar, self.task = bar, bar.add_task(self.title, total=steps, figures="")
            try:
                yield
            finally:
                self.bar = None

    def step(self, step: int, loss: float, top1: float, images_per_second: float) -> None:
        """Report optimiser step number `step` (of the whole run), with the epoch's figures so far."""
        if not self.enabled:
            return
        self.step_in_epoch += 1
        figures = (
            f"loss {loss:.3f}  top-1 {top1:.1f} %  {images_per_second:.0f} images/s  "
            f"{_duration(self._seconds_left(step))} left"
        )
        if self.bar is not None:
            self.bar.update(self.task, advance=1, figures=figures)
        elif time.perf_counter() - self.last_line >= PLAIN_INTERVAL_S:
            self.last_line = time.perf_counter()
            self.print(f"{self.title}  step {self.step_in_epoch}/{self.steps_in_epoch}  {figures}")

    def print(self, content: Any) -> None:
        """Print a line or a rich table, above the bar if there is one."""
        if self.enabled:
            self.console.print(content, highlight=False, soft_wrap=isinstance(content, str))

    def _seconds_left(self, step: int) -> float:
        # Everything since the start counts, so evaluation and hash fits are spread over the steps.
        done = max(step - self.start_step, 1)
        return (time.perf_counter() - self.started) / done * (self.total_steps - step)


def _duration(seconds: float) -> str:
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"

"""TensorBoard beside the metrics files: event files in the run directory."""

from pathlib import Path
from typing import Any

from ecoformer.engine.loggers import Logger, series
from ecoformer.errors import InputError
from ecoformer.files.run_names import TENSORBOARD


class TensorBoardLogger(Logger):
    """Curves over the optimiser steps; a resumed run hides what was written after its checkpoint.

    Raises InputError where the package is missing.
    """

    name = "tensorboard"

    def __init__(self) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise InputError("logger=tensorboard needs TensorBoard: pip install 'ecoformer[tensorboard]'") from error
        self.make_writer = SummaryWriter
        self.writer: Any = None
        self.step: int | None = None  # of the latest record

    def open(self, run_dir: Path, resumed_epoch: int | None, config: dict[str, Any]) -> None:
        goes_on = None if self.step is None else self.step + 1
        self.writer = self.make_writer(str(run_dir / TENSORBOARD), purge_step=goes_on)

    def log(self, record: dict[str, Any]) -> None:
        self.step = record["step"]
        self._add(series(record))

    def finish(self, figures: dict[str, Any]) -> None:
        self._add(series({"event": "summary", **figures}))

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()
            self.writer = None

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step = state["step"]

    def _add(self, values: dict[str, float]) -> None:
        assert self.writer is not None, "open() comes first"
        for name, value in values.items():
            self.writer.add_scalar(name, value, self.step)

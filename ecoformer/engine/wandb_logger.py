"""Weights & Biases beside the metrics files: a view of the run that can fail without harm."""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ecoformer.config.schema import WandbConfig
from ecoformer.engine.loggers import Logger, series
from ecoformer.errors import one_line
from ecoformer.files.run_names import BEST


class WandbLogger(Logger):
    """Sends records to wandb, offline (in run_dir/wandb) where no key is set; a resumed run keeps its id.

    Curves run over the optimiser steps, those of whole epochs over the epochs, from 1 as in all that a run prints.
    Any failure of wandb warns once and ends the logging there; the run goes on.
    """

    name = "wandb"

    def __init__(self, config: WandbConfig) -> None:
        self.config = config
        self.run: Any = None
        self.run_id: str | None = None
        self.run_dir: Path | None = None
        self.events: set[str] = set()  # whose axis wandb knows
        self.is_finished = False

    def open(self, run_dir: Path, resumed_epoch: int | None, config: dict[str, Any]) -> None:
        self.run_dir = run_dir
        settings = config.get("settings", config)
        name = config.get("settings", {}).get("name") or run_dir.name
        if self.config.group is not None and name != run_dir.name:
            name = f"{name}/{run_dir.name}"  # the runs of a sweep share the rest
        with self._harmless():
            import wandb

            mode: Any = os.environ.get("WANDB_MODE") or ("online" if wandb.api.api_key else "offline")
            self.run = wandb.init(
                project=self.config.project,
                entity=self.config.entity,
                group=self.config.group,
                job_type=self.config.job_type,
                name=self.config.name or name,
                tags=list(self.config.tags),
                notes=self.config.notes,
                dir=str(run_dir),
                config=settings,
                id=self.run_id,
                resume="allow" if self.run_id else None,
                mode=mode,
            )
            self.run_id = self.run.id

    def log(self, record: dict[str, Any]) -> None:
        if self.run is None:
            return
        event = record["event"]
        with self._harmless():
            if event not in self.events:
                self.events.add(event)
                self.run.define_metric(f"{event}/*", step_metric="epoch" if event == "epoch" else "step")
            self.run.log({**series(record), "epoch": record["epoch"] + 1, "step": record["step"]})

    def finish(self, figures: dict[str, Any]) -> None:
        if self.run is None or self.run_dir is None:
            return
        self.is_finished = True
        with self._harmless():
            self.run.summary.update(figures)
            if self.config.artifacts and (self.run_dir / BEST).exists():
                self.run.log_artifact(str(self.run_dir / BEST), name=f"best-{self.run_id}", type="model")

    def close(self) -> None:
        if self.run is None:
            return
        with self._harmless():
            self.run.finish(exit_code=0 if self.is_finished else 1)  # else a run that failed would count as good
        self.run = None

    def state_dict(self) -> dict[str, Any]:
        return {"run_id": self.run_id}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.run_id = state["run_id"]

    @contextmanager
    def _harmless(self) -> Iterator[None]:
        """Around what wandb does: whatever goes wrong in there must not end a training run."""
        try:
            yield
        except Exception as error:
            self.run = None
            warnings.warn(f"wandb stopped ({one_line(error)}); metrics.jsonl and metrics.csv go on", stacklevel=4)

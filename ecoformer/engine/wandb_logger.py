"""Weights & Biases beside the metrics files: a view of the run that can fail without harm."""

import os
import warnings
from pathlib import Path
from typing import Any

from ecoformer.config.schema import WandbConfig
from ecoformer.engine.loggers import Logger
from ecoformer.errors import one_line


class WandbLogger(Logger):
    """Sends records to wandb, offline (in run_dir/wandb) where no key is set; a resumed run keeps its id.

    Any failure of wandb warns once and ends the logging there; the run goes on.
    """

    name = "wandb"

    def __init__(self, config: WandbConfig) -> None:
        self.config = config
        self.run: Any = None
        self.run_id: str | None = None

    def open(self, run_dir: Path, resumed_epoch: int | None, config: dict[str, Any]) -> None:
        try:
            import wandb

            mode: Any = os.environ.get("WANDB_MODE") or ("online" if wandb.api.api_key else "offline")
            self.run = wandb.init(
                project=self.config.project,
                name=self.config.name or run_dir.name,
                tags=list(self.config.tags),
                dir=str(run_dir),
                config=config,
                id=self.run_id,
                resume="allow" if self.run_id else None,
                mode=mode,
            )
            self.run_id = self.run.id
        except Exception as error:  # whatever goes wrong in there must not end a training run
            self._give_up(error)

    def log(self, record: dict[str, Any]) -> None:
        if self.run is None:
            return
        # Names like epoch/val_top1; the block of a hash fit becomes part of the name, since it is the series.
        prefix = "/".join(str(record[key]) for key in ("event", "block") if key in record)
        values = {
            f"{prefix}/{key}": value
            for key, value in record.items()
            if isinstance(value, (int, float)) and key not in ("epoch", "step", "time")
        }
        try:
            self.run.log({**values, "epoch": record["epoch"], "step": record["step"]})
        except Exception as error:  # see open()
            self._give_up(error)

    def close(self) -> None:
        if self.run is None:
            return
        try:
            self.run.finish()
        except Exception as error:  # see open()
            self._give_up(error)
        self.run = None

    def state_dict(self) -> dict[str, Any]:
        return {"run_id": self.run_id}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.run_id = state["run_id"]

    def _give_up(self, error: Exception) -> None:
        self.run = None
        warnings.warn(f"wandb stopped ({one_line(error)}); metrics.jsonl and metrics.csv go on", stacklevel=3)

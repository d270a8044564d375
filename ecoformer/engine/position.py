"""Where in its epoch a run is. It travels in last.pt, so that a run can stop and go on after any optimiser step."""

from __future__ import annotations

import time
from typing import Any

from ecoformer.engine import distributed
from ecoformer.engine.batches import RunningFigures


class Position:
    """One epoch so far.

    Attributes:
        steps: optimiser steps done in it, those that were left out included.
        lr: learning rate of the latest one.
        meter: training figures of this rank.
    """

    def __init__(self) -> None:
        self.steps, self.lr, self.meter = 0, 0.0, RunningFigures()
        self._started, self._seconds_before = time.perf_counter(), 0.0

    def seconds(self) -> float:
        """Time spent in this epoch, in this process and in those it was resumed from."""
        return self._seconds_before + time.perf_counter() - self._started

    def gathered(self) -> dict[str, Any]:
        """Plain containers with every rank's figures. Every rank must call it."""
        return {
            "steps": self.steps,
            "lr": self.lr,
            "seconds": self.seconds(),
            "meters": distributed.gather_objects(self.meter.state_dict()),
        }

    @classmethod
    def restored(cls, state: dict[str, Any]) -> Position:
        """This rank's position from what `gathered` returned; after a change of processes rank 0 takes all figures."""
        position = cls()
        position.steps, position.lr, position._seconds_before = state["steps"], state["lr"], state["seconds"]
        meters = state["meters"]
        if len(meters) == distributed.world_size():
            position.meter.load_state_dict(meters[distributed.rank()])
        elif distributed.is_main():
            position.meter.load_state_dict({key: sum(meter[key] for meter in meters) for key in meters[0]})
        return position

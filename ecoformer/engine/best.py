"""Which evaluations of a run are the best so far: best.pt, the files in top/ and an early end follow from it."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ecoformer.engine.run_files import top_name
from ecoformer.errors import InputError
from ecoformer.files import remove
from ecoformer.files.run_names import BEST, LAST, TOP
from ecoformer.model.checkpoint import load_checkpoint, save_checkpoint


@dataclass
class Best:
    """The best evaluation, and the best epochs of which the weights are kept.

    Attributes:
        run_dir: gets best.pt and top/.
        metric: the key of `train.eval_metric` in records.
        keep: how many of the best epochs are kept in top/.
        record: the best "epoch" record, or the "evaluation" record where one within an epoch was better.
        top: epoch and metric of the epochs in top/, best first.
    """

    run_dir: Path
    metric: str
    keep: int
    record: dict[str, Any] | None = None
    top: list[dict[str, Any]] = field(default_factory=list)

    def takes(self, record: dict[str, Any]) -> bool:
        """Whether a record has the best evaluation so far, which then is the run's; the first is."""
        if record[self.metric] is None:
            return False
        if self.record is not None and self._rank(record) >= self._rank(self.record):
            return False
        self.record = record
        return True

    def write(self, weights: dict[str, Any]) -> None:
        save_checkpoint(self.run_dir / BEST, {**weights, "metrics": self.record})

    def write_if_top(self, latest: dict[str, Any] | None, weights: dict[str, Any]) -> None:
        """Write the latest epoch's weights if they are among the best; an equal earlier epoch goes before a later."""
        if latest is None or latest[self.metric] is None:
            return
        entry = {key: latest[key] for key in ("epoch", self.metric)}
        self.top = sorted([*self.top, entry], key=self._rank)[: self.keep]
        if entry in self.top:
            save_checkpoint(self.run_dir / TOP / top_name(entry), weights)

    def top_files(self) -> list[str]:
        """The files in top/ of the best epochs, best first, with their folder."""
        return [f"{TOP}/{top_name(entry)}" for entry in self.top]

    def remove_others(self) -> None:
        """Of what is in top/: the epochs that are no longer among the best."""
        for path in (self.run_dir / TOP).glob("epoch-*.pt"):
            if f"{TOP}/{path.name}" not in self.top_files():
                remove(path)

    def forget_missing(self, epochs_follow: bool, from_last: bool) -> list[str]:
        """What has no whole file any more is not kept; without best.pt, and if epochs follow, the next writes one.

        Else, where last.pt is resumed, best.pt says itself of which evaluation it is: one after last.pt, if a kill came
        between the two.
        """
        found, fault = _record_in(self.run_dir / BEST)
        if epochs_follow if found is None else from_last:
            self.record = found
        files = self.top_files()
        self.top = [entry for entry, file in zip(self.top, files, strict=True) if (self.run_dir / file).exists()]
        remedy = "the next evaluation writes it anew" if epochs_follow else f"take {LAST}, or train.epochs=MORE"
        return [f"{fault}: {remedy}"] if fault else []

    def _rank(self, record: dict[str, Any]) -> float:
        """Smaller is better; what is no number is worse than any."""
        rank = record[self.metric] if self.metric == "val_loss" else -record[self.metric]
        return math.inf if math.isnan(rank) else rank


def _record_in(path: Path) -> tuple[dict[str, Any] | None, str | None]:
    """The record that a checkpoint holds, if it is there, and what is wrong with it."""
    try:
        return (load_checkpoint(path)["metrics"] if path.exists() else None), None
    except InputError as error:
        return None, str(error).partition(":")[0]

"""What a run says about itself: one line an epoch, one dict at the end."""

from collections.abc import Sequence
from typing import Any

from ecoformer.engine.callbacks import Callback
from ecoformer.engine.run_state import RunState


def epoch_line(record: dict[str, Any], epochs: int, is_best: bool) -> str:
    """An "epoch" record in one line for the user."""
    return (
        f"epoch {record['epoch'] + 1}/{epochs}  loss {record['train_loss']:.3f}  val loss {record['val_loss']:.3f}  "
        f"top-1 {record['val_top1']:.2f} %  top-5 {record['val_top5']:.2f} %  "
        f"{record['train_images_per_second']:.0f} images/s  {record['seconds']:.1f} s" + ("  (best)" if is_best else "")
    )


def evaluation_line(record: dict[str, Any]) -> str:
    """An "evaluation" record, of a run without training, in one line."""
    return (
        f"no training  val loss {record['val_loss']:.3f}  top-1 {record['val_top1']:.2f} %  "
        f"top-5 {record['val_top5']:.2f} %"
    )


def run_summary(state: RunState, callbacks: Sequence[Callback]) -> dict[str, Any]:
    """The run's figures so far; see `Trainer.fit`. Epochs are 0 and rates of training absent without training."""
    assert state.best is not None and state.latest is not None, "a run evaluates at least once"
    summary = {
        "top1": state.best["val_top1"],
        "top5": state.best["val_top5"],
        "loss": state.best["val_loss"],
        "best_epoch": state.best["epoch"] + 1,
        "last_top1": state.latest["val_top1"],
        "epochs": state.latest["epoch"] + 1,
        "images_per_second": state.latest["images_per_second"],
        "duration_s": state.duration_s(),
    }
    if "train_images_per_second" in state.latest:
        summary["train_images_per_second"] = state.latest["train_images_per_second"]
    for callback in callbacks:
        summary |= callback.summary()
    return summary

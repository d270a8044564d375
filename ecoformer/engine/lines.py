"""What a run says about itself: one line an epoch, one dict at the end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ecoformer.engine.trainer import Trainer


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


def run_summary(trainer: Trainer) -> dict[str, Any]:
    """The run's figures so far; see `Trainer.fit`. Epochs are 0 and rates of training absent without training."""
    assert trainer.best is not None and trainer.latest is not None, "a run evaluates at least once"
    summary = {
        "top1": trainer.best["val_top1"],
        "top5": trainer.best["val_top5"],
        "loss": trainer.best["val_loss"],
        "best_epoch": trainer.best["epoch"] + 1,
        "last_top1": trainer.latest["val_top1"],
        "epochs": trainer.latest["epoch"] + 1,
        "images_per_second": trainer.latest["images_per_second"],
        "duration_s": trainer.duration_s(),
    }
    if "train_images_per_second" in trainer.latest:
        summary["train_images_per_second"] = trainer.latest["train_images_per_second"]
    for callback in trainer.callbacks:
        summary |= callback.summary()
    return summary

"""What a run says about itself: one line an epoch, one dict at the end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ecoformer.errors import InputError

if TYPE_CHECKING:
    from ecoformer.engine.trainer import Trainer


def epoch_line(record: dict[str, Any], epochs: int, is_best: bool) -> str:
    """An "epoch" record in one line for the user."""
    return (
        f"epoch {record['epoch'] + 1}/{epochs}  loss {record['train_loss']:.3f}  val loss {record['val_loss']:.3f}  "
        f"top-1 {record['val_top1']:.2f} %  top-5 {record['val_top5']:.2f} %  "
        f"{record['train_images_per_second']:.0f} images/s  {record['seconds']:.1f} s" + ("  (best)" if is_best else "")
    )


def run_summary(trainer: Trainer) -> dict[str, Any]:
    """The run's figures so far; see `Trainer.fit`. Raises InputError if not one epoch was trained."""
    if trainer.best is None or trainer.latest is None:
        raise InputError(f"nothing was trained: train.epochs={trainer.train.epochs} must be at least 1")
    summary = {
        "top1": trainer.best["val_top1"],
        "top5": trainer.best["val_top5"],
        "loss": trainer.best["val_loss"],
        "best_epoch": trainer.best["epoch"] + 1,
        "last_top1": trainer.latest["val_top1"],
        "epochs": trainer.latest["epoch"] + 1,
        "images_per_second": trainer.latest["images_per_second"],
        "train_images_per_second": trainer.latest["train_images_per_second"],
        "duration_s": trainer.duration_s(),
    }
    for callback in trainer.callbacks:
        summary |= callback.summary()
    return summary

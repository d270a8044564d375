"""What a resumed run must share with the one that wrote the checkpoint."""

from dataclasses import asdict
from itertools import zip_longest
from pathlib import Path
from typing import Any

from ecoformer.config.schema import OptimConfig, ScheduleConfig, TrainConfig
from ecoformer.errors import InputError, counted
from ecoformer.files.run_names import LAST

SAME_RUN = (  # of TrainConfig
    *("amp", "ema_decay", "ema_warmup", "sync_bn", "smoothing", "aug_splits", "jsd_loss", "eval_metric"),
    *("bce_loss", "bce_sum", "bce_target_thresh", "bce_pos_weight"),
)
_MADE_OF = {
    "steps_per_epoch": "the data, train.batch_size, train.grad_accum and train.max_steps",
    "global_batch": "train.batch_size, train.grad_accum and the number of processes",
    "num_train": "the training images of data.root as they were",
}


def shared_settings(train: TrainConfig, optim: OptimConfig, schedule: ScheduleConfig) -> dict[str, Any]:
    """Of these groups, what both runs must share."""
    shared = {f"train.{key}": getattr(train, key) for key in SAME_RUN}
    for group, settings in (("optim", optim), ("schedule", schedule)):
        shared |= {f"{group}.{key}": value for key, value in asdict(settings).items()}
    return shared


def require_same_run(
    path: Path, checkpoint: dict[str, Any], epochs: int, config: dict[str, Any], settings: dict[str, Any]
) -> None:
    """Raise InputError, naming the first difference, if `checkpoint` is not of the run that the others describe.

    Args:
        epochs: how many the run is to have in all.
        config: its `class_names`, and their order, are compared where both sides have them.
        settings: compared one by one; one that came later than the checkpoint had its default.
    """
    if checkpoint["kind"] != "run":
        raise InputError(f"{path} holds weights only: resume from {LAST}, or start from it with init.checkpoint")
    then, now = (side.get("class_names") for side in (checkpoint["config"], config))
    if then is not None and now is not None and then != now:
        raise InputError(
            f"{path} was trained on other classes: {first_difference(then, now)}: set data.root to the data of that "
            "run, or start a new one in another output_dir"
        )
    begun = checkpoint["training"].get("position") is not None
    if checkpoint["epoch"] + begun > epochs:
        done = counted(checkpoint["epoch"], "epoch") + " and a part of the next" * begun
        raise InputError(f"{path} has {done} > train.epochs={epochs}: raise train.epochs")
    for name, own in settings.items():
        written = checkpoint["training"]["settings"].get(name, own)
        if written != own:
            remedy = _MADE_OF.get(name, "it")
            raise InputError(
                f"{path} was written with {name}={written}, now it is {own}: keep {remedy}, or use resume=off"
            )


def first_difference(then: list[str], now: list[str]) -> str:
    """The first class whose name differs, and how many there are on both sides."""
    index, names = next((i, pair) for i, pair in enumerate(zip_longest(then, now)) if pair[0] != pair[1])
    was, is_now = ("absent" if name is None else repr(name) for name in names)
    return f"class {index} was {was}, now it is {is_now} ({len(then)} classes then, {len(now)} now)"

"""When hash functions are fitted, and the callback that does it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING

from rich import box
from rich.table import Table

from ecoformer.config import HashUpdateConfig
from ecoformer.engine import distributed
from ecoformer.engine.callbacks import Callback
from ecoformer.nn.hashing import HashFitReport, fit_hashes, has_hashes

if TYPE_CHECKING:
    from ecoformer.engine.trainer import Trainer


def due(config: HashUpdateConfig, epoch: int) -> bool:
    """Whether hashes are fitted before the steps of `epoch` (from 0). Pure, so a resumed run agrees.

    `every=n` means epochs 0, n, 2n, ..., as published (n = 300 there).
    """
    if not config.enabled:
        return False
    return epoch in config.at_epochs or (config.every > 0 and epoch % config.every == 0)


def fit_seed(seed: int, epoch: int) -> int:
    """The seed of images and anchors for the fit of `epoch`: another one each epoch, the same on a resume."""
    return (seed * 1_000_003 + epoch * 7_919 + 17) % 2**63


class HashUpdate(Callback):
    """Fits the hash functions of all layers on training images, before the steps of the epochs that are due.

    Rank 0 fits, then every rank gets its buffers. The EMA model's buffers are made equal too: codes that differ
    from the ones the weights are trained with would be wrong, and averaged ones are no codes.
    """

    name = "hash_update"

    def __init__(self, config: HashUpdateConfig) -> None:
        self.config = config

    def on_epoch_start(self, trainer: Trainer, epoch: int) -> None:
        if not due(self.config, epoch) or not has_hashes(trainer.model):
            return
        if distributed.is_main():
            seed = fit_seed(trainer.seed, epoch)
            images = trainer.data.calibration_images(self.config.num_images, seed=seed)
            reports = fit_hashes(trainer.model, images, seed=seed)
            for report in reports:
                trainer.log("hash_fit", **{key: value for key, value in asdict(report).items() if value is not None})
            trainer.print(_table(epoch, len(images), reports))
        trainer.sync_buffers()


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _table(epoch: int, num_images: int, reports: list[HashFitReport]) -> Table:
    title = f"hash fit before epoch {epoch + 1}: {num_images} images, {sum(r.seconds for r in reports):.1f} s"
    table = Table(title=title, title_justify="left", box=box.SIMPLE, pad_edge=False, collapse_padding=True)
    columns: dict[str, Callable[[HashFitReport], str]] = {"block": lambda r: r.block}
    if all(report.attention_error is None for report in reports):
        columns |= {"loss": lambda r: f"{r.objective_before:.4g}", "fitted": lambda r: f"{r.objective_after:.4g}"}
    else:
        columns |= {
            "error": lambda r: _figure(r.attention_error),
            "random": lambda r: _figure(r.random_error),
            "uniform": lambda r: _figure(r.uniform_error),
        }
    columns |= {
        "kept": lambda r: f"{r.accepted_bits}/{r.num_bits}",
        "flipped": lambda r: f"{r.flipped_bits:.0%}",
        "balance": lambda r: f"{r.bit_balance:.2f}",
        "corr.": lambda r: f"{r.bit_correlation:.2f}",
        "s": lambda r: f"{r.seconds:.1f}",
    }
    for name in columns:
        table.add_column(name, justify="left" if name == "block" else "right", no_wrap=True)
    for report in reports:
        table.add_row(*(cell(report) for cell in columns.values()))
    return table

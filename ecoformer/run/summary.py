"""What a run tells at its start and its end: notes and plan, summary.json, and the table of figures."""

import platform
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

import ecoformer
from ecoformer.config.schema import Config
from ecoformer.energy import summarize
from ecoformer.energy.conventions import CONVENTIONS
from ecoformer.engine import distributed
from ecoformer.files import write_json, write_text
from ecoformer.files.run_names import COMPRESSION, COMPRESSION_TABLE, HASH_FITS
from ecoformer.fit.hashes import has_hashes
from ecoformer.model.layers import FilterFn
from ecoformer.model.low_rank import CompressionReport, LowRankSpec, factorize
from ecoformer.nn.inputs import Size, input_size
from ecoformer.report.tables import Rows, compression_markdown


def whole_summary(config: Config, model: nn.Module, figures: dict[str, Any]) -> dict[str, Any]:
    """The content of summary.json: settings, the trainer's figures, size and energy, versions."""
    if "energy_pj" not in figures:
        figures = figures | run_energy(config, model)
    options = {key: value for key, value in config.attention.items() if key != "name"}
    return {
        "name": config.name,
        "model": config.model.name,
        "attention": config.attention["name"],
        "attention_options": options,
        "compress": {key: value for key, value in asdict(config.compress).items() if value is not None},
        "dataset": config.data.name,
        "img_size": config.data.img_size,
        "seq_len": config.data.seq_len,
        "patch_stride": config.model.patch_stride,
        **figures,
        "init": config.init.origin,
        "seed": config.seed,
        "versions": versions(),
    }


def run_energy(config: Config, model: nn.Module) -> dict[str, Any]:
    """`summarize` of a run's model, at its image size or all its tokens, convention and prices."""
    size, energy = input_size(model, config.data.img_size), config.energy
    return summarize(model, size, convention=energy.convention, profile=energy.profile)


def versions() -> dict[str, str]:
    """Of this package and of what the figures depend on."""
    found = {"ecoformer": ecoformer.__version__, "torch": torch.__version__, "timm": timm.__version__}
    return {**found, "python": platform.python_version()}


def factorize_and_count(
    model: nn.Module,
    spec: LowRankSpec,
    filter_fn: FilterFn | None = None,
    *,
    img_size: Size,
    profile: str = "45nm_fp32",
) -> CompressionReport:
    """`factorize`, and in its report the figures of one image before and after. Raises InputError as both do."""

    def figures() -> dict[str, dict[str, Any]]:
        return {name: summarize(model, img_size, convention=name, profile=profile) for name in CONVENTIONS}

    before, report, after = figures(), factorize(model, spec, filter_fn, img_size), figures()
    report.ledger = {name: {"before": before[name], "after": after[name]} for name in CONVENTIONS}
    return report


def write_compression(folder: Path, report: CompressionReport | None) -> None:
    """Write what a compression did into the run directory, as JSON and as a table; nothing without one."""
    if report is not None:
        write_json(folder / COMPRESSION, report.to_dict())
        write_text(folder / COMPRESSION_TABLE, compression_markdown(report) + "\n")


def draw_hash_fits(run_dir: Path, model: nn.Module) -> None:
    """hash_fits.png: what every fit of the run's hash functions was worth; nothing for a run without fits."""
    if has_hashes(model):
        from ecoformer.report.training import plot_hash_fits  # imported late: matplotlib takes its time

        plot_hash_fits(run_dir, run_dir / HASH_FITS)


def show(rows: Rows, *, title: str = "", notes: Sequence[str] = ()) -> None:
    """Print names and values, a line each, below a title and above notes; rank 0 alone does."""
    if distributed.is_main():
        head, row = ([title], "  {:<16} {}") if title else ([], "{:<14} {}")
        print("\n".join([*head, *(row.format(*pair) for pair in rows), *(f"note: {note}" for note in notes)]))
